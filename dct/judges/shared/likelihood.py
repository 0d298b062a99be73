"""How likely the unsteered model finds a reply, beside its own replies: salad is far less likely than either."""

from collections.abc import Sequence
from statistics import median

import torch

from dct.generation import end_ids
from dct.judging import Reply
from dct.model import LanguageModel

FIRST = 48
"""Tokens of a reply that are read."""

LEAST = 8
"""Tokens of a reply whose mean says something."""

BOUND = 2.8
"""Nats a token below the median of the model's own replies from which on a text is too unlikely to be meant."""


class Likelihood:
    """What the unsteered model finds likely. No text is read twice.

    Args:
        lm: the unsteered model.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self._found: dict[tuple[str, str], float | None] = {}
        self._own: dict[tuple[str, str], None] = {}

    def learn(self, replies: Sequence[Reply]) -> None:
        """Told what the model says itself: texts are held against these from now on."""
        self._own = _own(replies)

    def unlikely(self, replies: Sequence[Reply], beside: Sequence[Reply]) -> list[str]:
        """What is wrong with the likelihood of each reply; empty where nothing is, or where none is the model's own.

        Args:
            beside: where the model's own replies stand, if it has not been told of them.
        """
        own = [self._of(pair) for pair in self._own or _own(beside)]
        usual = [value for value in own if value is not None]
        if not usual:
            return ["" for _ in replies]
        least = median(usual) - BOUND
        values = [self._of((reply.prompt, reply.completion)) for reply in replies]
        return [
            "" if v is None or v >= least else f"{least - v + BOUND:.1f} nats a token less likely than the model's own"
            for v in values
        ]

    def _of(self, pair: tuple[str, str]) -> float | None:
        if pair not in self._found:
            self._found[pair] = mean_log_likelihood(self.lm, *pair)
        return self._found[pair]


def _own(replies: Sequence[Reply]) -> dict[tuple[str, str], None]:
    """The model's own replies, each once."""
    return dict.fromkeys((reply.prompt, reply.unsteered) for reply in replies if reply.unsteered)


@torch.no_grad()
def mean_log_likelihood(lm: LanguageModel, prompt: str, text: str) -> float | None:
    """(1/n) sum_k log p(token k | prompt, tokens before it), a reply's first n tokens; None where they are too few."""
    before = lm.tokens(prompt)
    ids = [int(k) for k in lm.tokenizer(text, add_special_tokens=False)["input_ids"]][:FIRST]
    ids = [k for k in ids if k not in end_ids(lm)]
    if len(ids) < LEAST:
        return None
    row = torch.tensor([[*before, *ids]], device=lm.device)
    logits = lm.model(row, use_cache=False).logits[0, len(before) - 1 : -1].float()
    chosen = torch.log_softmax(logits, -1).gather(1, row[0, len(before) :, None])
    return float(chosen.mean())
