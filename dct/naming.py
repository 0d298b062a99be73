"""Words for directions: the tokens that a steering vector makes likelier, those that what it causes points to, and the
words that what a model says under it is known by.

Every change is held against what random directions change, so that tokens do not win because they change easily, and
tokens that are hardly ever said are left out, so that they do not win by being rare.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.blocks import readout, readout_with_gradient
from dct.calibration import random_directions
from dct.derivatives import Derivatives
from dct.model import LanguageModel
from dct.nexttoken import NextTokens
from dct.slice import Slice

WORDS = 5
"""Tokens of each sort in a name."""

PLAUSIBLE = 1e-3
"""Mean probability that a token has, with the vector to be made likelier by it, without to be made less likely."""

STEP = 0.05
"""Of a stream's norm, by which it is moved to see where its logits go."""

MOST = 20.0
"""Nats by which a token's log-probability counts as changed, at most: one that is ruled out would count for all."""

TELLING = 2
"""Completions under a vector that hold a word, at least, for it to be one of those that these are known by."""

NULL = 32
"""Random directions that tell how easily a token's logit changes."""


@dataclass(frozen=True)
class Name:
    """Tokens as they are written, each once.

    Attributes:
        more: what becomes likelier, most of all first.
        less: what becomes less likely, most of all first.
    """

    more: tuple[str, ...]
    less: tuple[str, ...]


def vector_names(
    near: NextTokens,
    vectors: Float[Tensor, "vectors width"],
    null: Float[Tensor, "random width"],
    words: int = WORDS,
) -> list[Name]:
    """What vectors (as they stand: pass R v) do to the first token of a reply, in words.

        z(token) = D(token) / sqrt(s(token)^2 + median s^2)     D = mean_p (log q_p - log p_p)

    with p and q the next-token distributions without and with the vector behind each prompt, and s the standard
    deviation of D over random vectors as long.
    """

    def changed(logs: Float[Tensor, "batch prompts vocabulary"]) -> Float[Tensor, "batch vocabulary"]:
        """Mean change of the log-probability of each token; what is ruled out on both sides does not change."""
        return (logs - near.base).nan_to_num(0.0).clamp(-MOST, MOST).mean(1)

    spread = torch.cat(near.under(null, changed)).std(0)
    before = near.base.exp().mean(0)

    def named(logs: Float[Tensor, "batch prompts vocabulary"]) -> list[Name]:
        """The names of some vectors."""
        z = changed(logs) / _floored(spread)
        after = logs.exp().mean(1)
        return [
            Name(
                _tokens(near.lm, one.masked_fill(q < PLAUSIBLE, 0.0), words),
                _tokens(near.lm, -one.masked_fill(before < PLAUSIBLE, 0.0), words),
            )
            for one, q in zip(z, after, strict=True)
        ]

    return [name for part in near.under(vectors, named) for name in part]


def target_names(
    lm: LanguageModel,
    U: Float[Tensor, "factors width"],
    target: int,
    rows: Sequence[Sequence[int]],
    *,
    words: int = WORDS,
    seed: int = 0,
) -> list[Name]:
    """Which tokens directions at the target layer point to: one forward-mode product from there to the last block, and
    the logits that the model's own norm and head make of it,

        g(u) = mean_p |h_p| d logits(h_p + e w) / de at 0     w = J u / |J u|, J = d h_L / d h_t, mean over prompts

    (the derivative of norm and head by central differences of `STEP` norms), each logit centred over the vocabulary and
    in units of its spread over random directions.
    """
    null = random_directions(NULL, U.shape[1], seed + 3)
    both = normalize(torch.cat([null, U.float().cpu()]), dim=1)
    if target < lm.depth:
        slice_ = Slice(lm, rows, target, lm.depth, positions=1)
        streams, pushed = slice_.unsteered, Derivatives(slice_, lm.width).jvp(both.to(lm.device))
    else:
        slice_ = Slice(lm, rows, target - 1, target, positions=1)
        streams, pushed = slice_.unsteered, both.to(lm.device)
    moved = torch.cat([_logit_change(lm, streams, direction)[None] for direction in normalize(pushed, dim=1)])
    moved = moved - moved.mean(1, keepdim=True)
    z = moved[NULL:] / _floored(moved[:NULL].std(0))
    return [Name(_tokens(lm, one, words), _tokens(lm, -one, words)) for one in z]


def token_direction(
    lm: LanguageModel, token: int, target: int, rows: Sequence[Sequence[int]]
) -> Float[Tensor, " width"]:
    """The unit direction at the target layer that makes a token likelier: what `target_names` measures, from its other
    end,

        u = J' w / |J' w|     w = mean_p |h_p| d (logit(token) - mean logit) / dh at h_p     J = d h_L / d h_t

    so w is the token's row of the head less the mean row, through the derivative of the final norm.
    """
    first = min(target, lm.depth - 1)
    slice_ = Slice(lm, rows, first, lm.depth, positions=1)
    streams = slice_.unsteered.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = readout_with_gradient(lm, streams)
        possible = torch.isfinite(logits)
        centred = logits[:, token] - torch.where(possible, logits, 0.0).sum(1) / possible.sum(1)
        [slopes] = torch.autograd.grad(centred.sum(), streams)
    w = (slice_.unsteered.norm(dim=1, keepdim=True) * slopes).mean(0)
    return normalize(w if target == lm.depth else Derivatives(slice_, lm.width).vjp(w[None])[0], dim=0)


@torch.no_grad()
def _logit_change(
    lm: LanguageModel, streams: Float[Tensor, "prompts width"], direction: Float[Tensor, " width"]
) -> Float[Tensor, " vocabulary"]:
    step = STEP * streams.norm(dim=1, keepdim=True) * direction
    there, back = readout(lm, streams + step), readout(lm, streams - step)
    return ((there - back) / (2 * STEP)).nan_to_num(0.0).mean(0)


def _floored(spread: Float[Tensor, " vocabulary"]) -> Float[Tensor, " vocabulary"]:
    """A spread that few draws happen to have left tiny is taken for the usual one."""
    return (spread.square() + spread.median().square()).sqrt()


def _tokens(lm: LanguageModel, z: Float[Tensor, " vocabulary"], words: int) -> tuple[str, ...]:
    """The tokens of the highest positive z, as they are written; capitals and spaces make no second word."""
    found: dict[str, str] = {}
    for token in z.topk(min(len(z), 4 * words)).indices.tolist():
        if z[token] <= 0 or len(found) == words:
            break
        text = lm.decode([token])
        found.setdefault(text.strip().casefold() or repr(text), text.strip() or repr(text))
    return tuple(found.values())


def telling_words(
    said: Sequence[Sequence[str]], alone: Sequence[str], asked: Sequence[str], words: int = WORDS
) -> list[tuple[str, ...]]:
    """Words that what is said under each vector is known by: those that stand in `TELLING` of its completions or more,
    and in more of them than of the unsteered ones, by how much likelier it is there than in those of all other vectors,

        z = (logit p - logit q) / sqrt(1/c + 1/n + 1/C + 1/N)     p = c / (c + n), q = C / (C + N)

    with c of the vector's completions holding the word and n not, C and N of the others, a half added to each. Words
    of its own prompt do not count in a completion, nor how often it says a word.

    Args:
        said: completions of each vector, to each prompt in order.
        alone: the unsteered ones.
        asked: the prompts.
    """
    known = [set(_words(prompt)) for prompt in asked]
    sets = [[_words(text).keys() - own for text, own in zip(texts, known, strict=True)] for texts in (*said, alone)]
    held = [Counter(word for one in some for word in one) for some in sets]
    spelt = Counter[tuple[str, str]]()
    for texts in said:
        for text in texts:
            spelt.update(_words(text).items())
    total, unsteered, n = sum(held[:-1], Counter[str]()), held[-1], len(asked)

    def z(word: str, count: int) -> float:
        """How far beyond chance a word is a vector's own; nothing, where the unsteered model says it as much."""
        others, alone = total[word] - count, unsteered[word]
        own = _beyond(count, n - count, others, n * (len(said) - 1) - others)
        return own if _beyond(count, n - count, alone, n - alone) > 0 else 0.0

    found = []
    for counts in held[:-1]:
        scored = {word: z(word, count) for word, count in counts.items() if count >= TELLING}
        best = sorted((word for word in scored if scored[word] > 0), key=lambda word: (-scored[word], word))[:words]
        found.append(tuple(max((n, form) for (key, form), n in spelt.items() if key == word)[1] for word in best))
    return found


def _beyond(c: float, n: float, C: float, N: float) -> float:
    """The difference of two logits in units of its error."""
    c, n, C, N = (cell + 0.5 for cell in (c, n, C, N))
    return (math.log(c / n) - math.log(C / N)) / math.sqrt(1 / c + 1 / n + 1 / C + 1 / N)


def _words(text: str) -> dict[str, str]:
    """The words of a text, each once: without capitals -> as it is first written there."""
    found: dict[str, str] = {}
    for word in re.findall(r"[^\W\d_]{2,}(?:['’][^\W\d_]+)*", text):
        found.setdefault(word.casefold(), word)
    return found
