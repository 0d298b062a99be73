"""From a name to a language model in memory: where its files are, which of them are read, in which type and where to.

Knows transformers' ways of loading and how large things are; knows nothing of prompts, slices or factors.
"""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dct import adapters, compat
from dct.aliases import DEMO
from dct.checkpoint import STRIDE, Checkpoint, hushed
from dct.errors import DctError, UsageError
from dct.hub import Answer, ask, download, explained, shown, snapshot
from dct.memory import available, human_bytes
from dct.model import LanguageModel, check_layers, find_layers, tensor_fingerprint
from dct.soundness import check_numbers
from dct.sources import ADAPTER, CONFIG, Source, adapted, find, resolve

SMALL = 1_000_000_000
"""Parameters below which a CPU runs in float32 even where bfloat16 would be faster."""

ROOM = 0.75
"""Share of the free memory that weights may take, the rest being for what is computed with them."""

UNPACKING = 2
"""How often the weights of a GGUF file are in memory at once while they are unpacked."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


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
        raise UsageError(f"unknown --dtype {dtype!r}: choose auto, {', '.join(DTYPES)}")
    say = tell or (lambda remark: None)
    place = _device(device)
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
    placing = _Placement.of(checkpoint, blocks, dtype, place, memory)
    if merging is not None and (placing.spills or device == "map"):
        raise DctError(f"{name} does not fit into memory, where its adapter is merged: try --dtype bfloat16")
    for remark in placing.remarks:
        say(remark)
    model, offload = _read(name, checkpoint, blocks, placing, place, spread=device == "map")
    if unread is None:
        unread = checkpoint.verify()  # the hub's files are here by now
    for remark in _contents(checkpoint, unread or [], check_numbers(model, checkpoint.layers_path, name)):
        say(remark)
    print_ = _identity(checkpoint) or tensor_fingerprint(model)
    if merging is not None:
        model, words = adapters.merge(model, merging, name)
        say(f"adapter {merging} merged into the weights: {words}")
        print_ = f"{print_}+adapter:{adapters.fingerprint(merging)}"
    return LanguageModel(
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


def opened(
    name: str,
    adapter: str | Path | None = None,
    *,
    layers: str = "",
    revision: str | None = None,
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = lambda remark: None,
) -> tuple[Checkpoint, PreTrainedTokenizerBase, Path | None]:
    """A model's configuration and tokenizer, without its weights.

    Returns:
        The checkpoint, the tokenizer, and the folder of an adapter that is to be merged.

    Raises:
        DctError: the model cannot be found or reached, or is no language model.
    """
    source = find(name, str(adapter) if adapter is not None else None)
    answer = ask(name, source.where, revision) if source.kind == "hub" else None
    if answer is not None and CONFIG not in answer.files and answer.files:
        source, answer = _of_other_files(source, answer, revision)
    merging = _adapter_folder(source)
    for remark in (*source.remarks, *(answer.remarks if answer is not None else ())):
        tell(remark)
    options: dict[str, Any] = {
        "revision": revision if source.kind == "hub" else None,
        "trust_remote_code": trust_remote_code,
        "local_files_only": answer is not None and not answer.reached,
    }

    def attempt(**options: Any) -> tuple[Checkpoint, PreTrainedTokenizerBase]:
        checkpoint = Checkpoint.open(source, lambda model: find_layers(model, layers)[0], **options)
        own = adapters.tokenizer_of(merging) if merging is not None else None
        place, which = (str(own), {}) if own is not None else source.reading
        if own is not None:
            tell(f"the adapter's own tokenizer and chat template are used, from {own}")
        return checkpoint, _tokenizer(place, **options, **which)

    try:
        try:
            return (*attempt(**options), merging)
        except OSError:
            # The hub may tell of a model whose files it then refuses; what was downloaded before will do.
            if source.kind != "hub" or options["local_files_only"] or snapshot(source.where, revision) is None:
                raise
            found = attempt(**{**options, "local_files_only": True})
            tell(f"the hub refuses the files of {shown(name, source.where)}: the copy in the cache is used")
            return (*found, merging)
    except DctError:
        raise
    except Exception as error:
        raise loading_error(name, source, error) from error


def _tokenizer(place: str, **options: Any) -> PreTrainedTokenizerBase:
    """The one place where a tokenizer is read."""
    with hushed():
        return AutoTokenizer.from_pretrained(place, **options)


def _of_other_files(source: Source, answer: Answer, revision: str | None) -> tuple[Source, Answer | None]:
    """What a hub model without a configuration is: an adapter, or GGUF files.

    Raises:
        DctError: it holds several GGUF files, or nothing that is a model.
    """
    if ADAPTER in answer.files:
        folder = download(source.name, source.where, revision, ["adapter_*", "token*", "*.jinja"], reached=answer.reached)
        base = adapted(source.name, folder)
        again = ask(base.where, base.where) if base.kind == "hub" else None
        return base, again
    files = sorted(name for name in answer.files if name.lower().endswith(".gguf"))
    if not files:
        raise DctError(f"cannot load model {shown(source.name, source.where)}: it has no {CONFIG} and no {ADAPTER}")
    if len(files) > 1:
        listed = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
        raise DctError(
            f"{shown(source.name, source.where)} holds {len(files)} GGUF files ({listed}): download the one you want and "
            "name it"
        )
    folder = download(source.name, source.where, revision, files, reached=answer.reached)
    return replace(source, where=str(folder / files[0]), kind="gguf"), None


def _adapter_folder(source: Source) -> Path | None:
    """The folder of the adapter that is to be merged, brought here from the hub where it is there."""
    if source.adapter is None:
        return None
    folder = Path(source.adapter)
    if folder.is_dir():
        return folder
    answer = ask(source.adapter, source.adapter)
    if ADAPTER not in answer.files:
        raise DctError(f"{source.adapter} is no adapter: it has no {ADAPTER}")
    return download(
        source.adapter, source.adapter, None, ["adapter_*", "token*", "*.jinja"], reached=answer.reached
    )


def _read(
    name: str, checkpoint: Checkpoint, blocks: range | None, placing: "_Placement", place: torch.device, *, spread: bool
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
            raise DctError(f"cannot place {name} on {place}: {_first_line(error)}; try --device cpu") from error
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


@dataclass(frozen=True)
class _Placement:
    """How weights go into memory.

    Attributes:
        dtype: the type they are kept and computed in.
        spills: whether they do not fit, so that some must wait in host memory or on disk.
        free: bytes that they may take on the device.
        remarks: what the user should know.
    """

    dtype: torch.dtype
    spills: bool
    free: int
    remarks: tuple[str, ...]

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, blocks: range | None, dtype: str, place: torch.device, memory: int | None
    ) -> "_Placement":
        whole = blocks is None
        # While prompts are run, what stands around the blocks and a few blocks below the slice are there as well.
        count = checkpoint.parameters if blocks is None else checkpoint.count(blocks, ends=True)
        size = {kind: _bytes(count, kind) + (0 if whole else STRIDE) for kind in DTYPES.values()}
        free = available(place, memory)
        room = int(ROOM * free)
        what = "the model" if blocks is None else f"the slice of {len(blocks)} blocks"
        chosen = DTYPES.get(dtype)
        remarks = []
        if chosen is None and place.type == "cuda":
            chosen = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        elif chosen is None:
            chosen = _cpu_dtype(checkpoint.parameters, place)
            if place.type == "cpu" and checkpoint.divisible and chosen == torch.float32 and size[chosen] > room:
                remarks.append(
                    f"bfloat16, since {what} takes {human_bytes(size[chosen])} in float32 and "
                    f"{human_bytes(free)} of memory are free; --dtype float32 insists"
                )
                chosen = torch.bfloat16
        needed, there = human_bytes(size[chosen]), f"{human_bytes(free)} of memory are free"
        spills = checkpoint.divisible and size[chosen] > (room if whole else free)
        if not checkpoint.divisible and not checkpoint.quantised and UNPACKING * size[chosen] > free:
            remarks.append(
                f"unpacking {what} takes about {human_bytes(int(UNPACKING * size[chosen]))} and {there}: expect to run "
                "out of it"
            )
        if spills and whole:
            remarks.append(
                f"{what} takes {needed} and {there}: its blocks wait in host memory or on disk and are brought in one "
                "after the other, which takes longer"
            )
        elif spills:
            cure = "a shorter slice" if chosen != torch.float32 else "--dtype bfloat16 or a shorter slice"
            remarks.append(f"{what} takes {needed} and {there}: expect to run out of it; try {cure}")
        return cls(chosen, spills, room, tuple(remarks))

    def limits(self, place: torch.device) -> dict[int | str, int]:
        """What accelerate may use: the device, then host memory, then the disk."""
        if place.type == "cpu":
            return {"cpu": self.free}
        name = (place.index or 0) if place.type == "cuda" else place.type
        return {name: self.free, "cpu": int(ROOM * available(torch.device("cpu")))}


def _bytes(parameters: int, dtype: torch.dtype) -> int:
    return parameters * torch.empty((), dtype=dtype).element_size()


def _device(name: str) -> torch.device:
    if name in ("auto", "map"):
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown --device {name!r}: try auto, cpu, cuda, cuda:1, mps or map") from error
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, True):
        raise DctError(f"this machine or this torch has no {device.type}: try --device cpu")
    return device


def _cpu_dtype(parameters: int, device: torch.device) -> torch.dtype:
    """bfloat16 where the CPU multiplies it fast and the model is large enough to care; float32 elsewhere."""
    if device.type == "cpu" and compat.multiplies_bfloat16_in_tiles() and parameters >= SMALL:
        return torch.bfloat16
    return torch.float32


def _first_line(error: BaseException) -> str:
    """An error of another library in one line; a line that only announces the next is joined to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def loading_error(name: str, source: Source | Checkpoint, error: Exception) -> DctError:
    """What to tell the user when transformers could not load `name`."""
    where = source.where
    pickles = "weights_only" in str(error) or type(error).__name__ == "UnpicklingError"
    if pickles:
        return DctError(
            f"cannot load the model in {where}: its weights are pickles that hold more than tensors, and such files can "
            "run code: get the model as safetensors, or have whoever made it convert it (save_pretrained writes "
            "safetensors)"
        )
    if source.kind != "hub":
        return DctError(f"cannot load the model in {where}: {_first_line(error)}")
    known = explained(name, where, error)
    if "no access" in str(known):
        return known
    if isinstance(error, ImportError | ValueError) and not isinstance(error, OSError) and "connect" not in str(error):
        return DctError(f"cannot load model {shown(name, where)}: {_first_line(error)}")
    return known


def _identity(checkpoint: Checkpoint) -> str:
    """Identity of the whole checkpoint, whatever part of it is loaded in whatever dtype; empty where it has none."""
    path = Path(checkpoint.where)
    if checkpoint.kind == "hub":
        commit = compat.commit_of(checkpoint.skeleton)
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
