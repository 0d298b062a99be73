"""A language model as the method sees it: a tokenizer, a list of blocks, and the numbers that name them.

Knows where the blocks of any decoder language model of transformers are. Knows nothing of how text becomes tokens (see
`chat`), files (see `loading`), slices, steering or factors, and never runs a block (see `blocks`).
"""

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dct import compat
from dct.aliases import LAYERS
from dct.chat import Chat, same_ids
from dct.checkpoint import Checkpoint
from dct.errors import DctError, UsageError


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
        reply_prefix: what replies begin with, behind the chat template; left out, nothing, or the end of a block of
            thought that the template opens.
        escape_control: read control tokens in prompts as the text that they are written with.
        tell: called with what the user should know of how prompts are read, each thing once; left out, it is a warning.
        adapter: folder or Hugging Face id of the adapter whose change has been added to the weights, if any.
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
    reply_prefix: str | None = None
    escape_control: bool = False
    tell: Callable[[str], None] | None = field(default=None, repr=False)
    adapter: str | None = None
    layers: nn.ModuleList = field(init=False, repr=False)
    behind: tuple[Any, ...] | None = field(init=False, repr=False, default=None)
    """What its blocks return behind the stream, where they return tuples; known once a prompt has been recorded (see
    `recording`)."""
    stands_aside: bool | None = field(init=False, repr=False, default=None)
    """Whether logits can be read out with its blocks standing aside; known once that was tried (see `blocks`)."""
    ignores_padding: bool | None = field(init=False, repr=False, default=None)
    """Whether padding leaves alone what it says; known once prompts were completed together (see `generation`)."""
    drops_rows: bool | None = field(init=False, repr=False, default=None)
    """Whether rows of a batch may be dropped while it goes on with others; known likewise."""
    shares_heads: bool | None = field(init=False, repr=False, default=None)
    """Whether it can go on from the keys and values of a text's head; known once texts were read so (see `logits`)."""
    sites: list[Any] | None = field(init=False, repr=False, default=None)
    """What its blocks add to the stream; known once something was ablated (see `writers`)."""
    projections: dict[int, tuple[str, int] | None] = field(init=False, repr=False, default_factory=dict)
    """The attention output projections of its blocks with the width of their inputs; known once rank-1 changes were
    made there (see `projections`)."""
    verified: set[tuple[str, int, int]] = field(init=False, repr=False, default_factory=set)
    """What has been held against the model's own run: a check, source and target (see `verification`)."""
    _said: set[str] = field(init=False, repr=False, default_factory=set)
    _kept_ids: dict[tuple[Any, ...], tuple[int, ...]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.layers_path, self.layers = find_layers(self.model, self.layers_path)
        self.model.eval().requires_grad_(False)
        self.fingerprint = self.fingerprint or tensor_fingerprint(self.model)

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return len(self.layers)

    @cached_property
    def width(self) -> int:
        """Width d of the residual stream.

        Raises:
            DctError: the configuration does not say it.
        """
        width = getattr(self.model.config.get_text_config(), "hidden_size", None)
        if not isinstance(width, int):
            raise DctError(f"the config of {self.name} does not say how wide its stream is: dct cannot take it")
        return width

    @property
    def vocabulary(self) -> int:
        """Token ids that the model knows: 0 to one less than this."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def context(self) -> int | None:
        """Tokens that the model reads at most; None where its configuration does not say it."""
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return most if isinstance(most, int) and most > 0 else None

    @property
    def device(self) -> torch.device:
        """Where it computes: its weights may wait elsewhere until they are needed."""
        runs_on = compat.execution_device(self.model)
        return torch.device(runs_on if runs_on is not None else next(self.model.parameters()).device)

    def require(self, blocks: range, *, ends: bool = False) -> None:
        """Refuses to work with what has not been loaded.

        Args:
            ends: what text passes through outside the blocks is needed too: embeddings, final norm, head.

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
        """Type that the blocks compute in."""
        return self.model.dtype

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts are put into a chat template; without one they are plain text."""
        return self.chat.has_template

    @property
    def chat(self) -> Chat:
        """How prompts become tokens (see `chat`)."""
        return Chat(self.tokenizer, self.name, self.reply_prefix, self.escape_control, self._say)

    def _say(self, kind: str, remark: str) -> None:
        """Says what the user should know, each kind of remark once."""
        if kind in self._said:
            return
        self._said.add(kind)
        if self.tell is not None:
            self.tell(remark)
        else:
            warnings.warn(remark, stacklevel=2)

    def render(self, prompt: str, system: str | None = None, *, opened: bool = True) -> str:
        """The text that the model reads for a prompt: its chat template up to where the answer begins (or, not
        `opened`, up to the end of the user's message), or the prompt itself (with the system text above it) when the
        model has no template.

        Raises:
            DctError: the template fails, does not end, takes no system message, or leaves out what it is given.
        """
        return self.chat.render(prompt, system, opened=opened).text

    def tokens(self, prompt: str, system: str | None = None) -> list[int]:
        """Token ids of a rendered prompt; special tokens come from the template where there is one.

        A template that reads the clock is asked once for each prompt: what it said then stays.
        """
        key = self._key(prompt, system)
        if key in self._kept_ids:
            return list(self._kept_ids[key])
        rendered = self.chat.render(prompt, system)
        ids = self.chat.ids(rendered)
        if rendered.changing:
            self._kept_ids[key] = tuple(ids)
        return ids

    def keep(self, prompts: Sequence[str], rows: Sequence[Sequence[int]], system: str | None = None) -> None:
        """Makes these rows the token ids of these prompts from now on: those that a run was fitted on."""
        for prompt, row in zip(prompts, rows, strict=True):
            self._kept_ids[self._key(prompt, system)] = tuple(int(k) for k in row)

    def _key(self, prompt: str, system: str | None) -> tuple[Any, ...]:
        return prompt, system or None, self.reply_prefix, self.escape_control

    @property
    def opening(self) -> list[int]:
        """Token ids that the chat template opens the model's reply with, behind the end of the user's message; none
        where there is no template or it opens no reply.
        """
        return self.chat.opening()

    def encode(self, prompts: Sequence[str], system: str | None = None) -> list[list[int]]:
        """Token ids of several prompts, none of them padded or truncated.

        Raises:
            DctError: no prompts, an empty prompt, one that is no text, or one longer than the model's context.
        """
        if not prompts:
            raise DctError("no prompts: `prompts` must hold one at least")
        limit = self.context
        rows = []
        for number, prompt in enumerate(prompts, start=1):
            if not prompt.strip():
                raise DctError(f"prompt {number} of {len(prompts)} is empty: remove it or fill it in")
            if any("\ud800" <= c <= "\udfff" for c in prompt):
                raise DctError(
                    f"prompt {number} of {len(prompts)} holds half of a character (a lone surrogate): mend it"
                )
            row = self.tokens(prompt, system)
            if not row:
                raise DctError(f"prompt {number} of {len(prompts)} has no tokens: {prompt!r}")
            if limit and len(row) > limit:
                raise DctError(f"prompt {number} has {len(row)} tokens and {self.name} reads {limit}: shorten it")
            rows.append(row)
        same = same_ids(rows, prompts)
        if same is not None:
            self._say("same", f"prompts {same[0]} and {same[1]} differ, and are the same tokens to {self.name}")
        return rows

    def continuation(self, word: str, system: str | None = None) -> list[int]:
        """Token ids of `word` as the first word of an answer (with the space that plain text puts before it)."""
        return self.chat.continuation(word, system)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
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
            "adapter": self.adapter,
            **(self.checkpoint.origin if self.checkpoint is not None else {}),
        }


def find_layers(model: PreTrainedModel, path: str = "") -> tuple[str, nn.ModuleList]:
    """The list of blocks: the only `ModuleList` as long as the config's depth, or the one at `path`.

    Returns:
        Its dotted name and the list.

    Raises:
        DctError: no list, or several, fit; the message lists the candidates.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    named = [f"{name} ({len(m)})" for name, m in lists.items()]
    candidates = ", ".join(named[:6]) + (f" and {len(named) - 6} more" if len(named) > 6 else "") or "none"
    if path:
        if path not in lists:
            raise DctError(f"no block list at {path!r}; the model has: {candidates}")
        return path, lists[path]
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if depth is None:
        raise DctError(
            f"the config does not say how many blocks there are; name their list with `layers`: {candidates}"
        )
    found = [name for name, m in lists.items() if len(m) == depth]
    if len(found) > 1:  # a tower for images may be as deep as the one for text
        tower = compat.text_tower(model)
        inside = {id(m) for m in tower.modules()}
        found = [name for name in found if id(lists[name]) in inside] or found
    if len(found) != 1:
        how_many = "no list" if not found else f"{len(found)} lists"
        raise DctError(f"{how_many} of {depth} blocks found; name one with `layers`. The model has: {candidates}")
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
        raise UsageError(
            f"the source layer must lie below the target layer, from 0 on: got `source` {source}, `target` {target}",
            argument="target",
        )
    if depth is not None and target > depth:
        raise DctError(
            f"the model has {depth} blocks, so `target` is at most {depth}: got `source` {source}, `target` {target}"
        )


def tensor_fingerprint(model: nn.Module) -> str:
    """Identity of a model in memory, from sixteen numbers of every parameter: for models that come from no file."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 16)][:16].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:32]}"
