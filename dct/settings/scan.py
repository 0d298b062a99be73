"""How layers are scanned."""

from dataclasses import dataclass
from typing import ClassVar

from dct.declaration import SEEDS, Settings, above_zero, counted, setting


@dataclass(repr=False, eq=False, match_args=False)
class ScanSettings(Settings):
    """How the layers are measured."""

    table: ClassVar[str] = "scan"
    title: ClassVar[str] = "Scan"
    own: ClassVar[bool] = True

    probes: int = setting(8, "Random output vectors pulled back from each target.", check=counted(), first=True)
    directions: int = setting(6, "Random vectors pushed in at each source.", check=counted(), first=True)
    share: float = setting(
        0.5, "Their size, as a share of the residual norm at the source.", check=above_zero(), first=True
    )
    calibrate: bool = setting(False, "Also calibrate the scale R of the proposed pair.")
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))
    batch: int | None = setting(None, "Vectors in one pass.", shown="what memory holds", check=counted())
