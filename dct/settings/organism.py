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
    recipe: Path | None = setting(
        None,
        "TOML file that says what it is made of.",
        shown="that of the folder gone on from, else the demo's",
        first=True,
    )
    steps: int | None = setting(
        None, "Training steps.", shown="the recipe's; the demo's is 5000", check=counted(), first=True
    )
    seed: int | None = setting(
        None,
        "Seed of the text, the weights and the noise.",
        shown="the recipe's; the demo's is 0",
        check=counted(0, SEEDS),
    )
    start: Path | None = setting(None, "Folder of an organism to go on from.", shown="from nothing")
    learning_rate: float | None = setting(
        None,
        "AdamW's, until it falls in the last steps.",
        shown="the recipe's; the demo's is 0.0012",
        check=above_zero(10.0),
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
