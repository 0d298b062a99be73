"""The grid of a sweep: several values where a fit takes one, and who does the work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from dct.aliases import DEMO
from dct.declaration import Choice, Range, Settings, choice, counted, setting, several
from dct.settings.fit import FitSettings
from dct.settings.model import FitPromptSettings, ModelSettings, SliceSettings
from dct.settings.use import SelectSettings

RECIPES = Path(__file__).parent.parent / "sweep" / "recipes"
"""Grids that come with the package: files as `--config` takes them."""

MOST_VALUES = 10_000
"""Values of an axis."""

T = TypeVar("T")


# --- several values as text -------------------------------------------------------------------------------------------


def _listed(text: str, one: Callable[[str], list[T]], what: str) -> tuple[T, ...]:
    """The values of a text, each once, in order."""
    try:
        found = tuple(dict.fromkeys(value for part in text.split(",") for value in one(part.strip())))
    except ValueError:
        found = ()
    if not found or len(found) > MOST_VALUES:
        raise ValueError(f"takes {what}: got {text!r}")
    return found


def _span(text: str) -> list[int]:
    """A whole number, or all from the first to the last."""
    first, dash, last = text.partition("-")
    if not dash:
        return [int(first)]
    low, high = int(first), int(last)
    if not low <= high < low + MOST_VALUES:
        raise ValueError
    return list(range(low, high + 1))


def wholes_of(text: str) -> tuple[int, ...]:
    """Whole numbers as text has them: 0,1,2 or 0-4."""
    return _listed(text, _span, "whole numbers with commas between, such as 0,1,2 or 0-4")


def sources_of(text: str) -> tuple[int | Literal["all"], ...]:
    """Source layers as text has them."""

    def one(part: str) -> list[int | Literal["all"]]:
        """`all`, or numbers."""
        return ["all"] if part == "all" else [*_span(part)]

    return _listed(text, one, "layers with commas between, such as 2,4,6 or 2-8, or `all`")


def targets_of(text: str) -> tuple[int | str, ...]:
    """Target layers as text has them: +10 is ten blocks above the source."""

    def one(part: str) -> list[int | str]:
        """+10, or numbers."""
        return [f"+{int(part[1:])}"] if part[:1] == "+" and part[1:].isdecimal() else [*_span(part)]

    return _listed(text, one, "layers with commas between, such as 12,16 or 12-16, or above the source, such as +6,+10")


def numbers_of(text: str) -> tuple[float, ...]:
    """Numbers as text has them."""
    return _listed(text, lambda part: [float(part)], "numbers with commas between, such as 0.25,0.5,1")


def names_of(text: str) -> tuple[str, ...]:
    """Names as text has them."""

    def one(part: str) -> list[str]:
        """No empty name."""
        if not part:
            raise ValueError
        return [part]

    return _listed(text, one, "names with commas between")


def _check_layers(name: str, value: tuple[int | str, ...]) -> None:
    counted(0)(name, [layer for layer in value if isinstance(layer, int)])


# --- the grid ---------------------------------------------------------------------------------------------------------


@dataclass(repr=False, eq=False, match_args=False)
class SweepModelSettings(ModelSettings):
    """Which models."""

    model: list[str] = setting(  # type: ignore[assignment]
        [DEMO],
        "Alias, folder, GGUF file, adapter or Hugging Face id; repeatable.",
        short="m",
        shown=DEMO,
        first=True,
    )


@dataclass(repr=False, eq=False, match_args=False)
class SweepSliceSettings(SliceSettings):
    """Between which layers."""

    source: tuple[int | Literal["all"], ...] | None = several(  # type: ignore[assignment]
        SliceSettings,
        "source",
        sources_of,
        help="Source layers, such as 2,4,6 or 2-8 or all.",
        check=_check_layers,
    )
    target: tuple[int | str, ...] | None = several(  # type: ignore[assignment]
        SliceSettings,
        "target",
        targets_of,
        help="Target layers, such as 12,16; +10 is ten blocks above each source. Pairs out of order are left out.",
        check=_check_layers,
    )


@dataclass(repr=False, eq=False, match_args=False)
class SweepPromptSettings(FitPromptSettings):
    """How many prompts, and which."""

    n: tuple[int, ...] = several(  # type: ignore[assignment]
        FitPromptSettings, "n", wholes_of, help="Fit on the first n prompts; several such as 1,4,8.", first=True
    )
    harmless: str | None = setting(None, "Prompt set on which damage is measured.", shown="the harmless set")


@dataclass(repr=False, eq=False, match_args=False)
class SweepFitSettings(FitSettings):
    """How factors are learned, in several ways."""

    method: tuple[str, ...] = several(  # type: ignore[assignment]
        FitSettings, "method", names_of, help="How factors are learned; several with commas between.", first=True
    )
    ratio: tuple[float, ...] | None = several(  # type: ignore[assignment]
        FitSettings,
        "ratio",
        numbers_of,
        help="Non-linearity ratios at which the scale is calibrated, such as 0.25,0.5,1.",
        first=True,
    )
    scale: tuple[float, ...] | None = several(  # type: ignore[assignment]
        FitSettings, "scale", numbers_of, help="Steering scales R, instead of lambda.", first=True
    )
    seed: tuple[int, ...] = several(  # type: ignore[assignment]
        FitSettings, "seed", wholes_of, help="Seeds, such as 0,1,2 or 0-4: how far do fits agree?", first=True
    )


# --- how each fit is ranked -------------------------------------------------------------------------------------------


@dataclass(repr=False, eq=False, match_args=False)
class SweepExperimentSettings(SelectSettings):
    """How vectors are chosen: replies have one length on all devices."""

    max_new_tokens: int | None = setting(64, "Length of completions, the same on all devices.", check=counted())


# --- the work ---------------------------------------------------------------------------------------------------------


def recipes() -> tuple[str, ...]:
    """The grids that come with the package."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.toml")))


def recipe_file(name: str) -> Path:
    """The file of a packaged grid.

    Raises:
        UsageError: there is none of that name.
    """
    Choice(recipes)("recipe", name)
    return RECIPES / f"{name}.toml"


@dataclass(repr=False, eq=False, match_args=False)
class SweepSettings(Settings):
    """What is done with each fit, and by whom; no part of a run's record."""

    table: ClassVar[str] = "sweep"
    title: ClassVar[str] = "Sweep"
    own: ClassVar[bool] = True

    recipe: str | None = setting(
        None,
        "A grid that comes with the package; any other option replaces its part.",
        check=Choice(recipes, recipes()),
        file=recipe_file,
    )
    choose_by: int | None = setting(
        None,
        "Prompts, beyond those of the fits, that vectors are chosen by.",
        shown="32; 16 with --screen-only",
        check=counted(),
    )
    fit_only: bool = setting(False, "Fit, and leave the ranking out.", first=True)
    engine: str = setting(
        "serial", "serial: one fit after the other; ray: side by side.", check=choice("serial", "ray"), first=True
    )
    address: str | None = setting(
        None, "Of ray: a running cluster, such as auto or ray://host:10001.", shown="one of its own on this machine"
    )
    cpus: int = setting(1, "Of ray: CPUs, and threads, for each fit.", check=counted(1, 1024))
    gpus: float | None = setting(
        None, "Of ray: GPUs for each fit; 0.5 for two on one.", shown="1 where there are any", check=Range(0.0, 1024.0)
    )
    retries: int = setting(3, "Of ray: how often a fit is begun again whose worker died.", check=counted(0, 1000))
