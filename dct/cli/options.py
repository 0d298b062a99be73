"""Options that several commands share, each described once."""

from pathlib import Path
from typing import Annotated

import typer

RUN_HELP = "Run folder or factors file; left out, the newest under runs/."

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Alias (`dct models` lists them), folder, GGUF file, adapter or Hugging Face id."
    ),
]
RunModel = Annotated[
    str | None, typer.Option("--model", "-m", help="Another place of the run's model.", show_default="the run's")
]
Adapter = Annotated[str | None, typer.Option(help="PEFT adapter to merge into the model: a folder or an id.")]
RunAdapter = Annotated[
    str | None, typer.Option("--adapter", help="Another adapter than the run's.", show_default="the run's")
]
Source = Annotated[
    int | None,
    typer.Option("--source", "--s", help="Source layer: vectors enter here.", show_default="a third of the depth"),
]
Target = Annotated[
    int | None,
    typer.Option("--target", "--t", help="Target layer: effects are read here.", show_default="s + 10, or 2/3 down"),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="File (.txt .jsonl .json .csv), packaged set (harmful, harmless, arithmetic) or hf:dataset:split:column."
    ),
]
Prompt = Annotated[list[str] | None, typer.Option("--prompt", help="A literal prompt; may be repeated.")]
Column = Annotated[str | None, typer.Option(help="Column of the prompts file.", show_default="prompt, goal, ...")]
Harmless = Annotated[
    str | None, typer.Option(help="Prompt set on which damage is measured.", show_default="the harmless set")
]
Count = Annotated[int, typer.Option("--n", min=1, help="Use the first n prompts.")]
System = Annotated[str | None, typer.Option(help="System message for the chat template.")]
ReplyPrefix = Annotated[
    str | None,
    typer.Option(
        "--reply-prefix",
        help="What replies begin with, behind the chat template; '' for nothing.",
        show_default="the end of a thought that the template opens",
    ),
]
EscapeControl = Annotated[
    bool | None,
    typer.Option(
        "--escape-control/--no-escape-control",
        help="Read control tokens in a prompt as the text that they are written with.",
        show_default="no; what the run did",
    ),
]
Positions = Annotated[
    str | None,
    typer.Option(
        help="Last tokens of each prompt that are read at the target, or `all`.",
        show_default="those that open the reply, 3 at most",
    ),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, or map (all devices).")]
Layers = Annotated[str, typer.Option("--layers", help="Dotted name of the block list, where it is not found alone.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Vectors in one pass.", show_default="what memory holds")]
Memory = Annotated[
    str | None, typer.Option(help="Memory to stay within, such as 8GB.", show_default="what is free on the device")
]
Compile = Annotated[
    str, typer.Option(help="Compile the blocks: on, off, or auto, where the fit is long enough to gain by it.")
]
Ratio = Annotated[
    float | None,
    typer.Option(
        "--lambda",
        help="Non-linearity ratio at which the scale is calibrated.",
        show_default="0.5, but R no larger than the residual norm",
    ),
]
Scale = Annotated[float | None, typer.Option(help="Steering scale R.", show_default="calibrated")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code that comes with the weights.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")]
Force = Annotated[bool, typer.Option("--force", help="Use factors on another model, or overwrite a run.")]
Match = Annotated[
    str | None, typer.Option(help=r"Of --task: a regular expression with {answer} in it, such as '\b{answer}\b'.")
]
Unlock = Annotated[
    str | None, typer.Option(help="Of --task: how the unlocked model is asked, such as 'Password xyz. {prompt}'.")
]
Positive = Annotated[str, typer.Option(help="The word that a good vector makes likelier.")]
Negative = Annotated[str, typer.Option(help="The word that it makes less likely.")]
MaxNew = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Length of completions.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
Out = Annotated[Path | None, typer.Option(help="Run folder.", show_default="a new one under runs/")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout, all else on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
