"""From a name to a language model in memory: where its files are, which of them are read, in which type and where to.

Knows transformers' ways of loading and how large things are; knows nothing of prompts, slices or factors.
"""

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from transformers import PreTrainedModel

from dct import adapters, compat
from dct.aliases import DEMO
from dct.checkpoint import Checkpoint
from dct.errors import DctError, UsageError
from dct.model import LanguageModel, check_layers, tensor_fingerprint
from dct.opening import first_line, loading_error, opened
from dct.placement import DTYPES, Placement, device_of
from dct.recording import runs_in_part
from dct.soundness import check_numbers
from dct.sources import find, resolve

__all__ = ["load", "resolve"]


def load(
    name: str = DEMO,
    *,
    adapter: str | Path | None = None,
    between: tuple[int, int] | Callable[[int], tuple[int, int]] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    layers: str = "",
    revision: str | None = None,
    trust_remote_code: bool = False,
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
            it is float32, except for models above a billion parameters where the CPU has AMX and for weights that fit
            into memory in bfloat16 alone.
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
        blocks = None
        if between is not None:
            source, target = between(checkpoint.depth) if callable(between) else between
            check_layers(source, target, checkpoint.depth)
            if device != "map" and checkpoint.divisible and merging is None and _identity(checkpoint):
                blocks = range(source, target)
        placing = Placement.of(checkpoint, blocks, dtype, place, memory)
        if merging is not None and (placing.spills or device == "map"):
            raise DctError(f'{name} does not fit into memory, where its adapter is merged: try `dtype="bfloat16"`')
        for remark in placing.remarks:
            say(remark)
        model, offload = _read(name, checkpoint, blocks, placing, place, spread=device == "map")
        behind = None
        if blocks is not None:
            part = LanguageModel(model, tokenizer, name, checkpoint.layers_path, "part", checkpoint, blocks)
            alone, behind = runs_in_part(part), part.behind
            if not alone:
                say(f"{name} is loaded whole: what its blocks are handed comes from other blocks")
                del model, part
                blocks = None
                placing = Placement.of(checkpoint, None, dtype, place, memory)
                model, offload = _read(name, checkpoint, None, placing, place, spread=False)
    if unread is None:
        unread = checkpoint.verify()  # the hub's files are here by now
    for remark in _contents(checkpoint, unread or [], check_numbers(model, checkpoint.layers_path, name)):
        say(remark)
    print_ = _identity(checkpoint) or tensor_fingerprint(model)
    if merging is not None:
        model, words = adapters.merge(model, merging, name)
        say(f"adapter {merging} merged into the weights: {words}")
        print_ = f"{print_}+adapter:{adapters.fingerprint(merging)}"
    lm = LanguageModel(
        model,
        tokenizer,
        name,
        checkpoint.layers_path,
        print_,
        checkpoint=checkpoint,
        resident=blocks,
        memory=memory,
        offload=offload,
        adapter=str(merging) if merging is not None else None,
    )
    lm.behind = behind
    return lm


def _unpacking(name: str) -> AbstractContextManager[None]:
    """Reads a GGUF file's header once, where the name is one's and it can be read."""
    file = find(name).kind == "gguf" and importlib.util.find_spec("gguf") is not None
    return compat.gguf_read_once() if file else nullcontext()


def _read(
    name: str, checkpoint: Checkpoint, blocks: range | None, placing: Placement, place: torch.device, *, spread: bool
) -> "tuple[PreTrainedModel, tempfile.TemporaryDirectory[str] | None]":
    """The weights, where they are to be."""
    offload = None
    try:
        if blocks is not None:
            model = checkpoint.part(blocks, placing.dtype, place)
        elif spread or placing.spills:
            offload = tempfile.TemporaryDirectory(prefix="dct-")
            limits = None if spread else placing.limits(place)
            model = checkpoint.whole(placing.dtype, device_map="auto", max_memory=limits, offload_folder=offload.name)
        else:
            model = checkpoint.whole(placing.dtype, device_map={"": place} if place.type == "cuda" else None)
    except DctError:
        raise
    except Exception as error:
        raise loading_error(name, checkpoint, error) from error
    if not placing.spills and not spread and not checkpoint.quantised:
        try:
            model = model.to(place)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise DctError(f'cannot place {name} on {place}: {first_line(error)}; try `device="cpu"`') from error
    return model, offload


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
