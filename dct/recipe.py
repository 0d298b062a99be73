"""Everything that decides a fit, as the user gave it: four groups of settings, and how they are written down.

A run folder keeps its recipe as `config.toml`, from which the fit can be repeated; the state of an unfinished
one holds it too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dct.declaration import Settings
from dct.settings import FitPromptSettings, FitSettings, FitSliceSettings, ModelSettings
from dct.version import __version__

CONFIG = "config.toml"


@dataclass
class Recipe:
    """What is fitted, where, on which prompts, and how."""

    model: ModelSettings = field(default_factory=ModelSettings)
    slice: FitSliceSettings = field(default_factory=FitSliceSettings)
    prompts: FitPromptSettings = field(default_factory=FitPromptSettings)
    fit: FitSettings = field(default_factory=FitSettings)

    @property
    def groups(self) -> tuple[Settings, ...]:
        """In the order in which they are written down."""
        return self.model, self.slice, self.prompts, self.fit

    def loading(self) -> dict[str, Any]:
        """How the model is loaded and reads its prompts, as factors and states record it."""
        m = self.model
        return {
            "adapter": m.adapter,
            "dtype": m.dtype,
            "device": m.device,
            "layers": m.layers,
            "revision": m.revision,
            "trust_remote_code": m.trust_remote_code,
            "memory": m.memory,
            "reply_prefix": self.prompts.reply_prefix,
            "escape_control": self.prompts.escape_control,
        }

    @classmethod
    def of_state(cls, config: Mapping[str, Any]) -> "Recipe":
        """The recipe of an unfinished fit, from the config of its state: every option by its key, wherever it stands.

        Raises:
            UsageError: a value that no fit takes.
        """
        values = {**config, **config["loading"], **config["options"]}
        values |= {"prompt": config["prompts"], "n": len(config["prompts"]), "prompts": None}
        values |= {"minus": (config.get("minus") or {}).get("model")}
        if config.get("perturbation"):  # the source is the band's first block
            first, inputs = config["perturbation"]["first"], config["perturbation"]["inputs"]
            values |= {"source": None, "band": f"{first}-{first + len(inputs) - 1}"}
        return cls(
            ModelSettings.picked(values),
            FitSliceSettings.picked({"compile": "off", **values}),
            FitPromptSettings.picked(values),
            FitSettings.picked(values),
        )

    def save(self, folder: Path) -> None:
        """Writes `config.toml`.

        Raises:
            DctError: it cannot be written.
        """
        import tomli_w

        from dct.writing import write_whole

        head = f"# A fit of dct {__version__}: `dct fit` repeats it with this file as its config.\n\n"
        tables = {group.table: group.record() for group in self.groups}
        write_whole(folder / CONFIG, (head + tomli_w.dumps(tables)).encode())
