"""Every option of the package, each declared once: `dct.declaration` says what becomes of a declaration.

A group is a table of a TOML file, a panel of a help page and an argument of the functions that it is for. Knows no
torch: a help page is made of this alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dct.aliases import DEMO
from dct.declaration import (
    FLOAT32,
    LARGE,
    MANY,
    SEEDS,
    SMALL,
    Choice,
    Range,
    Settings,
    above_zero,
    choice,
    counted,
    setting,
)
from dct.errors import UsageError
from dct.method import built_in

METHODS = built_in()
"""The methods that come with the package; `dct.method.names` knows those of other packages too."""


def _methods() -> tuple[str, ...]:
    from dct.method import names

    return names()


def positions_of(text: str) -> int | Literal["all"]:
    """`positions` as text has it: a number or `all`."""
    if text == "all":
        return "all"
    if not text.isdecimal() or not 1 <= int(text[:7]) <= MANY or len(text) > 7:
        raise ValueError(f"must be a number or `all`, from 1 to {MANY:,}: got {text!r}")
    return int(text)


def scales_of(text: str) -> tuple[float, ...]:
    """`scales` as text has them: multiples of R, with commas between."""
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(SMALL <= s <= LARGE for s in found):
        raise ValueError(f"are positive multiples of R with commas between, such as 0.5,1,2,4: got {text!r}")
    return found


def method_options_of(text: str) -> dict[str, bool | int | float | str]:
    """`method_options` as text has them: name=value, with commas between, such as p=4,q=1."""
    found: dict[str, bool | int | float | str] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name.isidentifier() and equals and value) or name in found:
            raise ValueError(f"are options of the method with commas between, such as p=4,q=1: got {text!r}")
        found[name] = _scalar(value)
    return found


def _scalar(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _check_memory(name: str, value: str) -> None:
    from dct.memory import parse_bytes

    parse_bytes(value)


def _check_vectors(name: str, value: list[str]) -> None:
    for one in value:
        digits = one.strip().removeprefix("-")
        if not digits.isdecimal() or len(digits) > 7:
            raise UsageError(
                f"a vector is a number such as 17, or -17 for its opposite; got {one!r}", argument="vector"
            )


# --- the model --------------------------------------------------------------------------------------------------------

DTYPES = choice("auto", "float32", "bfloat16", "float16", "float64")


@dataclass
class WeightSettings(Settings):
    """What a model's weights are, wherever they will lie."""

    table: ClassVar[str] = "model"
    title: ClassVar[str] = "Model"

    adapter: str | None = setting(None, "PEFT adapter to merge into the model: a folder or an id.")
    layers: str = setting("", "Dotted name of the block list, where it is not found alone.")
    revision: str | None = setting(None, "Branch, tag or commit on the hub.")
    trust_remote_code: bool = setting(False, "Run model code that comes with the weights.")


@dataclass
class ModelSettings(WeightSettings):
    """Which model, and how it is loaded."""

    model: str = setting(
        DEMO,
        "Alias (`dct models` lists them), folder, GGUF file, adapter or Hugging Face id.",
        short="m",
        first=True,
    )
    dtype: str = setting("auto", "Type of the weights.", check=DTYPES)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps, or map (all devices).")
    memory: str | None = setting(
        None, "Memory to stay within, such as 8GB.", shown="what is free on the device", check=_check_memory
    )


@dataclass
class RunModelSettings(Settings):
    """How the model of a run is loaded again."""

    table: ClassVar[str] = "model"
    title: ClassVar[str] = "Model"

    model: str | None = setting(None, "Another place of the run's model.", short="m", shown="the run's")
    adapter: str | None = setting(None, "Another adapter than the run's.", shown="the run's")
    dtype: str = setting("auto", "Type of the weights.", check=DTYPES)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps, or map (all devices).")
    memory: str | None = setting(
        None, "Memory to stay within, such as 8GB.", shown="what is free on the device", check=_check_memory
    )
    trust_remote_code: bool = setting(False, "Run model code that comes with the weights.")


# --- prompts ----------------------------------------------------------------------------------------------------------


@dataclass
class PromptSettings(Settings):
    """Which prompts, and how the model reads them."""

    table: ClassVar[str] = "prompts"
    title: ClassVar[str] = "Prompts"

    prompts: str | None = setting(
        None,
        "File (.txt .jsonl .json .csv), packaged set (harmful, harmless, arithmetic) or hf:dataset:split:column.",
        first=True,
    )
    column: str | None = setting(None, "Column of the prompts file.", shown="prompt, goal, ...")
    system: str | None = setting(None, "System message for the chat template.")
    reply_prefix: str | None = setting(
        None,
        "What replies begin with, behind the chat template; '' for nothing.",
        shown="the end of a thought that the template opens",
    )
    escape_control: bool | None = setting(
        None,
        "Read control tokens in a prompt as the text that they are written with.",
        shown="no; what the run did",
    )


@dataclass
class FitPromptSettings(PromptSettings):
    """Prompts that a slice is made of."""

    prompt: list[str] = setting([], "A literal prompt; may be repeated.")
    n: int = setting(8, "Use the first n prompts.", check=counted())


@dataclass
class RankPromptSettings(PromptSettings):
    """Prompts that vectors are scored on."""

    n: int = setting(16, "Prompts of each set, beyond those of the fit.", check=counted())
    harmless: str | None = setting(None, "Prompt set on which damage is measured.", shown="the harmless set")


@dataclass
class ReplyPromptSettings(PromptSettings):
    """Prompts that are completed."""

    prompt: list[str] = setting([], "A literal prompt; may be repeated.", first=True)
    n: int = setting(3, "Prompts to complete, when none is given literally.", check=counted())
    harmless: str | None = setting(None, "Prompt set on which damage is measured.", shown="the harmless set")


@dataclass
class BenchPromptSettings(PromptSettings):
    """Prompts that the experiments are made on."""

    harmless: str | None = setting(None, "Prompt set on which damage is measured.", shown="the harmless set")


# --- the slice --------------------------------------------------------------------------------------------------------


@dataclass
class LayerSettings(Settings):
    """Between which layers."""

    table: ClassVar[str] = "slice"
    title: ClassVar[str] = "Slice"

    source: int | None = setting(
        None, "Source layer: vectors enter here.", also="s", shown="a third of the depth", first=True
    )
    target: int | None = setting(
        None, "Target layer: effects are read here.", also="t", shown="s + 10, or 2/3 down", first=True
    )


@dataclass
class SliceSettings(LayerSettings):
    """The map that is fitted."""

    positions: int | str | None = setting(
        None,
        "Last tokens of each prompt that are read at the target, or `all`.",
        shown="those that open the reply, 3 at most",
        parse=positions_of,
        check=lambda name, value: positions_of(str(value)) and None,
    )


@dataclass
class FitSliceSettings(SliceSettings):
    """The map that is fitted, and how it is run."""

    compile: str = setting(
        "auto",
        "Compile the blocks; auto: where the fit is long enough to gain by it.",
        check=choice("auto", "on", "off"),
    )


# --- the fit ----------------------------------------------------------------------------------------------------------


@dataclass
class CalibrationSettings(Settings):
    """How the scale is found."""

    table: ClassVar[str] = "fit"
    title: ClassVar[str] = "Fit"

    ratio: float | None = setting(
        None,
        "Non-linearity ratio at which the scale is calibrated.",
        key="lambda",
        shown="0.5, but R no larger than the residual norm",
        check=above_zero(),
    )
    batch: int | None = setting(None, "Vectors in one pass.", shown="what memory holds", check=counted())
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))


@dataclass
class FitSettings(CalibrationSettings):
    """How factors are learned."""

    method: str = setting("exponential", "How factors are learned.", check=Choice(_methods, METHODS))
    factors: int | None = setting(
        None, "Factors to learn.", shown="512, or the model's width", check=counted(), first=True
    )
    iterations: int | None = setting(
        None, "Of an iterative method; steps of a melbo vector.", shown="10; melbo 60", check=counted()
    )
    scale: float | None = setting(None, "Steering scale R.", shown="calibrated", check=above_zero(FLOAT32))
    orthogonalize: str | None = setting(
        None,
        "How the vectors are pushed apart; qr is the post's.",
        shown="soft; quadratic qr",
        check=choice("qr", "soft", "none"),
    )
    start: str = setting("projected", "Where the vectors start.", check=choice("projected", "random"))
    d_proj: int = setting(32, "Random output directions of the projected start.", check=counted())
    beta: float = setting(1.0, "Share of the new factor in each update.", check=above_zero(1.0))
    tolerance: float = setting(0.0, "Stop once V changes by less.", check=Range(0.0, 1.0))
    method_options: dict[str, bool | int | float | str] | None = setting(
        None, "Options that are the method's own, such as p=4,q=1.", shown="the method's", parse=method_options_of
    )


# --- ranking ----------------------------------------------------------------------------------------------------------

BETTER = "The word that a good vector makes likelier."
WORSE = "The word that it makes less likely."


@dataclass
class RankSettings(Settings):
    """How vectors are scored and ordered."""

    table: ClassVar[str] = "rank"
    title: ClassVar[str] = "Ranking"
    own: ClassVar[bool] = True

    positive: str = setting("Sure", BETTER)
    negative: str = setting("Sorry", WORSE)
    by: str = setting("score", "What orders the vectors.", check=choice("score", "alpha", "kl"))
    top: int = setting(10, "Rows to show.", check=counted(), first=True)
    scale: float = setting(1.0, "Multiplies the fitted R.", check=above_zero())
    scales: tuple[float, ...] | str = setting(
        (1.0,),
        "Multiples of R to try, such as 0.5,1,2,4; each vector keeps its best.",
        parse=scales_of,
        first=True,
    )
    max_damage: float | None = setting(
        None, "Damage (KL) above which a vector or scale comes behind all others.", check=Range(0.0, LARGE)
    )
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))


@dataclass
class TaskSettings(Settings):
    """Questions with answers, and how they are asked."""

    table: ClassVar[str] = "task"
    title: ClassVar[str] = "Task"

    task: str | None = setting(
        None,
        "Rank by right answers instead: a file of prompts with `answer` or `regex` (or locked).",
        first=True,
    )
    match: str | None = setting(None, r"Of a task: a regular expression with {answer} in it, such as '\b{answer}\b'.")
    unlock: str | None = setting(None, "Of a task: how the unlocked model is asked, such as 'Password xyz. {prompt}'.")


@dataclass
class RankTaskSettings(TaskSettings):
    """How vectors are chosen by the questions that they make a model answer."""

    test: int = setting(100, "Of a task: at most so many questions are kept for reporting.", check=counted())
    max_new_tokens: int | None = setting(
        None, "Of a task: length of completions.", shown="by the answers", check=counted()
    )
    exhaustive: bool = setting(False, "Of a task: ask every vector every question, without halving.")


# --- vectors in use ---------------------------------------------------------------------------------------------------


@dataclass
class VectorSettings(Settings):
    """Which vectors of a run."""

    table: ClassVar[str] = "vectors"
    title: ClassVar[str] = "Vectors"

    vector: list[str] = setting(
        [], "A vector's number, -17 for its opposite; repeatable.", short="v", check=_check_vectors, first=True
    )
    rank: list[int] = setting([], "A vector by its place in the ranking; repeatable.", check=counted(), first=True)
    top: int | None = setting(None, "The first so many of the ranking.", check=counted())
    aggregate: str | None = setting(None, "Use their mean or svd instead of each of them.", check=choice("mean", "svd"))


@dataclass
class SteerSettings(Settings):
    """How completions are steered."""

    table: ClassVar[str] = "steer"
    title: ClassVar[str] = "Completions"
    own: ClassVar[bool] = True

    scale: float = setting(
        1.0,
        "Multiplies R, or the scale that the ranking brings along.",
        check=Range(-LARGE, LARGE),
        first=True,
    )
    tokens: str = setting(
        "all",
        "Steer all tokens, only the prompt, or only those generated.",
        check=choice("all", "prompt", "generated"),
    )
    max_new_tokens: int = setting(64, "Length of completions.", check=counted())
    temperature: float = setting(0.0, "0 is greedy.", check=Range(0.001, 1000.0, zero=True))
    positive: str = setting("Sure", BETTER)
    negative: str = setting("Sorry", WORSE)
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))


@dataclass
class AblateSettings(Settings):
    """What is projected out, and how it is compared."""

    table: ClassVar[str] = "ablate"
    title: ClassVar[str] = "Ablation"
    own: ClassVar[bool] = True

    site: str = setting(
        "source", "source: the vectors V; target: what they cause, U.", check=choice("source", "target")
    )
    max_new_tokens: int = setting(64, "Length of completions.", check=counted())
    positive: str = setting("Sure", BETTER)
    negative: str = setting("Sorry", WORSE)
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))


@dataclass
class SaveSettings(Settings):
    """Where an edited model goes, if anywhere, and how."""

    table: ClassVar[str] = "save"
    title: ClassVar[str] = "Saving"

    save: Path | None = setting(None, "Write the edited model to this folder.", first=True)
    save_dtype: str = setting(
        "auto",
        "Type of the saved weights.",
        shown="the source's; for an adapter float32",
        check=choice("auto", "float32", "bfloat16", "float16"),
    )
    save_as: str = setting(
        "model",
        "model: all weights; adapter: what changes them, for PEFT, unrounded.",
        check=choice("model", "adapter"),
    )


# --- the benchmark ----------------------------------------------------------------------------------------------------


@dataclass
class BenchSettings(Settings):
    """Which experiments, and how large."""

    table: ClassVar[str] = "bench"
    title: ClassVar[str] = "Experiments"
    own: ClassVar[bool] = True

    quick: bool = setting(False, "Every experiment, small: whether it runs, not what is true.", first=True)
    only: str | None = setting(None, "Some of the experiments: i,ii,iii,iv,v,vi.", shown="all", first=True)
    factors: int | None = setting(
        None, "Vectors of every fit.", shown="a sixth of the width, at most 512", check=counted(2), first=True
    )
    shuffles: int | None = setting(None, "Of the sample-complexity experiment.", shown="5", check=counted())
    positive: str = setting("Sure", BETTER)
    negative: str = setting("Sorry", WORSE)
    ratio: float | None = setting(
        None,
        "Non-linearity ratio at which the scale is calibrated.",
        key="lambda",
        shown="0.5, but R no larger than the residual norm",
        check=above_zero(),
    )
    scale: float | None = setting(None, "Steering scale R.", shown="calibrated", check=above_zero(FLOAT32))
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))


# --- output -----------------------------------------------------------------------------------------------------------


@dataclass
class OutputSettings(Settings):
    """What is shown and where; no part of a run's record."""

    table: ClassVar[str] = "output"
    title: ClassVar[str] = "Output"

    config: Path | None = setting(
        None, "Options from this TOML file, such as a run's config.toml; those on the command line come first."
    )
    json: bool = setting(False, "Machine-readable result on stdout, all else on stderr.")
    quiet: bool = setting(False, "Say only what went wrong.", short="q")
    debug: bool = setting(False, "Show tracebacks.")


@dataclass
class FitOutputSettings(OutputSettings):
    """Where a fit goes."""

    out: Path | None = setting(None, "Run folder.", shown="a new one under runs/")
    resume: bool = setting(False, "Go on with an interrupted fit (in its run folder, or the newest), as it was begun.")
    force: bool = setting(False, "Overwrite a run.")


@dataclass
class RunOutputSettings(OutputSettings):
    """Output of a command that uses a run."""

    force: bool = setting(False, "Use factors on another model than they were fitted on.")


@dataclass
class FileOutputSettings(OutputSettings):
    """Output that may also go to a file."""

    out: Path | None = setting(None, "Also write the result to this file.")


@dataclass
class SteerOutputSettings(RunOutputSettings):
    """Output of completions."""

    out: Path | None = setting(None, "Also write the completions to this JSONL file.")


@dataclass
class BenchOutputSettings(OutputSettings):
    """Where tables and figures go."""

    out: Path | None = setting(None, "Results folder.", shown="runs/bench-MODEL")
    figures: bool = setting(True, "Draw figures (needs matplotlib).")
    force: bool = setting(False, "Measure again what is on record.")
