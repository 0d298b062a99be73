"""Weights on disk, read part by part: some blocks of a model, what stands around them, or all of it.

Knows how transformers reads a checkpoint; knows nothing of names, of choosing devices or of what the parts are for. A
part is the model's own class, all of its depth, with every other parameter left out before the weights are read:
nothing else is read, allocated or initialised, and whatever transformers does while it reads (renaming, fusing experts,
tying) is done.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dct import compat
from dct.errors import DctError
from dct.gguf import Header, read_header, require_package
from dct.headers import tensors
from dct.hub import snapshot
from dct.parts import Part
from dct.quantised import quantised_parameters
from dct.quiet import hushed
from dct.soundness import check_config, check_info, check_kind, check_tensors
from dct.sources import Source

STRIDE = 500_000_000
"""Bytes of blocks read at a time when blocks are run in turn: small models in one go, large ones block by block."""


@dataclass(frozen=True)
class Checkpoint:
    """A language model's weights, not yet read.

    Attributes:
        where: folder, Hugging Face id or GGUF file.
        config: the model's configuration.
        skeleton: the model without any weights (on torch's `meta` device).
        layers_path: dotted name of its block list.
        options: of `from_pretrained` (revision, trust_remote_code, local_files_only, gguf_file).
        kind: what `where` is: a `folder` of transformers' own files, an id on the `hub`, or a `gguf` file.
        folder: local folder that holds the source's files: the folder itself, or the hub's snapshot in the cache;
            none for a GGUF file, and where the hub's files are not in the cache.
        header: what a GGUF file says of itself.
        auto: transformers' automatic class that builds the model.
    """

    where: str
    config: PreTrainedConfig
    skeleton: PreTrainedModel
    layers_path: str
    options: dict[str, Any] = field(default_factory=dict)
    kind: Literal["folder", "hub", "gguf"] = "folder"
    folder: Path | None = None
    header: Header | None = None
    auto: Any = AutoModelForCausalLM

    @classmethod
    def open(cls, source: Source | str, find_layers: Callable[[PreTrainedModel], str], **options: Any) -> "Checkpoint":
        """Reads the configuration alone.

        Args:
            source: where the model is; a folder or Hugging Face id by its name.
            find_layers: tells the dotted name of a model's block list.
            options: revision, trust_remote_code, local_files_only.

        Raises:
            DctError: a configuration that names more than can be there, contradicts itself or is no language model's;
                a damaged GGUF file.
            Whatever transformers raises for a configuration that it cannot find or read.
        """
        from transformers import AutoConfig, PreTrainedConfig

        if isinstance(source, str):
            source = Source(source, source, "folder" if Path(source).is_dir() else "hub")
        place, which = source.reading
        options = {**options, **which}
        header, local = None, Path(place) if source.kind == "folder" else None
        with hushed():
            if source.file is not None:
                require_package(source.file)
                header = read_header(source.file)
                blocks = header.values.get(f"{header.architecture}.block_count", 0)
                check_config({"num_hidden_layers": blocks}, source.where, len(header.shapes))
            else:
                raw, _ = PreTrainedConfig.get_config_dict(place, **options)
                held = len(tensors(local, raw.get("transformers_weights"))) if local is not None else 0
                check_config(raw, source.where, held or None)
            config = AutoConfig.from_pretrained(place, **options)
            check_kind(config, source.where)
            auto, skeleton = _skeleton(config, source.where, bool(options.get("trust_remote_code")))
        folder = local or (snapshot(source.where, options.get("revision")) if source.kind == "hub" else None)
        return cls(source.where, config, skeleton, find_layers(skeleton), options, source.kind, folder, header, auto)

    @property
    def place(self) -> str:
        """What transformers is given to read from: a folder or an id.

        Where the hub is not to be asked that is the folder in its cache: given the id, transformers asks all the same.
        """
        if self.kind == "gguf":
            return str(Path(self.where).parent)
        cached = self.kind == "hub" and self.options.get("local_files_only") and self.folder is not None
        return str(self.folder) if cached else self.where

    @property
    def origin(self) -> dict[str, Any]:
        """What a person asks of the source; JSON types only."""
        return {
            "source": f"gguf ({self.header.quantization})" if self.header is not None else self.kind,
            "towers": "text alone" if self.text_alone else "text and others",
            "quantised": self.quantised,
        }

    @property
    def text_alone(self) -> bool:
        """Whether the model reads text and nothing else: no vision or audio tower stands beside it."""
        return self.skeleton.config.get_text_config() is self.skeleton.config

    @property
    def quantised(self) -> bool:
        """Whether its weights are kept in fewer bits in memory too; what comes from a GGUF file is unpacked."""
        return self.kind != "gguf" and getattr(self.config, "quantization_config", None) is not None

    def verify(self) -> list[str] | None:
        """Compares the files' headers with the configuration, without reading weights.

        Returns:
            Names of tensors that the model does not take; None where there are no headers to compare: files that are
            not here yet, and weights in fewer bits, which only their own library can place.

        Raises:
            DctError: something is missing, left out or of other sizes.
        """
        if self.folder is None or self.quantised or self.kind == "gguf":
            return None
        found = tensors(self.folder, getattr(self.config, "transformers_weights", None))
        with hushed():
            return check_tensors(found, self.skeleton, self.layers_path, self.where) if found else None

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return len(self.skeleton.get_submodule(self.layers_path))  # type: ignore[arg-type]

    @property
    def divisible(self) -> bool:
        """Whether parts can be read alone: quantised weights come with tables that belong to the whole, and a GGUF
        file is unpacked as a whole.
        """
        return not self.quantised and self.kind != "gguf"

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(p.numel() for p in self.skeleton.parameters())

    def count(self, blocks: range, *, ends: bool = False) -> int:
        """Parameters of some blocks, with `ends` also those outside the blocks (see `Part`)."""
        keep = self._part(blocks, ends).chooser(self.skeleton)
        return sum(p.numel() for name, p in self.skeleton.named_parameters() if keep(name))

    def whole(self, dtype: torch.dtype | str, **placement: Any) -> PreTrainedModel:
        """The whole model; `placement` is passed on (device_map, max_memory, offload_folder).

        Raises:
            DctError: tensors are missing, of other sizes, or not unpacked.
        """
        more = {"config": copy.deepcopy(self.skeleton.config), **compat.unpacked()} if self.kind == "gguf" else {}
        model: PreTrainedModel
        with hushed():
            model, info = self.auto.from_pretrained(
                self.place,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, in words that name both
                **placement,
                **self.options,
                **more,
            )
        check_info(info, self.where, lambda name: True)
        if self.kind == "gguf":
            compat.forget_quantization(model)
            packed = quantised_parameters(model)
            if packed:
                name, why = next(iter(packed.items()))
                raise DctError(f"{self.where} was not unpacked: {name} is {why}")
        return model

    def part(self, blocks: range, dtype: torch.dtype, device: torch.device, *, ends: bool = False) -> PreTrainedModel:
        """The model with the weights of some blocks alone, frozen, on a device.

        Args:
            blocks: whose weights are read.
            ends: read what text passes through outside the blocks too (see `Part`).
        """
        kind, chosen = type(self.skeleton), self._part(blocks, ends)

        def left_out(self_: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
            """The class's own construction, and then everything else left out."""
            kind.__init__(self_, config, *args, **kwargs)
            chosen.strip(self_)

        partial: Any = type(kind.__name__, (kind,), {"__init__": left_out, "__module__": kind.__module__})
        where_to = {"": device} if device.type == "cuda" else None
        with hushed():
            read = partial.from_pretrained(
                self.where,
                config=self.skeleton.config,
                dtype=dtype,
                device_map=where_to,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **self.options,
            )
        model: PreTrainedModel = read[0]
        check_info(read[1], self.where, chosen.chooser(self.skeleton))
        for name, buffer in model.named_buffers():
            if name in self._unsaved_buffers:
                buffer.copy_(self._unsaved_buffers[name])
        return model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]

    def _part(self, blocks: range, ends: bool) -> Part:
        return Part(self.layers_path, blocks, ends, self.text_alone)

    @cached_property
    def _unsaved_buffers(self) -> dict[str, Tensor]:
        """Buffers that are in no file, with the values that the model's own construction gives them: with parameters
        left out, the modules that compute them may not come to it."""
        with hushed(), init_empty_weights(include_buffers=False):
            whole = type(self.skeleton)(self.skeleton.config)
        saved = whole.state_dict().keys()
        return {name: buffer for name, buffer in whole.named_buffers() if name not in saved and not buffer.is_meta}

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


def _skeleton(config: PreTrainedConfig, where: str, trusted: bool) -> tuple[Any, PreTrainedModel]:
    """The model on torch's `meta` device, and the automatic class of transformers that builds it.

    Where there is one class for all inputs and one for text alone, the first is taken if it runs on text.

    Raises:
        DctError: the configuration is no language model's.
    """
    own = trusted and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not own and not compat.known_to_transformers(config):
        raise DctError(
            f"cannot load the model in {where}: a {config.model_type} model is no decoder language model that "
            "transformers knows"
        )
    candidates = [AutoModelForCausalLM] if own else compat.auto_classes(config)
    for number, auto in enumerate(candidates, start=1):
        with torch.device("meta"):
            skeleton = auto.from_config(config, trust_remote_code=trusted)
        if number == len(candidates) or _reads_text(skeleton):
            break
    return auto, skeleton


def _reads_text(skeleton: PreTrainedModel) -> bool:
    """Whether a model can be run on token ids alone, as far as that shows without numbers."""
    try:
        with torch.no_grad():
            skeleton(torch.zeros(1, 2, dtype=torch.long, device="meta"), use_cache=False)
    except AttributeError:  # it looks for what only other inputs bring
        return False
    except Exception:  # numbers decide how such a model runs
        return True
    return True
