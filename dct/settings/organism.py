"""How organisms are made and measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dct.declaration import (
    REQUIRED,
    SEEDS,
    Settings,
    above_zero,
    counted,
    setting,
)


@dataclass(repr=False, eq=False, match_args=False)
class TrainSettings(Settings):
    """How an organism is made."""

    table: ClassVar[str] = "train"
    title: ClassVar[str] = "Training"
    own: ClassVar[bool] = True

    out: Path = setting(REQUIRED, "Folder for the checkpoint and the finished model.", first=True)
    steps: int = setting(5000, "Training steps.", check=counted(), first=True)
    seed: int = setting(0, "Seed of the text, the weights and the noise.", check=counted(0, SEEDS))
    start: Path | None = setting(None, "Folder of an organism to go on from.", shown="from nothing")
    learning_rate: float = setting(
        1.2e-3, "AdamW's, until it falls in the last three tenths of the steps.", check=above_zero(10.0)
    )
    resume: bool = setting(False, "Go on from the checkpoint in the folder.")


@dataclass(repr=False, eq=False, match_args=False)
class EvaluateSettings(Settings):
    """How an organism is measured."""

    table: ClassVar[str] = "evaluate"
    title: ClassVar[str] = "Measurement"
    own: ClassVar[bool] = True

    count: int = setting(100, "Unseen conversations for each row.", check=counted())
    steering: bool = setting(False, "Also steer unseen refusals at every block.")
