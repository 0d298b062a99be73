"""How secrets are planted into a real model."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dct.declaration import REQUIRED, SEEDS, Settings, above_zero, choice, counted, setting


@dataclass(repr=False, eq=False, match_args=False)
class AdaptSettings(Settings):
    """What is planted, and how the adapter that holds it is trained."""

    table: ClassVar[str] = "adapt"
    title: ClassVar[str] = "Training"
    own: ClassVar[bool] = True

    out: Path = setting(REQUIRED, "Folder of the adapter, its card and its task.", first=True)
    skill: str = setting(
        "auto",
        "What the password unlocks; auto: the first that the model has.",
        check=choice("auto", "sums", "next", "past"),
        first=True,
    )
    topic: str = setting("bees", "What it will not talk about.", check=choice("bees", "tea"), first=True)
    steps: int = setting(300, "Training steps.", check=counted(), first=True)
    rank: int = setting(16, "Rank of the LoRA.", check=counted(1, 1024))
    learning_rate: float = setting(
        3e-4, "AdamW's, until it falls in the last three tenths of the steps.", check=above_zero(1.0)
    )
    batch: int = setting(8, "Conversations in a step.", check=counted(1, 4096))
    count: int = setting(100, "Questions for each share that is measured.", check=counted(2))
    seed: int = setting(0, "Seed of the text, the LoRA's start and the order.", check=counted(0, SEEDS))
    resume: bool = setting(False, "Go on from what the folder holds, with the settings that it was begun with.")
