"""Which planted maps are fitted, and how."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from dct.declaration import FLOAT32, LARGE, MANY, SEEDS, Settings, above_zero, choice, counted, setting
from dct.errors import UsageError

KINDS = ("orthogonal", "uniform", "correlated", "heavy", "quadratic", "gated", "noise")
"""The maps, in the order in which they are shown; `dct.bench.planted` says what each is."""


def multiples_of(text: str) -> tuple[float, ...]:
    """Multiples as text has them, with commas between: 0.5,1,4 or 1/128."""
    try:
        found = tuple(dict.fromkeys(float(Fraction(part.strip())) for part in text.split(",")))
    except (ValueError, ZeroDivisionError):
        found = ()
    if not found or not all(0 < one <= LARGE for one in found):
        raise ValueError(f"are positive multiples with commas between, such as 1/4,1,2: got {text!r}")
    return found


def widths_of(text: str) -> tuple[int, ...]:
    """Widths as text has them, with commas between."""
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(8 <= one <= MANY for one in found):
        raise ValueError(f"are widths of 8 or more with commas between, such as 256,1024: got {text!r}")
    return found


def maps_of(text: str) -> tuple[str, ...]:
    """Kinds of maps as text has them, with commas between."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for one in found:
        if one not in KINDS:
            raise UsageError(f"unknown map {one!r} in `maps`: choose from {', '.join(KINDS)}", argument="maps")
    return found


@dataclass(repr=False, eq=False, match_args=False)
class PlantedSettings(Settings):
    """Which maps, how large, and how they are fitted; what is not here is as in `dct.fit`."""

    table: ClassVar[str] = "planted"
    title: ClassVar[str] = "Maps and fits"
    own: ClassVar[bool] = True

    widths: tuple[int, ...] = setting((256,), "Widths of the maps.", parse=widths_of, first=True)
    true: tuple[float, ...] = setting(
        (0.25, 0.5, 1.0, 2.0, 4.0), "True factors, as multiples of the width.", parse=multiples_of, first=True
    )
    learned: tuple[float, ...] = setting(
        (0.5, 1.0, 2.0), "Learned factors, as multiples of the true ones.", parse=multiples_of, first=True
    )
    maps: tuple[str, ...] = setting(KINDS, "Maps to fit.", parse=maps_of, first=True)
    networks: int = setting(1, "Networks of each map and size to average over.", check=counted(), first=True)
    seconds: float | None = setting(
        None, "Begin no further fit after this time; the same command goes on later.", check=above_zero()
    )
    iterations: int = setting(20, "Of every fit.", check=counted())
    scale: float | None = setting(None, "Steering scale R.", shown="calibrated", check=above_zero(FLOAT32))
    start: str = setting("projected", "Where the vectors start.", check=choice("projected", "random"))
    orthogonalize: str = setting("soft", "How the vectors are pushed apart.", check=choice("qr", "soft", "none"))
    rounds: int = setting(
        1, "Fit in so many parts, each blind to the strongest outputs of those before.", check=counted()
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1.")
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))
