"""How likely the unsteered model finds a reply, beside its own replies: salad is far less likely than either."""

from collections.abc import Sequence
from statistics import median

import torch

from dct.generation import end_ids
from dct.judging import Reply
from dct.logits import tail_logits
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
        theirs = [(reply.prompt, reply.completion) for reply in replies]
        ours = [*(self._own or _own(beside))]
        self._read([*ours, *theirs])
        own = [self._found[pair] for pair in ours]
        usual = [value for value in own if value is not None]
        if not usual:
            return ["" for _ in replies]
        least = median(usual) - BOUND
        values = [self._found[pair] for pair in theirs]
        return [
            "" if v is None or v >= least else f"{least - v + BOUND:.1f} nats a token less likely than the model's own"
            for v in values
        ]

    def _read(self, pairs: Sequence[tuple[str, str]]) -> None:
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._found]
        self._found.update(zip(missing, mean_log_likelihoods(self.lm, missing), strict=True))


def _own(replies: Sequence[Reply]) -> dict[tuple[str, str], None]:
    """The model's own replies, each once."""
    return dict.fromkeys((reply.prompt, reply.unsteered) for reply in replies if reply.unsteered)


def mean_log_likelihoods(lm: LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
    """(1/n) sum_k log p(token k | prompt, tokens before it) of the first n tokens of each reply to its prompt; None
    where they are too few."""
    found: list[float | None] = [None] * len(pairs)
    rows: dict[int, tuple[list[int], list[int]]] = {}
    for k, (prompt, text) in enumerate(pairs):
        ids = [int(one) for one in lm.tokenizer(text, add_special_tokens=False)["input_ids"]][:FIRST]
        ids = [one for one in ids if one not in end_ids(lm)]
        if len(ids) >= LEAST:
            rows[k] = (lm.tokens(prompt), ids)
    places = list(rows)
    for place, logits in tail_logits(lm, list(rows.values())):
        _, ids = rows[places[place]]
        wide = logits.float()
        said = wide.gather(1, torch.tensor(ids, device=wide.device)[:, None])[:, 0]
        found[places[place]] = float((said - wide.logsumexp(1)).mean())
    return found
