"""Weights on disk, read part by part: some blocks of a model, what stands around them, or all of it.

Knows how transformers reads a checkpoint; knows nothing of names, of choosing devices or of what the parts are for. A
part is the model's own class, all of its depth, with every other parameter left out before the weights are read:
nothing else is read, allocated or initialised, and whatever transformers does while it reads (renaming, fusing experts,
tying) is done.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from dct import compat

STRIDE = 500_000_000
"""Bytes of blocks read at a time when blocks are run in turn: small models in one go, large ones block by block."""


@dataclass(frozen=True)
class Checkpoint:
    """A causal language model's weights, not yet read.

    Attributes:
        where: folder or Hugging Face id.
        config: the model's configuration.
        skeleton: the model without any weights (on torch's `meta` device).
        layers_path: dotted name of its block list.
        options: of `from_pretrained` (revision, trust_remote_code, local_files_only).
        kind: what `where` is: a `folder` of transformers' own files, an id on the `hub`, or a `gguf` file.
        folder: local folder that holds the source's files: the folder itself, or the hub's snapshot in the cache;
            none for a GGUF file, and where the hub's files are not in the cache.
    """

    where: str
    config: PreTrainedConfig
    skeleton: PreTrainedModel
    layers_path: str
    options: dict[str, Any] = field(default_factory=dict)
    kind: Literal["folder", "hub", "gguf"] = "folder"
    folder: Path | None = None

    @classmethod
    def open(cls, where: str, find_layers: Callable[[PreTrainedModel], str], **options: Any) -> "Checkpoint":
        """Reads the configuration alone.

        Args:
            where: folder or Hugging Face id.
            find_layers: tells the dotted name of a model's block list.
            options: revision, trust_remote_code, local_files_only.

        Raises:
            Whatever transformers raises for a configuration that it cannot find or read.
        """
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(where, **options)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=options.get("trust_remote_code"))
        return cls(where, config, skeleton, find_layers(skeleton), options)

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return len(self.skeleton.get_submodule(self.layers_path))  # type: ignore[arg-type]

    @property
    def divisible(self) -> bool:
        """Whether parts can be read alone: quantised weights come with tables that belong to the whole."""
        return getattr(self.config, "quantization_config", None) is None

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(p.numel() for p in self.skeleton.parameters())

    def count(self, blocks: range, *, ends: bool = False) -> int:
        """Parameters of some blocks, with `ends` also those that stand before the blocks and after them."""
        keep = self._chooser(self.skeleton, blocks, ends)
        return sum(p.numel() for name, p in self.skeleton.named_parameters() if keep(name))

    def whole(self, dtype: torch.dtype | str, **placement: Any) -> PreTrainedModel:
        """The whole model; `placement` is passed on (device_map, max_memory, offload_folder)."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.where, dtype=dtype, **placement, **self.options
        )
        return model

    def part(self, blocks: range, dtype: torch.dtype, device: torch.device, *, ends: bool = False) -> PreTrainedModel:
        """The model with the weights of some blocks alone, frozen, on a device.

        Args:
            blocks: whose weights are read.
            ends: read what stands before the blocks and the final norm too; never an output head of its own.
        """
        kind = type(self.skeleton)

        def left_out(self_: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            kind.__init__(self_, config, *args, **kwargs)
            self._strip(self_, blocks, ends)

        partial = type(kind.__name__, (kind,), {"__init__": left_out, "__module__": kind.__module__})
        where_to = {"": device} if device.type == "cuda" else None
        with _hushed():
            model: PreTrainedModel = partial.from_pretrained(  # type: ignore[attr-defined]
                self.where, config=self.skeleton.config, dtype=dtype, device_map=where_to, **self.options
            )
        return model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]

    def in_turn(self, blocks: range, dtype: torch.dtype, device: torch.device) -> Iterator[nn.Module]:
        """The blocks, one after the other, each in memory only until the next few are asked for."""
        size = torch.empty((), dtype=dtype).element_size()
        start = blocks.start
        while start < blocks.stop:
            stop = start + 1
            while stop < blocks.stop and size * self.count(range(start, stop + 1)) <= STRIDE:
                stop += 1
            part = self.part(range(start, stop), dtype, device)
            yield from part.get_submodule(self.layers_path)[start:stop]  # type: ignore[index]
            del part
            start = stop

    def _strip(self, model: PreTrainedModel, blocks: range, ends: bool) -> None:
        """Leaves parameters out, as a layer without bias leaves out its bias."""
        keep = self._chooser(model, blocks, ends)
        for prefix, module in model.named_modules():
            own = {name: p for name, p in module._parameters.items() if p is not None}
            gone = [name for name in own if not keep(f"{prefix}.{name}" if prefix else name)]
            for name in gone:
                module._parameters[name] = None
            number = self._block(prefix)
            if gone or (number is not None and number not in blocks):
                compat.needs_no_first_values(module)  # what is not there has none
        model.all_tied_weights_keys = {a: b for a, b in compat.tied_weights(model).items() if keep(a) and keep(b)}

    def _chooser(self, model: PreTrainedModel, blocks: range, ends: bool) -> Callable[[str], bool]:
        """Whether a parameter, by its name, belongs to the part."""
        tied = compat.tied_weights(model)
        head = model.get_output_embeddings()
        headed = {f"{name}." for name, module in model.named_modules() if module is head and head is not None}

        def keep(name: str) -> bool:
            number = self._block(name)
            if number is not None:
                return number in blocks
            if name in tied or name in tied.values():
                return ends
            return ends and not name.startswith(tuple(headed))

        return keep

    def _block(self, name: str) -> int | None:
        """The number of the block that a module or parameter belongs to."""
        if not name.startswith(f"{self.layers_path}."):
            return None
        return int(name[len(self.layers_path) + 1 :].split(".", 1)[0])


@contextmanager
def _hushed() -> Iterator[None]:
    """Without transformers' list of the weights that a part leaves out, and its bar for each few blocks."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
