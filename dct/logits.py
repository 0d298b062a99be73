"""What a model says of texts by its own run, whole and as it stands: for what a slice is not made for.

Texts of different lengths run together, padded behind: what a causal model reads at a token, later ones cannot change.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dct import compat
from dct.batching import out_of_memory
from dct.model import LanguageModel
from dct.perturbation import Site
from dct.steering import steer
from dct.wordpair import Words

NUMBERS = 64_000_000
"""Logits in memory at a time: texts that run together have no more, unless one alone has."""


@torch.no_grad()
def text_logits(
    lm: LanguageModel, rows: Sequence[Sequence[int]]
) -> Iterator[tuple[int, Float[Tensor, "tokens vocab"]]]:
    """The number of each row with the logits behind each of its tokens, short rows first."""
    for some, padded in _batches(lm, rows):
        out = lm.model(padded, use_cache=False).logits
        for k, logits in zip(some, out, strict=True):
            yield k, logits[: len(rows[k])]


def _batches(
    lm: LanguageModel, rows: Sequence[Sequence[int]]
) -> Iterator[tuple[list[int], Int[Tensor, "some tokens"]]]:
    """Rows that run together: their numbers, and their tokens padded behind; short rows first."""
    order = sorted(range(len(rows)), key=lambda k: len(rows[k]))
    while order:
        longest = len(rows[order[-1]])
        count = max(1, NUMBERS // (longest * lm.vocabulary))
        some, order = order[:count], order[count:]
        width = len(rows[some[-1]])
        padded = [[*rows[k], *[rows[k][-1]] * (width - len(rows[k]))] for k in some]
        yield some, torch.tensor(padded, device=lm.device)


@torch.no_grad()
def tail_logits(
    lm: LanguageModel, texts: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Iterator[tuple[int, Float[Tensor, "tail vocab"]]]:
    """The number of each text, a head and a tail of one token or more, with the logits that foretell its tail.

    Texts with the same head run it once, where the model can go on from its keys and values (`shares_heads`).
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, (head, _) in enumerate(texts):
        groups.setdefault(tuple(head), []).append(k)
    shared = {head: some for head, some in groups.items() if len(some) > 1 and shares_heads(lm)}
    single = [k for head, some in groups.items() if head not in shared for k in some]
    for place, logits in text_logits(lm, [[*texts[k][0], *texts[k][1]] for k in single]):
        yield single[place], logits[-len(texts[single[place]][1]) - 1 : -1]
    for head, some in shared.items():
        for place, logits in _behind(lm, head, [texts[k][1] for k in some]):
            yield some[place], logits


def _behind(
    lm: LanguageModel, head: Sequence[int], tails: Sequence[Sequence[int]]
) -> Iterator[tuple[int, Float[Tensor, "tail vocab"]]]:
    """The logits that foretell each of some tails behind one head."""
    begun = lm.model(torch.tensor([list(head)], device=lm.device), use_cache=True)
    name, cache = compat.kept(begun)
    for some, padded in _batches(lm, tails):
        held = copy.deepcopy(cache)  # which a run adds to
        held.batch_repeat_interleave(len(some))
        out = lm.model(padded, use_cache=True, **{name: held}).logits
        for k, logits in zip(some, out, strict=True):
            yield k, torch.cat([begun.logits[0, -1:], logits[: len(tails[k]) - 1]])


@torch.no_grad()
def shares_heads(lm: LanguageModel) -> bool:
    """Whether a model says the same of texts behind the keys and values of their common head; found once, by logits."""
    if lm.shares_heads is None:
        head = [(7 * k + 1) % lm.vocabulary for k in range(6)]
        tails = [[(5 * k + n) % lm.vocabulary for k in range(n)] for n in (3, 4)]
        whole = dict(text_logits(lm, [[*head, *tail] for tail in tails]))
        try:
            parts = dict(_behind(lm, head, tails))
        except Exception as error:  # a cache of any architecture may object in its own way
            if out_of_memory(error):
                raise
            parts = {}
        seen = [(whole[k][-len(tails[k]) - 1 : -1].float(), parts[k].float()) for k in parts]
        bound = max(1e-3, 16 * torch.finfo(lm.dtype).eps)
        lm.shares_heads = bool(parts) and all(
            a.shape == b.shape and bool(((a - b).abs() <= bound * a.abs().max()).all()) for a, b in seen
        )
    return lm.shares_heads


def next_logs(
    lm: LanguageModel, rows: Sequence[Sequence[int]], added: Tensor | None = None, layer: Site = 0
) -> Float[Tensor, "prompts vocabulary"]:
    """log p of the next token behind each row, under whatever `steer` takes as its vector."""
    with nullcontext() if added is None else steer(lm, added, layer):
        found = {k: torch.log_softmax(logits[-1].float(), -1).cpu() for k, logits in text_logits(lm, rows)}
    return torch.stack([found[k] for k in range(len(rows))])


def own_difference(
    lm: LanguageModel, words: Words, rows: Sequence[Sequence[int]], added: Tensor | None = None, layer: Site = 0
) -> list[float]:
    """log p(positive) - log p(negative) behind each row (see `scoring.Contrast`), in the same way."""
    acting = nullcontext() if added is None else steer(lm, added, layer)
    if words.single:  # of one pass, since what all tokens have in common falls out
        asked = [[*row, *words.after] for row in rows]
        with acting:
            last = {k: logits[-1, [*words.positive, *words.negative]].float() for k, logits in text_logits(lm, asked)}
        return [float(last[k][0] - last[k][1]) for k in range(len(rows))]
    both = []
    with acting:
        for ids in (words.positive, words.negative):
            texts = [[*row, *words.after, *ids[:-1]] for row in rows]
            token = torch.tensor(ids, device=lm.device)[:, None]
            found = {
                k: float(torch.log_softmax(logits[-len(ids) :].float(), -1).gather(1, token.to(logits.device)).sum())
                for k, logits in text_logits(lm, texts)
            }
            both.append([found[k] for k in range(len(rows))])
    return [a - b for a, b in zip(*both, strict=True)]
