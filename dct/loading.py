"""From a name to a language model in memory: where its files are, which of them are read, in which type and where to.

Knows transformers' ways of loading and how large things are; knows nothing of prompts, slices or factors.
"""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from dct import compat
from dct.aliases import ALIASES, DEMO
from dct.chat import load_tokenizer
from dct.checkpoint import STRIDE, Checkpoint
from dct.errors import DctError, UsageError
from dct.memory import available, human_bytes
from dct.model import LanguageModel, check_layers, find_layers, tensor_fingerprint
from dct.organism import DEMO_DIR

SMALL = 1_000_000_000
"""Parameters below which a CPU runs in float32 even where bfloat16 would be faster."""

ROOM = 0.75
"""Share of the free memory that weights may take, the rest being for what is computed with them."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve(name: str) -> str:
    """The folder or Hugging Face id behind an alias; any other name is returned as it is.

    Raises:
        DctError: the demo model is not part of this installation.
    """
    if name == DEMO:
        if not (DEMO_DIR / "model.safetensors").exists():
            raise DctError("this installation carries no demo model; train one with `dct organism train --out DIR`")
        return str(DEMO_DIR)
    return ALIASES.get(name, name)


def load(
    name: str = DEMO,
    *,
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
        name: an alias (`demo`, `qwen`), a local folder or a Hugging Face id.
        between: source and target, or a function of the depth that tells them: only the blocks of that slice are
            loaded, which is all that a `Slice` between these layers keeps in memory; what lies below them is read,
            block after block, when prompts are run, and what lies above is never read. Left out, the whole model; one
            that does not fit is run with the rest of its weights in host memory or on disk.
        dtype: `auto`, `float32`, `bfloat16` or `float16`. `auto` is bfloat16 on a GPU that multiplies it; on a CPU
            it is float32, except for models above a billion parameters where the CPU has AMX and for weights that fit
            into memory in bfloat16 alone.
        device: `auto` (first GPU, then Apple's, then the CPU), any torch device, or `map`: the whole model spread over
            all devices by accelerate.
        layers: dotted name of the block list, where it cannot be found.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run model code that comes with the weights.
        memory: bytes to stay within on the device; left out, what is free.
        tell: called with what the user should know before the weights are read.

    Raises:
        DctError: the model cannot be found, reached or read.
        UsageError: an unknown dtype or device; layers out of order.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"unknown --dtype {dtype!r}: choose auto, {', '.join(DTYPES)}")
    where = resolve(name)
    if Path(where).is_absolute() or where.startswith((".", "~")) or where.count("/") > 1:
        where = str(Path(where).expanduser())
        if not Path(where).is_dir():  # no name for the hub: do not go and ask it
            raise DctError(f"no model folder {where}: check the path, or give a Hugging Face id (`dct models`)")
    place = _device(device)
    common: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "local_files_only": not Path(where).is_dir() and not hub_answers(name, where, revision),
    }
    try:
        checkpoint = Checkpoint.open(where, lambda model: find_layers(model, layers)[0], **common)
        tokenizer = load_tokenizer(where, tell=tell, **common)
    except DctError:
        raise
    except Exception as error:
        raise loading_error(name, where, error) from error
    blocks = None
    if between is not None:
        source, target = between(checkpoint.depth) if callable(between) else between
        check_layers(source, target, checkpoint.depth)
        if device != "map" and checkpoint.divisible and _identity(where, checkpoint.skeleton):
            blocks = range(source, target)
    placing = _Placement.of(checkpoint, blocks, dtype, place, memory)
    if tell is not None:
        for remark in placing.remarks:
            tell(remark)
    offload = None
    try:
        if blocks is not None:
            model = checkpoint.part(blocks, placing.dtype, place)
        elif device == "map" or placing.spills:
            offload = tempfile.TemporaryDirectory(prefix="dct-")
            limits = None if device == "map" else placing.limits(place)
            model = checkpoint.whole(placing.dtype, device_map="auto", max_memory=limits, offload_folder=offload.name)
        else:
            model = checkpoint.whole(placing.dtype, device_map={"": place} if place.type == "cuda" else None)
    except Exception as error:
        raise loading_error(name, where, error) from error
    if not placing.spills and device != "map":
        try:
            model = model.to(place)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise DctError(f"cannot place {name} on {place}: {_first_line(error)}; try --device cpu") from error
    print_ = _identity(where, checkpoint.skeleton) or tensor_fingerprint(model)
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
    )


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


def hub_answers(name: str, where: str, revision: str | None) -> bool:
    """Whether the hub can be reached; asked once and shortly, since its own downloads retry for half a minute.

    Raises:
        DctError: it can, and has no such model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().model_info(where, revision=revision, timeout=10)
    except (HfHubHTTPError, HFValidationError) as error:
        if isinstance(error, HFValidationError) or error.response.status_code in (401, 403, 404):
            raise loading_error(name, where, error) from error
        return False
    except Exception:  # no network, a proxy that refuses, offline mode: what has been downloaded before may do
        return False
    return True


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
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def loading_error(name: str, where: str, error: Exception) -> DctError:
    """What to tell the user when transformers could not load `name`, found at `where`."""
    if Path(where).is_dir():
        return DctError(f"cannot load the model in {where}: {_first_line(error)}")
    shown = f"{name} ({where})" if name != where else name
    text = str(error)
    if "gated repo" in text or ("403" in text and "Client Error" in text):
        return DctError(f"no access to model {shown}: accept its licence on the hub and log in with `hf auth login`")
    if isinstance(error, ImportError | ValueError) and not isinstance(error, OSError) and "connect" not in text:
        return DctError(f"cannot load model {shown}: {_first_line(error)}")
    return DctError(
        f"cannot find model {shown}: no such folder, and the hub does not have it or cannot be reached; "
        "check the name and the network, or give a local folder (`dct models` lists the aliases)"
    )


def _identity(where: str, model: PreTrainedModel) -> str:
    """Identity of the whole checkpoint, whatever part of it is loaded in whatever dtype; empty where it has none."""
    folder = Path(where)
    if not folder.is_dir():
        commit = compat.commit_of(model)
        return f"hub:{where}@{commit}" if commit else ""
    digest = hashlib.sha256()
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as stream:
            # 64 samples of 64 kB tell checkpoints apart without reading tens of gigabytes.
            for k in range(64):
                stream.seek(size * k // 64)
                digest.update(stream.read(65536))
    return f"sha256:{digest.hexdigest()[:32]}"
