"""How factors are learned."""

from dataclasses import dataclass
from typing import ClassVar

from dct.declaration import (
    FLOAT32,
    SEEDS,
    Choice,
    Range,
    Settings,
    above_zero,
    choice,
    counted,
    setting,
)
from dct.method import built_in

METHODS = built_in()
"""The methods that come with the package; `dct.method.names` knows those of other packages too."""


def _methods() -> tuple[str, ...]:
    from dct.method import names

    return names()


def method_options_of(text: str) -> dict[str, bool | int | float | str]:
    """`method_options` as text has them: name=value, with commas between, such as eta=0.5 or p=4,q=1."""
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


@dataclass(repr=False, eq=False, match_args=False)
class SeedSettings(Settings):
    """What chance decides."""

    table: ClassVar[str] = "fit"
    title: ClassVar[str] = "Fit"

    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))


@dataclass(repr=False, eq=False, match_args=False)
class CalibrationSettings(SeedSettings):
    """How the scale is found."""

    ratio: float | None = setting(
        None,
        "Non-linearity ratio at which the scale is calibrated.",
        key="lambda",
        shown="0.5, but R within what the streams bear",
        check=above_zero(),
    )
    batch: int | None = setting(None, "Vectors in one pass.", shown="what memory holds", check=counted())


@dataclass(repr=False, eq=False, match_args=False)
class FitSettings(CalibrationSettings):
    """How factors are learned."""

    method: str = setting("exponential", "How factors are learned.", check=Choice(_methods, METHODS))
    factors: int | None = setting(
        None, "Factors to learn.", shown="512, or the model's width", check=counted(), first=True
    )
    iterations: int | None = setting(
        None, "Of an iterative method; steps of a melbo vector.", shown="10; melbo 60", check=counted()
    )
    scale: float | None = setting(None, "Steering scale R.", shown="calibrated; cpe 1", check=above_zero(FLOAT32))
    orthogonalize: str | None = setting(
        None,
        "How the vectors are pushed apart; qr is the post's.",
        shown="soft; quadratic qr",
        check=choice("qr", "soft", "none"),
    )
    start: str = setting("projected", "Where the vectors start.", check=choice("projected", "random"))
    d_proj: int = setting(32, "Random output directions of the projected start.", check=counted())
    beta: float | None = setting(
        None,
        "Share of the new factor in each update; 1 is the post's.",
        shown="1; soft halves it whenever V moves without gain",
        check=above_zero(1.0),
    )
    tolerance: float = setting(0.0, "Stop once V changes by less.", check=Range(0.0, 1.0))
    method_options: dict[str, bool | int | float | str] | None = setting(
        None, "Options that are the method's own, such as p=4,q=1.", shown="the method's", parse=method_options_of
    )
