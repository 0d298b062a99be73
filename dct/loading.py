"""From a name to a language model in memory: where its files are, which of them are read, in which type and where to.

Knows transformers' ways of loading and how large things are; knows nothing of prompts, slices or factors.
"""

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel

from dct import adapters, compat
from dct.checkpoint import Checkpoint
from dct.errors import DctError, UsageError
from dct.model import LanguageModel, check_layers, tensor_fingerprint
from dct.opening import first_line, loading_error, opened
from dct.placement import DTYPES, Placement, device_of
from dct.resident import runs_in_part
from dct.settings import ModelSettings
from dct.soundness import check_numbers
from dct.sources import find, resolve

__all__ = ["load", "resolve"]

Between = tuple[int, int] | Callable[[int], tuple[int, int]]
"""Source and target layer, or what tells them from the depth."""

DEFAULTS = ModelSettings()


def load(
    name: str = DEFAULTS.model,
    *,
    adapter: str | Path | None = DEFAULTS.adapter,
    between: Between | None = None,
    dtype: str = DEFAULTS.dtype,
    device: str = DEFAULTS.device,
    layers: str = DEFAULTS.layers,
    revision: str | None = DEFAULTS.revision,
    trust_remote_code: bool = DEFAULTS.trust_remote_code,
    memory: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> LanguageModel:
    """Loads a causal language model and its tokenizer.

    Args:
        name: an alias (`demo`, `qwen`), a local folder, a GGUF file, the folder of a PEFT adapter or a Hugging Face id.
        adapter: folder or Hugging Face id of a PEFT adapter, which is merged into the weights in memory.
        between: source and target, or a function of the depth that tells them: only the blocks of that slice are
            loaded, which is all that a `Slice` between these layers keeps in memory; what lies below them is read,
            block after block, when prompts are run, and what lies above is never read. Left out, the whole model; one
            that does not fit is run with the rest of its weights in host memory or on disk. A GGUF file, a quantised
            model and one with an adapter are loaded whole in any case.
        dtype: `auto`, `float32`, `bfloat16` or `float16`. `auto` is bfloat16 on a GPU that multiplies it; on a CPU
            it is float32, except for models above a billion parameters where the CPU has AMX or AVX-512 BF16, and for
            weights that fit into memory in bfloat16 alone.
        device: `auto` (first GPU, then Apple's, then the CPU), any torch device, or `map`: the whole model spread over
            all devices by accelerate.
        layers: dotted name of the block list, where it cannot be found.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run model code that comes with the weights.
        memory: bytes to stay within on the device; left out, what is free.
        tell: called with what the user should know: how the name was understood, what is unusual about the weights.

    Raises:
        DctError: the model cannot be found, reached or read; its files and its configuration do not fit together.
        UsageError: an unknown dtype or device; layers out of order.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"unknown `dtype` {dtype!r}: choose auto, {', '.join(DTYPES)}", argument="dtype")
    say = tell or (lambda remark: None)
    place = device_of(device)
    with _unpacking(name):
        checkpoint, tokenizer, merging = opened(
            name, adapter, layers=layers, revision=revision, trust_remote_code=trust_remote_code, tell=say
        )
        unread = checkpoint.verify()
        order = _Order(name, checkpoint, tokenizer, merging, dtype, place, memory, device == "map", say)
        brought = order.brought(order.blocks(between))
    if unread is None:
        unread = checkpoint.verify()  # the hub's files are here by now
    return order.filled(brought, unread or [])


@dataclass(frozen=True)
class Identity:
    """What is known of a model before its weights are read.

    Attributes:
        fingerprint: as `LanguageModel` has it.
        depth, width: blocks, and numbers in the residual stream.
    """

    fingerprint: str
    depth: int
    width: int


def identify(
    name: str,
    *,
    adapter: str | None = DEFAULTS.adapter,
    layers: str = DEFAULTS.layers,
    revision: str | None = DEFAULTS.revision,
    trust_remote_code: bool = DEFAULTS.trust_remote_code,
) -> Identity:
    """Which model a name means, from its files alone; one that no file or commit identifies is loaded for it.

    Raises:
        DctError: as in `load`.
    """
    told: dict[str, Any] = {"layers": layers, "revision": revision, "trust_remote_code": trust_remote_code}
    checkpoint, _, merging = opened(name, adapter, **told)
    found = _identity(checkpoint)
    if not found:
        lm = load(name, adapter=adapter, **told)
        return Identity(lm.fingerprint, lm.depth, lm.width)
    if merging is not None:
        found = _of_adapted(found, merging)
    return Identity(found, checkpoint.depth, checkpoint.config.get_text_config().hidden_size)


def _of_adapted(fingerprint: str, merging: Path) -> str:
    return f"{fingerprint}+adapter:{adapters.fingerprint(merging)}"


Offload: TypeAlias = "tempfile.TemporaryDirectory[str] | None"
"""Where weights that fit into no memory lie on disk, while a model is in use."""


@dataclass(frozen=True)
class _Brought:
    """Weights that were read.

    Attributes:
        model: with these weights.
        offload: of those that are on disk.
        blocks: the blocks that are there; None for the whole model.
        behind: what blocks put out behind the stream, where that was found on the way.
    """

    model: PreTrainedModel
    offload: Offload
    blocks: range | None = None
    behind: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class _Order:
    """What `load` was asked for, with the checkpoint that was found for it."""

    name: str
    checkpoint: Checkpoint
    tokenizer: Any
    merging: Path | None
    dtype: str
    place: torch.device
    memory: int | None
    spread: bool
    say: Callable[[str], None]

    def blocks(self, between: Between | None) -> range | None:
        """The blocks that are enough; None where the whole model is wanted or must be loaded.

        Raises:
            UsageError, DctError: layers out of order or range.
        """
        if between is None:
            return None
        depth = self.checkpoint.depth
        source, target = between(depth) if callable(between) else between
        check_layers(source, target, depth)
        alone = not self.spread and self.checkpoint.divisible and self.merging is None and _identity(self.checkpoint)
        return range(source, target) if alone else None

    def brought(self, blocks: range | None) -> _Brought:
        """The weights of some blocks, or of all of the model where these cannot be run without the others."""
        placing = self._placing(blocks)
        if self.merging is not None and (placing.spills or self.spread):
            raise DctError(f'{self.name} does not fit into memory, where its adapter is merged: try `dtype="bfloat16"`')
        for remark in placing.remarks:
            self.say(remark)
        model, offload = self._read(blocks, placing)
        if blocks is None:
            return _Brought(model, offload)
        layers = self.checkpoint.layers_path
        part = LanguageModel(model, self.tokenizer, self.name, layers, "part", self.checkpoint, blocks)
        alone, behind = runs_in_part(part), part.behind
        if alone:
            return _Brought(model, offload, blocks, behind)
        self.say(f"{self.name} is loaded whole: what its blocks are handed comes from other blocks")
        del model, part
        model, offload = self._read(None, self._placing(None))
        return _Brought(model, offload, None, behind)

    def filled(self, brought: _Brought, unread: list[str]) -> LanguageModel:
        """The language model, with its adapter merged, once its weights have been looked through."""
        model, checkpoint, merging = brought.model, self.checkpoint, self.merging
        for remark in _contents(checkpoint, unread, check_numbers(model, checkpoint.layers_path, self.name)):
            self.say(remark)
        print_ = _identity(checkpoint) or tensor_fingerprint(model)
        if merging is not None:
            model, words = adapters.merge(model, merging, self.name)
            self.say(f"adapter {merging} merged into the weights: {words}")
            print_ = _of_adapted(print_, merging)
        lm = LanguageModel(
            model,
            self.tokenizer,
            self.name,
            checkpoint.layers_path,
            print_,
            checkpoint=checkpoint,
            resident=brought.blocks,
            memory=self.memory,
            offload=brought.offload,
            adapter=str(merging) if merging is not None else None,
        )
        lm.behind = brought.behind
        return lm

    def _placing(self, blocks: range | None) -> Placement:
        return Placement.of(self.checkpoint, blocks, self.dtype, self.place, self.memory)

    def _read(self, blocks: range | None, placing: Placement) -> tuple[PreTrainedModel, Offload]:
        """The weights, where they are to be."""
        checkpoint, place = self.checkpoint, self.place
        offload = None
        try:
            if blocks is not None:
                model = checkpoint.part(blocks, placing.dtype, place)
            elif self.spread or placing.spills:
                offload = tempfile.TemporaryDirectory(prefix="dct-")
                limits = None if self.spread else placing.limits(place)
                spread = {"device_map": "auto", "max_memory": limits, "offload_folder": offload.name}
                model = checkpoint.whole(placing.dtype, **spread)
            else:
                model = checkpoint.whole(placing.dtype, device_map={"": place} if place.type == "cuda" else None)
        except DctError:
            raise
        except Exception as error:
            raise loading_error(self.name, checkpoint, error) from error
        if not placing.spills and not self.spread and not checkpoint.quantised:
            try:
                model = model.to(place)  # type: ignore[arg-type]
            except RuntimeError as error:
                why = first_line(error)
                raise DctError(f'cannot place {self.name} on {place}: {why}; try `device="cpu"`') from error
        return model, offload


def _unpacking(name: str) -> AbstractContextManager[None]:
    """Reads a GGUF file's header once, where the name is one's and it can be read."""
    file = find(name).kind == "gguf" and importlib.util.find_spec("gguf") is not None
    return compat.gguf_read_once() if file else nullcontext()


def _contents(checkpoint: Checkpoint, unread: list[str], remarks: list[str]) -> list[str]:
    """What the user should know of the weights that were read."""
    if unread:
        roots = sorted({name.split(".")[0] for name in unread})
        remarks = [*remarks, f"{len(unread)} tensors of the files are no part of this model ({', '.join(roots[:3])})"]
    if checkpoint.header is not None and checkpoint.header.unread:
        remarks = [
            *remarks,
            f"{', '.join(checkpoint.header.unread[:3])} of the file is not read by transformers: positions are rotated "
            "otherwise than in programs that do, most of all in long prompts",
        ]
    return remarks


def _identity(checkpoint: Checkpoint) -> str:
    """Identity of the whole checkpoint, whatever part of it is loaded in whatever dtype; empty where it has none."""
    path = Path(checkpoint.where)
    if checkpoint.kind == "hub":
        folder = checkpoint.folder
        cached = folder.name if folder is not None and folder.parent.name == "snapshots" else None
        commit = compat.commit_of(checkpoint.skeleton) or cached
        return f"hub:{checkpoint.where}@{commit}" if commit else ""
    if checkpoint.kind == "gguf":
        files = [path]
    else:
        files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin"))
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        # A GGUF file is the same by another name; the files of a folder have theirs from its index.
        digest.update(f"{'' if checkpoint.kind == 'gguf' else file.name}:{size}".encode())
        with file.open("rb") as stream:
            # 64 samples of 64 kB tell checkpoints apart without reading tens of gigabytes.
            for k in range(64):
                stream.seek(size * k // 64)
                digest.update(stream.read(65536))
    return f"sha256:{digest.hexdigest()[:32]}"
