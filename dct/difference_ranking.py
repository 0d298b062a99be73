"""Which vectors of a difference say what a training changed: those that make model A say what B, with the same vector,
would not.

Every vector is screened by the first token of a reply; the best are heard: A replies under them, and both models say
how likely they find that. As many random vectors go the same way, and so do two baselines without any vector of the
fit: the models left alone, and the difference of their unsteered streams.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dct.batching import in_batches
from dct.calibration import random_directions
from dct.candidates import Aim, candidates, tries
from dct.difference import comparable
from dct.estimate import cost
from dct.factors import Factors
from dct.journal import Journal
from dct.judging import Reply, judge
from dct.logits import text_logits
from dct.model import LanguageModel
from dct.naming import telling_words
from dct.nexttoken import NextTokens
from dct.perturbation import Site
from dct.ranking import UNWATCHED, Watch, multiples
from dct.replies import UNSTEERED, Push, Replies
from dct.scoring import direction_between, divergence
from dct.settings import RankSettings, SelectSettings
from dct.steering import steer

LENGTH = 32
"""Tokens of a reply, at most, where nothing is said of it."""

STREAMS = "streams"
"""What the difference of the unsteered streams is called."""

PLAIN = 0.005
"""Probability by which a token is likelier in A, at least, to be named."""


@dataclass(frozen=True)
class Parted:
    """A vector, and how far apart the models are under it.

    Attributes:
        vector: its name.
        alpha: the factor's strength; 0 of what is no factor.
        scale: norm at which it was added.
        first: KL(A || B) of the first token of a reply, both under the vector, in nats, mean over prompts.
        damage: KL(A alone || A under the vector) on harmless prompts; None where there are none.
        nats: mean over prompts of log p_A(y) - log p_B(y), y A's reply under the vector and both under the vector, an
            incoherent one counting 0: an estimate of the KL of whole replies. None where it was not heard.
        coherent: how many of the replies are.
        prompt, own, other: where they part most: the prompt, A's reply and B's under the vector.
        says: words that A's replies are known by.
    """

    vector: str
    alpha: float
    scale: float
    first: float
    damage: float | None
    nats: float | None = None
    coherent: int = 0
    prompt: str = ""
    own: str = ""
    other: str = ""
    says: tuple[str, ...] = ()


@dataclass(frozen=True)
class Apart:
    """The vectors of a difference, those first under which A says most of what B would not, and their baselines.

    Attributes:
        vectors: those that were heard, by `nats`, then the others, by `first`.
        unsteered: the models left alone.
        streams: the unit difference of their unsteered streams at the source, A's minus B's, as a vector; None where
            there is none.
        random: as many random vectors, in the same order.
        more: tokens that A, left alone, likes better than B as the first of a reply.
        scale: R.
        prompts, harmless: how many of each.
        max_new_tokens: of a reply.
        scales: the multiples of R that were tried.
    """

    vectors: list[Parted]
    unsteered: Parted
    streams: Parted | None
    random: list[Parted]
    more: tuple[str, ...]
    scale: float
    prompts: int
    harmless: int
    max_new_tokens: int
    scales: tuple[float, ...]


def apart(
    lm: LanguageModel,
    minus: LanguageModel,
    factors: Factors,
    prompts: Sequence[str],
    harmless: Sequence[str] = (),
    options: RankSettings | None = None,
    experiment: SelectSettings | None = None,
    *,
    system: str | None = None,
    journal: Journal | None = None,
    watch: Watch = UNWATCHED,
) -> Apart:
    """Orders the vectors of a difference.

    Args:
        lm, minus: A and B.
        prompts: that are replied to; best taken from outside the prompts of the fit.
        harmless: where damage is measured.
        options: `scale` and `scales` of the vectors, `seed` of the random ones; a vector keeps its best scale.
        experiment: how many vectors to `keep` for hearing, and the length of a reply.
        system: system message; left out, the one of the fit.
        journal: where A's replies are kept.

    Raises:
        DctError: the models are not of one shape; as in `LanguageModel.encode`.
    """
    options, experiment = options or RankSettings(), experiment or SelectSettings()
    comparable(lm, minus)
    aim = Aim.of(factors, scale=factors.scale * options.scale, system=system)
    pair = Pair(lm, minus, aim, prompts, harmless)
    replies = Replies(lm, experiment.max_new_tokens or LENGTH, system=aim.system, journal=journal)
    names, directions = candidates(factors)
    alpha = factors.alpha.repeat(len(directions) // len(factors)).tolist()
    drawn = random_directions(len(directions), lm.width, options.seed + 2)
    scales = multiples(options)
    watch.stage("first tokens")
    found = pair.screened(names, directions, scales)
    null = pair.screened([f"random {k}" for k in range(len(drawn))], drawn, scales)
    means = pair.streams_apart()
    beside = [] if means is None else pair.screened([STREAMS], means[None], scales)
    [alone] = pair.screened([UNSTEERED], torch.zeros(1, lm.width), (1.0,))
    beside.append(Try(replace(alone.told, scale=0.0), alone.added))
    asked = [*_kept(found, experiment.keep), *_kept(null, experiment.keep), *beside]
    watch.cost(lambda: cost(*replies.expected(prompts, len(asked) * len(prompts)), lm.device, lm.memory))
    watch.stage("replies")
    heard = _heard(pair, replies, asked, watch)
    baselines = {one.vector: one for one in _in_order(beside, heard)}
    return Apart(
        vectors=[replace(one, alpha=alpha[names.index(one.vector)]) for one in _in_order(found, heard)],
        unsteered=baselines[UNSTEERED],
        streams=baselines.get(STREAMS),
        random=_in_order(null, heard),
        more=pair.more(),
        scale=aim.scale,
        prompts=len(prompts),
        harmless=len(harmless),
        max_new_tokens=replies.length,
        scales=scales,
    )


class Try(NamedTuple):
    """A vector at one of its scales."""

    told: Parted
    added: Float[Tensor, " width"]

    @property
    def key(self) -> tuple[str, float]:
        """Its name and its scale."""
        return self.told.vector, self.told.scale


class Pair:
    """Two models under the same vectors, behind the same tokens.

    Args:
        lm, minus: A and B.
        aim: where vectors are added.
        prompts, harmless: replied to; damage is measured on the second.
    """

    def __init__(
        self, lm: LanguageModel, minus: LanguageModel, aim: Aim, prompts: Sequence[str], harmless: Sequence[str]
    ) -> None:
        self.lm, self.minus, self.aim, self.prompts = lm, minus, aim, list(prompts)
        self.rows = lm.encode(prompts, aim.system)
        comparable(lm, minus, self.rows)
        self.own, self.other = (NextTokens(one, aim.layer, self.rows) for one in (lm, minus))
        self.mild = NextTokens(lm, aim.layer, lm.encode(harmless, aim.system)) if harmless else None
        self.both = min(lm.vocabulary, minus.vocabulary)

    def screened(
        self, names: Sequence[str], directions: Float[Tensor, "vectors width"], scales: tuple[float, ...]
    ) -> list[Try]:
        """Every direction at every multiple of R, with KL(A || B) of the first token and A's damage."""
        vectors, norms = tries(directions.cpu().float(), self.aim.scale, scales)
        first = self.first(vectors)
        damage: list[float | None] = [None] * len(vectors)
        if self.mild is not None:
            base, logs = self.mild.base, self.mild.under
            damage = torch.cat(logs(vectors, lambda after: divergence(base, after).cpu())).tolist()
        told = zip(list(names) * len(scales), norms, first, damage, vectors, strict=True)
        return [Try(Parted(name, 0.0, norm, apart, harm), added) for name, norm, apart, harm, added in told]

    def first(self, vectors: Float[Tensor, "vectors width"]) -> list[float]:
        """KL(A || B) of the first token under each vector, in nats, mean over prompts."""

        def rows(start: int, stop: int) -> Tensor:
            theta = vectors[start:stop].to(self.lm.device)
            own, other = (self._shared(near.logs(theta.to(near.lm.device))) for near in (self.own, self.other))
            return divergence(own, other.to(own.device)).cpu()

        batch = max(1, min(near.slice.value_batch for near in (self.own, self.other)))
        parts, _ = in_batches(rows, len(vectors), batch, self.lm.device, "fewer prompts (`n`)")
        found: list[float] = torch.cat(parts).tolist()
        return found

    def more(self) -> tuple[str, ...]:
        """The tokens that A, left alone, likes better than B as the first of a reply, by how much."""
        own, other = (self._shared(near.base).exp().mean(0).cpu() for near in (self.own, self.other))
        gained = own - other
        top = gained.topk(5).indices.tolist()
        return tuple(self.lm.decode([k]).strip() or repr(self.lm.decode([k])) for k in top if gained[k] >= PLAIN)

    def streams_apart(self) -> Float[Tensor, " width"] | None:
        """Unit mean of h_A - h_B, of the unsteered streams that enter the source; None where they are the same."""
        own, other = self.own.slice, self.other.slice
        last = own.last_entering().cpu(), other.last_entering().cpu()
        mean = own.mean_entering().cpu(), other.mean_entering().cpu()
        found = direction_between(last, mean, own.residual_norm)
        return found if float(found.norm()) > 0 else None

    @torch.no_grad()
    def nats(self, added: Float[Tensor, " width"], texts: Sequence[str]) -> list[float]:
        """log p_A(y) - log p_B(y) of a reply y to each prompt, both models under the vector."""
        rows = [self.lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        ids = [[k for k in row if k < self.both] for row in rows]
        own, other = (self._likelihood(lm, added, ids) for lm in (self.lm, self.minus))
        return [a - b for a, b in zip(own, other, strict=True)]

    def _likelihood(self, lm: LanguageModel, added: Tensor, ids: Sequence[Sequence[int]]) -> list[float]:
        """sum_k log p(token k | prompt, tokens before it) under the vector; 0 of an empty reply."""
        texts = [[*row, *said] for row, said in zip(self.rows, ids, strict=True)]
        found = [0.0] * len(texts)
        with steer(lm, added.to(lm.device), self.aim.layer):
            for k, logits in text_logits(lm, texts):
                said = torch.tensor(ids[k], dtype=torch.long, device=logits.device)[:, None]
                before = logits[len(self.rows[k]) - 1 : -1].float()
                found[k] = float(torch.log_softmax(before[:, : self.both], -1).gather(1, said).sum())
        return found

    def _shared(self, logs: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch shared"]:
        """The part of the vocabulary that both models have."""
        return torch.log_softmax(logs[..., : self.both].float(), -1)


def _kept(tried: Sequence[Try], keep: int) -> list[Try]:
    """All tries of the vectors that part the models most at the first token."""
    best: dict[str, float] = {}
    for one in tried:
        best[one.told.vector] = max(one.told.first, best.get(one.told.vector, 0.0))
    names = set(sorted(best, key=lambda name: -best[name])[:keep])
    return [one for one in tried if one.told.vector in names]


def _heard(pair: Pair, replies: Replies, asked: Sequence[Try], watch: Watch) -> dict[tuple[str, float], Parted]:
    """What A says in each try, and how far B is from saying it; B's own reply where they part most."""
    n, alone = len(pair.prompts), replies.said([(None, prompt) for prompt in pair.prompts])
    reader = judge("refusal")
    reader.learn([Reply(prompt, text, text) for prompt, text in zip(pair.prompts, alone, strict=True)])
    said: list[list[str]] = []
    told: list[Parted] = []
    for k, one in enumerate(asked):
        push = _push(pair.aim.layer, one)
        texts = replies.said([(push, prompt) for prompt in pair.prompts])
        read = [Reply(*three) for three in zip(pair.prompts, texts, alone, strict=True)]
        sound = [verdict.coherent for verdict in reader.verdicts(read)]
        nats = [x if good else 0.0 for x, good in zip(pair.nats(one.added, texts), sound, strict=True)]
        most = max(range(n), key=lambda p: nats[p])
        mean = sum(nats) / n
        told.append(replace(one.told, nats=mean, coherent=sum(sound), prompt=pair.prompts[most], own=texts[most]))
        said.append(texts)
        if watch.on_rows is not None:
            watch.on_rows(n * (k + 1), n * len(asked))
    theirs = Replies(pair.minus, replies.length, system=pair.aim.system)
    for prompt in pair.prompts:  # B reads A's tokens, whatever its own chat template is
        theirs.reads(prompt, replies.ids(prompt))
    others = theirs.said([(_push(pair.aim.layer, one), now.prompt) for one, now in zip(asked, told, strict=True)])
    words = telling_words(said, alone, pair.prompts)
    whole = zip(asked, told, others, words, strict=True)
    return {one.key: replace(now, other=other, says=word) for one, now, other, word in whole}


def _push(layer: Site, one: Try) -> Push | None:
    return Push(layer, one.added, one.told.vector, one.told.scale) if one.told.vector != UNSTEERED else None


def _in_order(tried: Sequence[Try], heard: dict[tuple[str, float], Parted]) -> list[Parted]:
    """Each vector once, at its best scale: those that were heard by `nats`, then the others by the first token."""
    order = sorted(
        (heard.get(one.key, one.told) for one in tried),
        key=lambda one: (one.nats is None, -(one.first if one.nats is None else one.nats)),
    )
    best: dict[str, Parted] = {}
    for one in order:
        best.setdefault(one.vector, one)
    return list(best.values())
