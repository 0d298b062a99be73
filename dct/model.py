"""A language model as the method sees it: a tokenizer, a list of blocks, and the numbers that name them.

Knows how to load any decoder language model of transformers, where its blocks are and how text becomes tokens.
Knows nothing of slices, steering or factors, and never runs a block (see `blocks`).
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dct.aliases import ALIASES, DEMO, LAYERS
from dct.checkpoint import STRIDE, Checkpoint
from dct.errors import DctError, UsageError
from dct.memory import available, human_bytes
from dct.organism import DEMO_DIR

SMALL = 1_000_000_000
"""Parameters below which a CPU runs in float32 even where bfloat16 would be faster."""

ROOM = 0.75
"""Share of the free memory that weights may take, the rest being for what is computed with them."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass
class LanguageModel:
    """A transformers causal language model with its tokenizer and the place of its blocks.

    Attributes:
        model: the network, in evaluation mode, its parameters frozen.
        tokenizer: its tokenizer.
        name: what the user called it: an alias, a folder or a Hugging Face id.
        layers_path: dotted name of the block list inside `model`; found when left empty.
        fingerprint: what identifies the weights: `hub:<id>@<commit>` or `sha256:<digest>`.
        checkpoint: where parts of the model can be read again, if it came from one.
        resident: the blocks whose weights are in memory; left out, all of them. The embedding and the head of a model
            that has only some of its blocks are not in memory either.
        memory: bytes to stay within on its device; left out, what is free.
        offload: folder of the weights that accelerate brings into memory when a block runs, if any.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str = "model"
    layers_path: str = ""
    fingerprint: str = ""
    checkpoint: Checkpoint | None = field(default=None, repr=False)
    resident: range | None = None
    memory: int | None = None
    offload: "tempfile.TemporaryDirectory[str] | None" = field(default=None, repr=False)
    layers: nn.ModuleList = field(init=False, repr=False)
    tuples: bool | None = field(init=False, repr=False, default=None)
    """Whether its blocks return tuples; known once a prompt has been recorded (see `blocks`)."""

    def __post_init__(self) -> None:
        self.layers_path, self.layers = find_layers(self.model, self.layers_path)
        self.model.eval().requires_grad_(False)
        self.fingerprint = self.fingerprint or _tensor_fingerprint(self.model)

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return len(self.layers)

    @cached_property
    def width(self) -> int:
        """Width d of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where it computes: its weights may wait elsewhere until they are needed."""
        runs_on = getattr(getattr(self.model, "_hf_hook", None), "execution_device", None)
        return torch.device(runs_on if runs_on is not None else next(self.model.parameters()).device)

    def require(self, blocks: range, *, ends: bool = False) -> None:
        """Refuses to work with what has not been loaded.

        Raises:
            DctError: the model was loaded for a slice, and other blocks (or embedding and head) are asked for.
        """
        if self.resident is None:
            return
        if ends or not (self.resident.start <= blocks.start and blocks.stop <= self.resident.stop):
            raise DctError(
                f"{self.name} was loaded for layers {self.resident.start} to {self.resident.stop} alone: "
                "load the whole model"
            )

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def has_chat_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    def render(self, prompt: str, system: str | None = None, *, opened: bool = True) -> str:
        """The text that the model reads for a prompt: its chat template up to where the answer begins (or, not
        `opened`, up to the end of the user's message), or the prompt itself (with the system text above it) when the
        model has no template.

        Raises:
            DctError: the model's template takes no system message.
        """
        if not self.has_chat_template:
            return f"{system}\n\n{prompt}" if system else prompt
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        try:
            # Reasoning models open a scratch pad unless told not to; the first token of the answer is what is scored.
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opened, enable_thinking=False
            )
        except Exception as error:
            if system:
                raise DctError(
                    f"the chat template of {self.name} takes no system message ({error}); drop --system"
                ) from error
            raise
        return str(text)

    def tokens(self, prompt: str, system: str | None = None) -> list[int]:
        """Token ids of a rendered prompt; special tokens come from the template where there is one."""
        text = self.render(prompt, system)
        return list(self.tokenizer(text, add_special_tokens=not self.has_chat_template)["input_ids"])

    @property
    def opening(self) -> list[int]:
        """Token ids that the chat template opens the model's reply with, behind the end of the user's message; none
        where there is no template or it opens no reply.
        """
        if not self.has_chat_template:
            return []
        asked, opened = self.render("Hello", opened=False), self.render("Hello")
        if not opened.startswith(asked):
            return []
        return list(self.tokenizer(opened[len(asked) :], add_special_tokens=False)["input_ids"])

    def encode(self, prompts: Sequence[str], system: str | None = None) -> list[list[int]]:
        """Token ids of several prompts, none of them padded or truncated.

        Raises:
            DctError: no prompts, an empty prompt, or one longer than the model's context.
        """
        if not prompts:
            raise DctError("no prompts: give --prompts a file with at least one line, or a literal --prompt")
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        rows = []
        for number, prompt in enumerate(prompts, start=1):
            if not prompt.strip():
                raise DctError(f"prompt {number} of {len(prompts)} is empty: remove it or fill it in")
            row = self.tokens(prompt, system)
            if not row:
                raise DctError(f"prompt {number} of {len(prompts)} has no tokens: {prompt!r}")
            if limit and len(row) > limit:
                raise DctError(f"prompt {number} has {len(row)} tokens and {self.name} reads {limit}: shorten it")
            rows.append(row)
        return rows

    def continuation(self, word: str, system: str | None = None) -> list[int]:
        """Token ids of `word` as the first word of an answer (with the space that plain text puts before it)."""
        probe = "Hello"
        before = self.tokens(probe, system)
        joined = self.render(probe, system) + (word if self.has_chat_template else " " + word)
        after = list(self.tokenizer(joined, add_special_tokens=not self.has_chat_template)["input_ids"])
        if not self.has_chat_template and self.tokenizer.eos_token_id in (before[-1], after[-1]):
            before = [t for t in before if t != self.tokenizer.eos_token_id]
            after = [t for t in after if t != self.tokenizer.eos_token_id]
        if after[: len(before)] == before and len(after) > len(before):
            return after[len(before) :]
        return list(self.tokenizer(word, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def describe(self) -> dict[str, Any]:
        """What a person asks of a model first; JSON types only."""
        return {
            "name": self.name,
            "type": self.model.config.model_type,
            "blocks": self.depth,
            "width": self.width,
            "parameters": self.checkpoint.parameters
            if self.checkpoint is not None
            else sum(p.numel() for p in self.model.parameters()),
            "layers": self.layers_path,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "template": "chat" if self.has_chat_template else "plain",
            "fingerprint": self.fingerprint,
        }


def find_layers(model: PreTrainedModel, path: str = "") -> tuple[str, nn.ModuleList]:
    """The list of blocks: the only `ModuleList` as long as the config's depth, or the one at `path`.

    Returns:
        Its dotted name and the list.

    Raises:
        DctError: no list, or several, fit; the message lists the candidates.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    candidates = ", ".join(f"{name} ({len(m)})" for name, m in lists.items()) or "none"
    if path:
        if path not in lists:
            raise DctError(f"no block list at {path!r}; the model has: {candidates}")
        return path, lists[path]
    depth = model.config.get_text_config().num_hidden_layers
    found = [name for name, m in lists.items() if len(m) == depth]
    if len(found) != 1:
        how_many = "no list" if not found else f"{len(found)} lists"
        raise DctError(f"{how_many} of {depth} blocks found; name one with --layers. The model has: {candidates}")
    return found[0], lists[found[0]]


def default_layers(depth: int, name: str = "") -> tuple[int, int]:
    """Source and target when they are left out: a third of the depth, and ten blocks on or two thirds of it.

    Models that are known by `name` to need others have theirs (`aliases.LAYERS`).
    """
    if name in LAYERS:
        return LAYERS[name]
    source = depth // 3
    return source, max(source + 1, min(source + 10, 2 * depth // 3))


def choose_layers(depth: int, name: str, source: int | None = None, target: int | None = None) -> tuple[int, int]:
    """Source and target; one that was left out follows from the other by the default distance."""
    first, last = default_layers(depth, name)
    if source is None:
        source = first if target is None or target > first else max(0, target - (last - first))
    if target is None:
        target = last if last > source else source + last - first
    return source, target


def check_layers(source: int, target: int, depth: int | None = None) -> None:
    """Refuses anything but 0 <= source < target <= depth.

    Raises:
        UsageError: source is not below target, or negative.
        DctError: target lies outside the model.
    """
    if source < 0 or target <= source:
        raise UsageError(f"the source layer must lie below the target layer, from 0 on: got --s {source} --t {target}")
    if depth is not None and target > depth:
        raise DctError(f"the model has {depth} blocks, so --t is at most {depth}: got --s {source} --t {target}")


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
        tokenizer = AutoTokenizer.from_pretrained(where, **common)
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
    print_ = _identity(where, checkpoint.skeleton) or _tensor_fingerprint(model)
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
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    if device.type == "cpu" and amx and parameters >= SMALL:
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
        commit = getattr(model.config, "_commit_hash", None)
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


def _tensor_fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 16)][:16].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:32]}"
