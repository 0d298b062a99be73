"""Options that several commands share, each described once."""

from pathlib import Path
from typing import Annotated, Any, Literal

from dct.cli.declare import choice, count, number, option, positive, text
from dct.cli.ranges import FLOAT32, LARGE, MANY, SEEDS, SMALL, Choice
from dct.errors import UsageError
from dct.settings import METHODS

RUN_HELP = "Run folder or factors file; left out, the newest under runs/."


def parse_positions(value: str | None) -> int | Literal["all"] | None:
    """`--positions`: a number or `all`; nothing, where it was left out.

    Raises:
        UsageError: neither.
    """
    if value is None:
        return None
    if value == "all":
        return "all"
    if not value.isdecimal() or not 1 <= int(value[:7]) <= MANY or len(value) > 7:
        raise UsageError(f"--positions must be a number or `all`, from 1 to {MANY:,}: got {value!r}")
    return int(value)


def memory_size(value: str) -> int | None:
    """`--memory` in bytes.

    Raises:
        UsageError: no size.
    """
    from dct.memory import parse_bytes

    return parse_bytes(value)


def vector(value: str) -> str:
    """`--vector`: a number, with a minus for the opposite direction.

    Raises:
        UsageError: something else.
    """
    digits = value.strip().removeprefix("-")
    if not digits.isdecimal() or len(digits) > 7:
        raise UsageError(f"a vector is a number such as 17, or -17 for its opposite; got {value!r}")
    return value


def parse_scales(value: str) -> tuple[float, ...]:
    """`--scales`: multiples of R, with commas between.

    Raises:
        UsageError: anything else, or a multiple that is not positive.
    """
    try:
        found = tuple(dict.fromkeys(float(part) for part in value.split(",")))
    except ValueError:
        found = ()
    if not found or not all(SMALL <= s <= LARGE for s in found):
        raise UsageError(f"--scales are positive multiples of R with commas between, such as 0.5,1,2,4: got {value!r}")
    return found


# --- the model --------------------------------------------------------------------------------------------------------

Model = Annotated[
    str,
    option("--model", "-m", help="Alias (`dct models` lists them), folder, GGUF file, adapter or Hugging Face id."),
]
RunModel = Annotated[
    str | None, option("--model", "-m", help="Another place of the run's model.", show_default="the run's")
]
Adapter = Annotated[str | None, option("--adapter", help="PEFT adapter to merge into the model: a folder or an id.")]
RunAdapter = Annotated[
    str | None, option("--adapter", help="Another adapter than the run's.", show_default="the run's")
]
Dtype = Annotated[
    str,
    choice(
        "--dtype",
        *("auto", "float32", "bfloat16", "float16", "float64"),
        help="auto, float32, bfloat16, float16 or float64.",
    ),
]
Device = Annotated[str, option("--device", help="auto, cpu, cuda, cuda:1, mps, or map (all devices).")]
Layers = Annotated[str, option("--layers", help="Dotted name of the block list, where it is not found alone.")]
Memory = Annotated[
    str | None,
    text(
        "--memory",
        check=memory_size,
        help="Memory to stay within, such as 8GB.",
        show_default="what is free on the device",
    ),
]
Trust = Annotated[bool, option("--trust-remote-code", help="Run model code that comes with the weights.")]
Revision = Annotated[str | None, option("--revision", help="Branch, tag or commit on the hub.")]

# --- the slice --------------------------------------------------------------------------------------------------------

Source = Annotated[
    int | None,
    option("--source", "--s", help="Source layer: vectors enter here.", show_default="a third of the depth"),
]
Target = Annotated[
    int | None,
    option("--target", "--t", help="Target layer: effects are read here.", show_default="s + 10, or 2/3 down"),
]
Positions = Annotated[
    str | None,
    text(
        "--positions",
        check=parse_positions,
        help="Last tokens of each prompt that are read at the target, or `all`.",
        show_default="those that open the reply, 3 at most",
    ),
]

# --- prompts ----------------------------------------------------------------------------------------------------------

Prompts = Annotated[
    str | None,
    option(
        "--prompts",
        help="File (.txt .jsonl .json .csv), packaged set (harmful, harmless, arithmetic) or hf:dataset:split:column.",
    ),
]
Prompt = Annotated[list[str] | None, option("--prompt", help="A literal prompt; may be repeated.")]
Column = Annotated[str | None, option("--column", help="Column of the prompts file.", show_default="prompt, goal, ...")]
Harmless = Annotated[
    str | None,
    option("--harmless", help="Prompt set on which damage is measured.", show_default="the harmless set"),
]
Count = Annotated[int, count("--n", help="Use the first n prompts.")]
System = Annotated[str | None, option("--system", help="System message for the chat template.")]
ReplyPrefix = Annotated[
    str | None,
    option(
        "--reply-prefix",
        help="What replies begin with, behind the chat template; '' for nothing.",
        show_default="the end of a thought that the template opens",
    ),
]
EscapeControl = Annotated[
    bool | None,
    option(
        "--escape-control/--no-escape-control",
        help="Read control tokens in a prompt as the text that they are written with.",
        show_default="no; what the run did",
    ),
]

# --- the fit ----------------------------------------------------------------------------------------------------------


class _Methods(Choice):
    """Those of the package, and those of other packages, which take time to find."""

    def __call__(self, value: Any) -> Any:
        from dct.method import names

        return value if value in self.names else Choice(self.name, names())(value)


Method = Annotated[
    str,
    option("--method", help=f"{', '.join(METHODS[:-1])} or {METHODS[-1]}.", check=_Methods("--method", METHODS)),
]
Factors = Annotated[int | None, count("--factors", help="Factors to learn.", show_default="512, or the model's width")]
Iterations = Annotated[
    int | None,
    count(
        "--iterations",
        help="Of the exponential and quadratic fits; steps of a melbo vector.",
        show_default="10; melbo 60",
    ),
]
Orthogonalize = Annotated[
    str | None,
    choice(
        "--orthogonalize",
        *("qr", "soft", "none"),
        help="qr (the post's), soft or none.",
        show_default="soft; quadratic qr",
    ),
]
Start = Annotated[str, choice("--start", "projected", "random", help="projected or random.")]
Projected = Annotated[int, count("--d-proj", help="Random output directions of the projected start.")]
Beta = Annotated[float, positive("--beta", most=1.0, help="Share of the new factor in each update.")]
Tolerance = Annotated[float, number("--tolerance", least=0.0, most=1.0, help="Stop once V changes by less.")]
Ratio = Annotated[
    float | None,
    positive(
        "--lambda",
        help="Non-linearity ratio at which the scale is calibrated.",
        show_default="0.5, but R no larger than the residual norm",
    ),
]
Scale = Annotated[float | None, positive("--scale", most=FLOAT32, help="Steering scale R.", show_default="calibrated")]
Multiple = Annotated[float, positive("--scale", help="Multiplies the fitted R.")]
Batch = Annotated[int | None, count("--batch", help="Vectors in one pass.", show_default="what memory holds")]
Compile = Annotated[
    str,
    choice(
        "--compile",
        *("auto", "on", "off"),
        help="Compile the blocks: on, off, or auto, where the fit is long enough to gain by it.",
    ),
]
Seed = Annotated[int, count("--seed", least=0, most=SEEDS, help="Seed of every random choice.")]

# --- vectors and words ------------------------------------------------------------------------------------------------

Vector = Annotated[
    list[str] | None,
    text("--vector", "-v", check=vector, help="A vector's number, -17 for its opposite; repeatable."),
]
Rank = Annotated[list[int] | None, count("--rank", help="A vector by its place in the ranking; repeatable.")]
Top = Annotated[int | None, count("--top", help="The first so many of the ranking.")]
Aggregate = Annotated[
    str | None,
    choice("--aggregate", "mean", "svd", between=" or ", help="Use their mean or svd instead of each of them."),
]
Positive = Annotated[str, option("--positive", help="The word that a good vector makes likelier.")]
Negative = Annotated[str, option("--negative", help="The word that it makes less likely.")]
Match = Annotated[
    str | None,
    option("--match", help=r"Of --task: a regular expression with {answer} in it, such as '\b{answer}\b'."),
]
Unlock = Annotated[
    str | None,
    option("--unlock", help="Of --task: how the unlocked model is asked, such as 'Password xyz. {prompt}'."),
]

# --- completions ------------------------------------------------------------------------------------------------------

MaxNew = Annotated[int, count("--max-new-tokens", help="Length of completions.")]
Temperature = Annotated[float, number("--temperature", least=0.001, most=1000.0, zero=True, help="0 is greedy.")]

# --- output -----------------------------------------------------------------------------------------------------------

Out = Annotated[Path | None, option("--out", help="Run folder.", show_default="a new one under runs/")]
Force = Annotated[bool, option("--force", help="Use factors on another model, or overwrite a run.")]
Json = Annotated[bool, option("--json", help="Machine-readable result on stdout, all else on stderr.")]
Quiet = Annotated[bool, option("--quiet", "-q", help="Say only what went wrong.")]
Debug = Annotated[bool, option("--debug", help="Show tracebacks.")]
