"""A language model as the method sees it: a tokenizer, a list of blocks, and the numbers that name them.

Knows where the blocks of any decoder language model of transformers are and how text becomes tokens. Knows nothing of
files (see `loading`), slices, steering or factors, and never runs a block (see `blocks`).
"""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dct import compat
from dct.aliases import LAYERS
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
    adapter: str | None = None
    layers: nn.ModuleList = field(init=False, repr=False)
    tuples: bool | None = field(init=False, repr=False, default=None)
    """Whether its blocks return tuples; known once a prompt has been recorded (see `blocks`)."""

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
        """Width d of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where it computes: its weights may wait elsewhere until they are needed."""
        runs_on = compat.execution_device(self.model)
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
            f"the config does not say how many blocks there are; name their list with --layers: {candidates}"
        )
    found = [name for name, m in lists.items() if len(m) == depth]
    if len(found) > 1:  # a tower for images may be as deep as the one for text
        tower = compat.text_tower(model)
        inside = {id(m) for m in tower.modules()}
        found = [name for name in found if id(lists[name]) in inside] or found
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


def tensor_fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 16)][:16].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:32]}"
