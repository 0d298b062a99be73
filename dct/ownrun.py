"""What a model says of texts by its own run, whole and as it stands: for what a slice is not made for.

Texts of different lengths run together, padded behind: what a causal model reads at a token, later ones cannot change.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from dct.model import LanguageModel
from dct.perturbation import Site
from dct.steering import steer
from dct.wordpair import Words

NUMBERS = 64_000_000
"""Logits in memory at a time: texts that run together have no more, unless one alone has."""


@torch.no_grad()
def logits_of(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, Float[Tensor, "tokens vocab"]]]:
    """The number of each row with the logits behind each of its tokens, short rows first."""
    order = sorted(range(len(rows)), key=lambda k: len(rows[k]))
    while order:
        longest = len(rows[order[-1]])
        count = max(1, NUMBERS // (longest * lm.vocabulary))
        some, order = order[:count], order[count:]
        width = len(rows[some[-1]])
        padded = torch.tensor([[*rows[k], *[rows[k][-1]] * (width - len(rows[k]))] for k in some], device=lm.device)
        out = lm.model(padded, use_cache=False).logits
        for k, logits in zip(some, out, strict=True):
            yield k, logits[: len(rows[k])]


def next_logs(
    lm: LanguageModel, rows: Sequence[Sequence[int]], added: Tensor | None = None, layer: Site = 0
) -> Float[Tensor, "prompts vocabulary"]:
    """log p of the next token behind each row, under whatever `steer` takes as its vector."""
    with nullcontext() if added is None else steer(lm, added, layer):
        found = {k: torch.log_softmax(logits[-1].float(), -1).cpu() for k, logits in logits_of(lm, rows)}
    return torch.stack([found[k] for k in range(len(rows))])


def own_difference(
    lm: LanguageModel, words: Words, rows: Sequence[Sequence[int]], added: Tensor | None = None, layer: Site = 0
) -> list[float]:
    """log p(positive) - log p(negative) behind each row (see `scoring.Contrast`), in the same way."""
    both = []
    for ids in (words.positive, words.negative):
        texts = [[*row, *words.after, *ids[:-1]] for row in rows]
        token = torch.tensor(ids, device=lm.device)[:, None]
        with nullcontext() if added is None else steer(lm, added, layer):
            found = {
                k: float(torch.log_softmax(logits[-len(ids) :].float(), -1).gather(1, token.to(logits.device)).sum())
                for k, logits in logits_of(lm, texts)
            }
        both.append([found[k] for k in range(len(rows))])
    return [a - b for a, b in zip(*both, strict=True)]
