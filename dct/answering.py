"""Completions made in one pass although each row has its own vector, length, stop words, temperature and seed.

A row draws from a generator of its own, so that what it says does not depend on its company. Knows neither who asks nor
in what order (`serving`).
"""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from dct.generation import end_ids, go_on, together
from dct.model import LanguageModel
from dct.perturbation import Site, at

CLEANED = 4
"""Last characters that a tokenizer which cleans up spaces may still change (" n't" becomes "n't")."""


@dataclass(frozen=True, eq=False)
class Ask:
    """What is to be completed, and how.

    Attributes:
        ids: the prompt.
        added: what acts, R v; None for nothing.
        most: tokens of the reply, at most.
        temperature: 0 is greedy.
        seed: of the draws.
        stop: texts that end the reply, and are no part of it.
        watched: the text is wanted while it grows.
    """

    ids: Sequence[int]
    added: Float[Tensor, " width"] | None = None
    most: int = 64
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    watched: bool = False


class Reply:
    """A reply while it grows. One thread writes it, another may read it, wait for it and cancel it.

    Attributes:
        ask: what it answers.
        text: what is settled of it; only ever grows.
        tokens: how many were generated, without the one that ends a text.
        finish: `stop` or `length` once it is whole; None before.
        error: what went wrong instead.
    """

    def __init__(self, ask: Ask, deadline: float = math.inf) -> None:
        self.ask, self.deadline = ask, deadline
        self.text, self.tokens = "", 0
        self.finish: str | None = None
        self.error: Exception | None = None
        self._cancelled = False
        self._changed = threading.Condition()
        self._ids: list[int] = []
        self._draws: torch.Generator | None = None

    @property
    def late(self) -> bool:
        """Its time is over."""
        return time.monotonic() > self.deadline

    @property
    def over(self) -> bool:
        """Whether there is nothing more to do for it."""
        return self.finish is not None or self.error is not None or self._cancelled or self.late

    def cancel(self) -> None:
        """Nobody waits for it any more: its row ends with the next token."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()

    def wait(self, seen: int, seconds: float) -> None:
        """Returns when there are more than `seen` characters, when it is over, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.text) > seen or self.over, seconds)

    def fail(self, error: Exception) -> None:
        """It cannot be made."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def begin(self) -> None:
        """Starts, or starts again after a pass that failed: what was said before is said again."""
        self._ids, self.tokens = [], 0
        if self.ask.temperature > 0:
            self._draws = torch.Generator().manual_seed(self.ask.seed)

    def drawn(self, logits: Float[Tensor, " vocabulary"]) -> Float[Tensor, " vocabulary"]:
        """Scores whose greatest is a draw from softmax(logits / T): logits / T + Gumbel noise (E. Gumbel, 1954)."""
        if self._draws is None:
            return logits
        # -log E with E ~ Exp(1) is Gumbel noise; from the CPU, so that a seed says the same on every device.
        noise = torch.empty(len(logits)).exponential_(generator=self._draws).log()
        return logits / self.ask.temperature - noise.to(logits.device)

    def take(self, token: int, lm: LanguageModel, ends: set[int]) -> None:
        """The next token has been generated."""
        if token in ends:
            self._grow(lm.decode(self._ids), "stop")
            return
        self._ids.append(token)
        self.tokens = len(self._ids)
        last = self.tokens >= self.ask.most
        if not (last or self.ask.stop or self.ask.watched):
            return
        text = lm.decode(self._ids)
        cut = min((k for k in map(text.find, self.ask.stop) if k >= 0), default=None)
        if cut is not None:
            self._grow(text[:cut], "stop")
        elif last:
            self._grow(text, "length")
        else:
            cleans = getattr(lm.tokenizer, "clean_up_tokenization_spaces", False)
            self._grow(text[: settled(text, self.ask.stop, CLEANED if cleans else 0)])

    def _grow(self, text: str, finish: str | None = None) -> None:
        with self._changed:
            if finish is not None or len(text) > len(self.text):
                self.text = text
            self.finish = finish
            self._changed.notify_all()


def settled(text: str, stop: Sequence[str], cleaned: int = 0) -> int:
    """How many characters of a growing text will stay: neither half of a character, nor what may begin a stop word."""
    end = min(len(text.rstrip("\ufffd")), len(text) - cleaned)
    for word in stop:
        begun = (k for k in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:k]))
        end = min(end, len(text) - next(begun, 0))
    return max(0, end)


class _Draws(LogitsProcessor):
    """Lets each row draw its own next token; greedy rows are left alone."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self.replies = replies

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = [s if r.over else r.drawn(s) for r, s in zip(self.replies, scores, strict=True)]
        return torch.stack(rows)


class _Ends(StoppingCriteria):
    """Hands each row its new token, and ends the rows that are over."""

    def __init__(self, lm: LanguageModel, replies: Sequence[Reply]) -> None:
        self.lm, self.replies, self.ends = lm, replies, end_ids(lm)

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **_: object) -> Tensor:
        for reply, token in zip(self.replies, input_ids[:, -1].tolist(), strict=True):
            if not reply.over:
                reply.take(token, self.lm, self.ends)
        return torch.tensor([reply.over for reply in self.replies], device=input_ids.device)


def answer(lm: LanguageModel, layer: Site, replies: Sequence[Reply]) -> None:
    """Completes what these replies ask for, together as far as the model's padding allows.

    Args:
        layer: their vectors are added to hidden_states[layer], or are changes of a band.

    Raises:
        Whatever `generate` raises, such as out of memory; the replies that are not over can be tried again.
    """
    for group in together(lm, [reply.ask.ids for reply in replies]):
        some = [replies[k] for k in group if not replies[k].over]
        if not some:
            continue
        for reply in some:
            reply.begin()
        added = [reply.ask.added for reply in some]
        nothing = torch.zeros(at(layer, lm.width).dim)
        vectors = None
        if any(one is not None for one in added):
            vectors = torch.stack([nothing if one is None else one.float() for one in added]).to(lm.device)
        hooks: dict[str, object] = {"stopping_criteria": StoppingCriteriaList([_Ends(lm, some)])}
        if any(reply.ask.temperature > 0 for reply in some):
            hooks["logits_processor"] = LogitsProcessorList([_Draws(some)])
        most = max(reply.ask.most for reply in some)
        go_on(lm, [list(reply.ask.ids) for reply in some], vectors, layer, most, **hooks)
