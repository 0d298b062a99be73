"""What of a run's second derivatives is taken apart, and how far."""

from dataclasses import dataclass
from typing import ClassVar

from dct.declaration import SEEDS, Settings, counted, setting
from dct.settings.use import check_vector


@dataclass(repr=False, eq=False, match_args=False)
class SpectrumSettings(Settings):
    """Which output, and how much of its spectrum."""

    table: ClassVar[str] = "spectrum"
    title: ClassVar[str] = "Spectrum"
    own: ClassVar[bool] = True

    vector: str | None = setting(
        None, "The output is what this vector of the run causes: its u.", short="v", check=check_vector, first=True
    )
    token: str | None = setting(None, "The output is what makes this word likelier, such as Sure.", first=True)
    count: int | None = setting(
        None, "Eigenvectors; without an output: terms.", shown="16; without an output 8", check=counted(1, 4096)
    )
    exact: bool | None = setting(
        None, "All eigenvectors, by as many products as the model is wide.", shown="up to a width of 256"
    )
    inputs: int = setting(32, "Without an output: dimensions of the input subspace.", check=counted(1, 65536))
    directions: int = setting(128, "Random inputs that are compared with the true response.", check=counted(2))
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))
    batch: int | None = setting(None, "Vectors in one pass.", shown="what memory holds", check=counted())
