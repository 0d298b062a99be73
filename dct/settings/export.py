"""How vectors are taken elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dct.declaration import LARGE, Choice, Range, Settings, choice, setting
from dct.exporting import REGISTRY
from dct.settings.output import OutputSettings


def _formats() -> tuple[str, ...]:
    return REGISTRY.names()


@dataclass(repr=False, eq=False, match_args=False)
class ExportSettings(Settings):
    """What is exported, and as what."""

    table: ClassVar[str] = "export"
    title: ClassVar[str] = "Export"
    own: ClassVar[bool] = True

    format: str = setting(
        "safetensors", "What it is written as.", check=Choice(_formats, REGISTRY.built_in()), first=True
    )
    scale: float = setting(
        1.0, "Multiplies R, or the scale that the ranking brings along.", check=Range(-LARGE, LARGE), first=True
    )
    ablate: bool = setting(
        False, "Export what takes the vectors out of the weights, rather than what adds them.", first=True
    )
    save_dtype: str = setting(
        "auto",
        "Of peft and transformers: type of the weights.",
        shown="of peft float32, else the source's",
        check=choice("auto", "float32", "bfloat16", "float16"),
    )
    push_to_hub: str | None = setting(None, "Also push the folder to this repository of the Hugging Face hub.")
    public: bool = setting(False, "A repository that is made for it is public, not private.")


@dataclass(repr=False, eq=False, match_args=False)
class ExportOutputSettings(OutputSettings):
    """Where an export goes."""

    command: ClassVar[str] = "export"

    out: Path | None = setting(None, "Folder of the export.", shown="RUN/export-FORMAT-VECTOR")
    force: bool = setting(False, "Replace an earlier export; use factors on another model than they were fitted on.")
