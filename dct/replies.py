"""What a model says to prompts under pushes: greedy completions, made in batches, each of them once.

Knows neither what a right reply is (`judging`, `tasks`) nor who is to be pushed how (`arms`, `halving`).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from dct.estimate import completions_seconds
from dct.generation import complete, completion_bytes
from dct.journal import Journal
from dct.memory import available
from dct.model import LanguageModel
from dct.perturbation import Site
from dct.team import current

AT_ONCE = 64
"""Completions at a time on a CPU, whose products they fill."""

MOST_AT_ONCE = 512
"""Completions at a time on a GPU at most: there a step takes as long for a few rows as for some hundred."""

ASKED = 128
"""Tokens that a prompt is taken to have before it is known."""

UNSTEERED = "unsteered"


@dataclass(frozen=True, eq=False)
class Push:
    """A perturbation that a model runs under: something that is added to the stream, or rank-1 changes of a band.

    Attributes:
        layer: added to hidden_states[layer]; or the changes that `added` is one of.
        added: R v; or a vector for each position of a text.
        name: what it is called: a vector's number, or words.
        scale: its norm.
    """

    layer: Site
    added: Float[Tensor, " width"] | Float[Tensor, "positions width"]
    name: str = ""
    scale: float = 0.0

    @cached_property
    def digest(self) -> str:
        """What tells it from every other."""
        numbers = self.added.detach().to("cpu", torch.float32).contiguous().numpy()
        return hashlib.sha256(f"{self.layer} {numbers.shape} ".encode() + numbers.tobytes()).hexdigest()


Asked = tuple[Push | None, str]
"""A prompt, and what is pushed while it is completed; None for nothing."""


def at_once(lm: LanguageModel, length: int) -> int:
    """Completions of so many tokens that are made together: on a GPU as many as half of what is free there holds."""
    if lm.device.type == "cpu":
        return AT_ONCE
    fit = available(lm.device, lm.memory) // (2 * completion_bytes(lm, 1, length + ASKED))
    return max(1, min(MOST_AT_ONCE, fit))


class Replies:
    """Greedy replies of a model, each made once.

    Args:
        lm: the model.
        length: tokens of a reply, at most.
        system: system message.
        batch: replies at a time, in each process; left out, see `at_once`.
        journal: where they are kept; left out, nowhere.
        on_rows: told how many more are there.
    """

    def __init__(
        self,
        lm: LanguageModel,
        length: int,
        *,
        system: str | None = None,
        batch: int | None = None,
        journal: Journal | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> None:
        self.lm, self.length, self.system = lm, length, system
        self.batch = at_once(lm, length) if batch is None else batch
        self.journal, self.on_rows = journal, on_rows
        self.known: dict[str, str] = {} if journal is None else journal.known
        self._of = json.dumps([lm.fingerprint, str(lm.dtype), length])
        self._ids: dict[str, list[int]] = {}

    def said(self, asked: Sequence[Asked]) -> list[str]:
        """The reply to each prompt under its push, in order."""
        keys = [self._key(push, prompt) for push, prompt in asked]
        missing = {key: one for key, one in zip(keys, asked, strict=True) if key not in self.known}
        self._tell(len(asked) - len(missing))
        groups: dict[tuple[Site, int], list[str]] = {}
        for key, (push, _) in missing.items():
            site = (-1, 0) if push is None else (push.layer, push.added.ndim)
            groups.setdefault(site, []).append(key)
        for group in groups.values():
            group.sort(key=lambda key: len(self.ids(missing[key][1])))  # little padding in every batch
            at_once = self.batch * current().size
            for start in range(0, len(group), at_once):
                some = group[start : start + at_once]
                self._make(some, [missing[key] for key in some])
                self._tell(len(some))
        return [self.known[key] for key in keys]

    def missing(self, asked: Sequence[Asked]) -> int:
        """How many of these are still to be made."""
        return sum(self._key(push, prompt) not in self.known for push, prompt in asked)

    def ids(self, prompt: str) -> list[int]:
        """A prompt as tokens."""
        if prompt not in self._ids:
            [self._ids[prompt]] = self.lm.encode([prompt], self.system)
        return self._ids[prompt]

    def reads(self, prompt: str, ids: Sequence[int]) -> None:
        """Makes these the tokens of a prompt, as where another model's chat template wrote them."""
        self._ids[prompt] = list(ids)

    def longest(self, texts: Sequence[str]) -> int:
        """Tokens that replies are likely to take: a quarter more than the longest of these, as far as they may."""
        rows = self.lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        most = max(map(len, rows), default=self.length) + 1  # with the one that ends it
        return min(self.length, most + most // 4)

    def expected(self, prompts: Sequence[str], rows: int, tokens: int | None = None) -> tuple[float, int]:
        """Seconds that so many replies to prompts like these will take, by timing short ones, and bytes.

        Args:
            tokens: of a reply; left out, as many as it may have.
        """
        ids = [self.ids(prompt) for prompt in prompts[: self.batch]]
        ids = [ids[k % len(ids)] for k in range(self.batch)]

        def say(size: int, tokens: int) -> None:
            """Completions under no vector, for timing."""
            none = torch.zeros(size, self.lm.width)
            complete(self.lm, ids[:size], none, 0, max_new_tokens=tokens, batch=size)

        spent = completions_seconds(say, rows, self.batch, tokens or self.length, self.lm.device)
        return spent, completion_bytes(self.lm, self.batch, self.length + max(map(len, ids)))

    def _make(self, keys: Sequence[str], asked: Sequence[Asked]) -> None:
        """Completes some prompts, at one layer."""
        pushes = [push for push, _ in asked if push is not None]
        said = complete(
            self.lm,
            [self.ids(prompt) for _, prompt in asked],
            torch.stack([push.added for push in pushes]).to(self.lm.device) if pushes else None,
            pushes[0].layer if pushes else 0,
            max_new_tokens=self.length,
            batch=len(asked),
        )
        if self.journal is None:
            self.known.update(zip(keys, said, strict=True))
            return
        self.journal.add(
            [
                {
                    "key": key,
                    "prompt": prompt,
                    "vector": UNSTEERED if push is None else push.name,
                    "scale": 0.0 if push is None else push.scale,
                    "completion": text,
                }
                for key, (push, prompt), text in zip(keys, asked, said, strict=True)
            ]
        )

    def _key(self, push: Push | None, prompt: str) -> str:
        """What decides a reply: weights and their type, tokens, what is added where, and how long it may be."""
        pushed = "" if push is None else push.digest
        return hashlib.sha256(f"{self._of} {pushed} {self.ids(prompt)}".encode()).hexdigest()

    def _tell(self, rows: int) -> None:
        if rows and self.on_rows is not None:
            self.on_rows(rows)
