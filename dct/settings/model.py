"""What is fitted on: the model, the prompts and the slice."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dct.aliases import DEMO
from dct.declaration import (
    MANY,
    Settings,
    choice,
    counted,
    setting,
)
from dct.errors import UsageError


def positions_of(text: str) -> int | Literal["all"]:
    """`positions` as text has it: a number or `all`."""
    if text == "all":
        return "all"
    if not text.isdecimal() or not 1 <= int(text[:7]) <= MANY or len(text) > 7:
        raise ValueError(f"must be a number or `all`, from 1 to {MANY:,}: got {text!r}")
    return int(text)


def band_of(text: str) -> tuple[int, int]:
    """`band` as text has it: the first and the last block, such as 7-10, or one block.

    Raises:
        ValueError: it is none.
    """
    first, _, last = text.partition("-")
    ends = [first, last or first]
    if not all(end.isdecimal() and len(end) < 7 for end in ends) or int(ends[0]) > int(ends[1]):
        raise ValueError(f"must be a first and a last block, such as 7-10: got {text!r}")
    return int(ends[0]), int(ends[1])


def _check_band(name: str, value: str) -> None:
    try:
        band_of(value)
    except ValueError as error:
        raise UsageError(f"`{name}` {error}", argument=name) from error


def _check_memory(name: str, value: str) -> None:
    from dct.memory import parse_bytes

    parse_bytes(value)


# --- the model --------------------------------------------------------------------------------------------------------

DTYPES = choice("auto", "float32", "bfloat16", "float16", "float64")


@dataclass(repr=False, eq=False, match_args=False)
class WeightSettings(Settings):
    """What a model's weights are, wherever they will lie."""

    table: ClassVar[str] = "model"
    title: ClassVar[str] = "Model"

    adapter: str | None = setting(None, "PEFT adapter to merge into the model: a folder or an id.")
    layers: str = setting("", "Dotted name of the block list, where it is not found alone.")
    revision: str | None = setting(None, "Branch, tag or commit on the hub.")
    trust_remote_code: bool = setting(False, "Run model code that comes with the weights.")


@dataclass(repr=False, eq=False, match_args=False)
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


@dataclass(repr=False, eq=False, match_args=False)
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


@dataclass(repr=False, eq=False, match_args=False)
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


@dataclass(repr=False, eq=False, match_args=False)
class FitPromptSettings(PromptSettings):
    """Prompts that a slice is made of."""

    prompt: list[str] = setting([], "A literal prompt; may be repeated.")
    n: int = setting(8, "Use the first n prompts.", check=counted())


@dataclass(repr=False, eq=False, match_args=False)
class RankPromptSettings(PromptSettings):
    """Prompts that vectors are scored on."""

    n: int | None = setting(
        None,
        "Prompts, beyond those of the fit, that vectors are chosen by.",
        shown="32; 16 with --screen-only or --task",
        check=counted(),
    )
    harmless: str | None = setting(None, "Prompt set on which damage is measured.", shown="the harmless set")


@dataclass(repr=False, eq=False, match_args=False)
class ReplyPromptSettings(PromptSettings):
    """Prompts that are completed."""

    prompt: list[str] = setting([], "A literal prompt; may be repeated.", first=True)
    n: int = setting(3, "Prompts to complete, when none is given literally.", check=counted())
    harmless: str | None = setting(None, "Prompt set on which damage is measured.", shown="the harmless set")


@dataclass(repr=False, eq=False, match_args=False)
class BenchPromptSettings(PromptSettings):
    """Prompts that the experiments are made on."""

    harmless: str | None = setting(None, "Prompt set on which damage is measured.", shown="the harmless set")


# --- the slice --------------------------------------------------------------------------------------------------------


@dataclass(repr=False, eq=False, match_args=False)
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


@dataclass(repr=False, eq=False, match_args=False)
class SliceSettings(LayerSettings):
    """The map that is fitted."""

    positions: int | Literal["all"] | None = setting(
        None,
        "Last tokens of each prompt that are read at the target, or `all`.",
        shown="those that open the reply, 3 at most",
        parse=positions_of,
        check=lambda name, value: positions_of(str(value)) and None,
    )


@dataclass(repr=False, eq=False, match_args=False)
class FitSliceSettings(SliceSettings):
    """The map that is fitted, and how it is run."""

    compile: str = setting(
        "auto",
        "Compile the blocks; auto: where the fit is long enough to gain by it.",
        check=choice("auto", "on", "off"),
    )
    minus: str | None = setting(
        None, "Fit the difference: another model of the same shape, whose response is subtracted.", shown="none"
    )
    band: str | None = setting(
        None,
        "Blocks whose attention outputs cpe changes, such as 7-10.",
        shown="those at .225 to .325 of the depth",
        check=_check_band,
    )
    layers_from: Path | None = setting(
        None, "Take source and target from this file of `dct scan`, such as scan.json.", shown="the rule of the depth"
    )


@dataclass(repr=False, eq=False, match_args=False)
class ScanSliceSettings(Settings):
    """What is read, at every target."""

    table: ClassVar[str] = "slice"
    title: ClassVar[str] = "Slice"

    positions: int | Literal["all"] | None = setting(
        None,
        "Last tokens of each prompt that are read at the targets, or `all`.",
        shown="those that open the reply, 3 at most",
        parse=positions_of,
        check=lambda name, value: positions_of(str(value)) and None,
    )
