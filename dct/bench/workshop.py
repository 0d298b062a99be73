"""What experiments share: fits, scores and completions, each done once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dct.bench.records import Records, key_of
from dct.bench.subject import Judge, Sizes, Split, Subject, split
from dct.calibration import default_calibration, random_directions
from dct.estimate import clocked
from dct.factors import Factors
from dct.fitting import fit, work
from dct.generation import complete
from dct.method import method as registered
from dct.scoring import Effect, Reading, Scorer
from dct.settings import FitSettings
from dct.slice import Slice
from dct.wordpair import Words, words

METHODS = ("exponential", "quadratic", "linear-projected", "linear", "melbo")
"""The fits that are compared."""

PASSES = {"value": 1, "jvp": 3, "vjp": 3, "value_and_gradient": 3, "second": 8, "second_transposed": 8}
"""What a row costs, in passes."""

LEARNT = 32
"""Prompts of each kind to which a judge that learns hears the unsteered model reply."""

KEPT = 3
"""Scorers that are kept: those of a validation set, a test set, and one layer more."""


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        experiment: whose.
        settings: all that decides it beside the subject; JSON types.
        cost: rough share of the work, in passes of one token through one block.
    """

    experiment: str
    settings: dict[str, Any]
    cost: float

    @property
    def name(self) -> str:
        """The settings in words, sizes left out: what a progress bar says."""
        shown = (f"{k} {v}" if isinstance(v, int) else str(v) for k, v in self.settings.items() if k != "sizes")
        return ", ".join(shown)


@dataclass(frozen=True)
class Ranked:
    """Directions by what they do.

    Attributes:
        order: best first.
        effects: of each, in their own order.
    """

    order: list[int]
    effects: list[Effect]


@dataclass(frozen=True)
class Result:
    """A cell and what was measured."""

    settings: dict[str, Any]
    result: dict[str, Any]
    seconds: float


@dataclass
class Workshop:
    """A subject, how much of everything, what is on record, and the scorers used last."""

    subject: Subject
    sizes: Sizes
    records: Records
    kept: dict[Any, Scorer] = field(default_factory=dict, repr=False)

    def split(self, shuffle: int = 0) -> Split:
        """The subject's prompts in one of their shuffles, divided for training, choosing and testing."""
        return split(self.subject, self.sizes, shuffle)

    def keep_rendered(self) -> None:
        """Lets prompts be the tokens that they were when the benchmark was begun, where the chat template reads the
        clock: an experiment that goes on another day measures on the same."""
        s = self.subject
        if not s.lm.chat.render(s.harmful[0], s.system).changing:
            return
        tasks = [t for t in (s.task, s.task and s.task.unlocked()) if t is not None]
        asked = [*s.harmful, *s.harmless, *(q.prompt for t in tasks for q in t.questions)]
        key = key_of({"subject": s.identity, "rendered": asked})
        found = self.records.load("rendered", key)
        rows = found["result"]["ids"] if found is not None else s.lm.encode(asked, s.system)
        if found is None:
            self.records.save("rendered", key, {"prompts": len(asked)}, {"ids": rows}, 0.0)
        s.lm.keep(asked, rows, s.system)

    @property
    def d(self) -> int:
        """Width of the residual stream."""
        return self.subject.lm.width

    @cached_property
    def words(self) -> Words:
        """The two words whose logits are scores."""
        return words(self.subject.lm, *self.subject.words, self.subject.system)

    def slice(self, prompts: Sequence[str]) -> Slice:
        """The map between the subject's layers on these prompts."""
        s = self.subject
        return Slice(s.lm, list(prompts), s.source, s.target, system=s.system)

    @cached_property
    def scale(self) -> float:
        """R, calibrated once for all fits on the first training prompts, as the post does."""
        s = self.subject
        if s.scale is not None:
            return s.scale
        slice_ = self.slice(self.split().train[: self.sizes.fitted])
        return default_calibration(slice_, slice_.dim, s.ratio, seed=s.seed).scale

    def factors_of(self, method: str, vectors: int) -> int:
        """Factors to learn for so many steering vectors: half where v and -v are both tried; where vectors are found
        one after another, as many as the passes of the exponential fit pay for.
        """
        how = registered(method)
        if how.step == "vector":
            return max(1, vectors * (self.sizes.iterations + 1) // (self.sizes.melbo_steps + 1))
        return vectors if how.signed else max(1, vectors // 2)

    def steps_of(self, method: str, iterations: int = 0) -> int:
        """Iterations of a fit, or gradient steps of each vector where they are found one after another."""
        return iterations or (self.sizes.melbo_steps if registered(method).step == "vector" else self.sizes.iterations)

    def fit(self, method: str, prompts: Sequence[str], vectors: int, seed: int = 0, iterations: int = 0) -> Factors:
        """The factors of a fit, from the records or fitted now."""
        steps = self.steps_of(method, iterations)
        m = self.factors_of(method, vectors)
        settings = {
            "method": method,
            "m": m,
            "steps": steps,
            "seed": seed,
            "scale": self.scale,
            "prompts": list(prompts),
        }
        key = key_of({"subject": self.subject.identity, "fit": settings})
        found = self.records.load_fit(key)
        if found is None:
            found = fit(
                self.slice(prompts),
                self.d,
                method=method,
                factors=m,
                scale=self.scale,
                iterations=steps,
                seed=self.subject.seed + seed,
            )
            self.records.save_fit(key, found)
        return found

    def scorer(self, prompts: Sequence[str], harmless: Sequence[str] = (), layer: int | None = None) -> Scorer:
        """Scores of the model as it is loaded; those used last are kept, since cells come in the order of their
        prompts and every prompt has to be run once to make one.
        """
        key = (tuple(prompts), tuple(harmless), layer)
        found = self.kept.pop(key, None) or self.fresh_scorer(prompts, harmless, layer)
        self.kept[key] = found
        while len(self.kept) > KEPT:
            self.kept.pop(next(iter(self.kept)))
        return found

    def reading(self, prompts: Sequence[str], harmless: Sequence[str]) -> Reading:
        """What the model says as it is now, edited perhaps."""
        return Reading.of(self.subject.lm, self.words, prompts, harmless, self.subject.system)

    def fresh_scorer(self, prompts: Sequence[str], harmless: Sequence[str] = (), layer: int | None = None) -> Scorer:
        """A scorer that is not kept."""
        s = self.subject
        return Scorer(s.lm, self.words, s.source if layer is None else layer, list(prompts), list(harmless), s.system)

    def ranked(self, directions: Float[Tensor, "n d"], prompts: Sequence[str]) -> Ranked:
        """Directions at R by what they do on prompts: by their score or, where the truth is not planted, by how many
        refusals among a few prompts they turn into compliance, ties by score."""
        effects = self.scorer(prompts).effects(self.scale * directions)
        turned = [0] * len(effects)
        if self.subject.judge is not None and not self.subject.judge.planted:
            asked = self.refused(prompts)[: 2 * self.sizes.probes]
            classes = self.classes(asked, self.scale * directions) if asked else [[] for _ in effects]
            turned = [row.count(self.subject.judge.compliance) for row in classes]
        order = sorted(range(len(effects)), key=lambda k: (-turned[k], -effects[k].score))
        return Ranked(order, effects)

    @cached_property
    def reference(self) -> tuple[Factors, Ranked]:
        """The exponential fit that other experiments look into, its vectors ranked on the validation prompts."""
        parts = self.split()
        factors = self.fit("exponential", parts.train[: self.sizes.fitted], self.sizes.factors)
        return factors, self.ranked(factors.V, parts.validation)

    def said(
        self, prompts: Sequence[str], vectors: Float[Tensor, "vectors d"], layer: int | None = None
    ) -> list[list[str]]:
        """Completions of every prompt under every vector (as it stands), vector by vector."""
        s = self.subject
        ids = s.lm.encode(list(prompts), s.system) * len(vectors)
        rows = vectors.repeat_interleave(len(prompts), dim=0).to(s.lm.device)
        at = s.source if layer is None else layer
        texts = complete(s.lm, ids, rows, at, max_new_tokens=self.sizes.tokens)
        return [texts[k : k + len(prompts)] for k in range(0, len(texts), len(prompts))]

    def classes(
        self, prompts: Sequence[str], vectors: Float[Tensor, "vectors d"], layer: int | None = None
    ) -> list[list[str]]:
        """What the judge calls them."""
        said = self.said(prompts, vectors, layer)
        read = self.judge.read([*prompts] * len(said), [text for row in said for text in row])
        return [read[k : k + len(prompts)] for k in range(0, len(read), len(prompts))]

    @cached_property
    def judge(self) -> Judge:
        """The judge, who has heard what the model says to some prompts, from the records or now."""
        s = self.subject
        assert s.judge is not None
        if not s.judge.planted:
            prompts = [*s.harmful[:LEARNT], *s.harmless[:LEARNT]]
            key = key_of({"subject": s.identity, "tokens": self.sizes.tokens, "said": prompts})
            found = self.records.load("said", key)
            texts = found["result"]["texts"] if found is not None else self.said(prompts, torch.zeros(1, self.d))[0]
            if found is None:
                self.records.save("said", key, {"prompts": len(prompts)}, {"texts": texts}, 0.0)
            s.judge.learn(dict(zip(prompts, texts, strict=True)))
        return s.judge

    def unsteered(self, prompts: Sequence[str]) -> list[str]:
        """Classes of the model left alone, from the records or asked now."""
        key = key_of({"subject": self.subject.identity, "tokens": self.sizes.tokens, "unsteered": list(prompts)})
        found = self.records.load("unsteered", key)
        if found is None:
            classes = self.classes(prompts, torch.zeros(1, self.d))[0]
            self.records.save("unsteered", key, {"prompts": len(prompts)}, {"classes": classes}, 0.0)
            return classes
        return list(found["result"]["classes"])

    def refused(self, prompts: Sequence[str]) -> list[str]:
        """Those of the prompts that the model, left alone, refuses."""
        judge = self.subject.judge
        assert judge is not None
        return [p for p, c in zip(prompts, self.unsteered(prompts), strict=True) if c == judge.refusal]

    def turned(self, prompts: Sequence[str], vector: Float[Tensor, " d"], layer: int | None = None) -> dict[str, int]:
        """How many of the refusals among the prompts a vector turns into compliance, by whole completions."""
        judge, asked = self.subject.judge, self.refused(prompts)
        assert judge is not None
        got = self.classes(asked, vector[None], layer)[0] if asked else []
        return {"refusals": len(asked), "turned": got.count(judge.compliance)}

    # --- rough costs, in passes of one token through one block ---

    @cached_property
    def tokens(self) -> float:
        """Tokens of a prompt, on average."""
        few = self.subject.harmful[:16]
        return sum(map(len, self.subject.lm.encode(few, self.subject.system))) / len(few)

    def fit_cost(self, method: str, n: int, vectors: int, iterations: int = 0) -> float:
        """Of a fit on n prompts."""
        m, steps = self.factors_of(method, vectors), self.steps_of(method, iterations)
        rows = work(FitSettings(method=method, factors=m, iterations=steps), self.d)
        passes = sum(PASSES[kind] * count for kind, count in rows.items())
        return passes * n * self.tokens * (self.subject.target - self.subject.source)

    def score_cost(self, vectors: int, prompts: int) -> float:
        """Of scores: vectors * prompts * tokens, through the blocks above the source layer."""
        return vectors * prompts * self.tokens * (self.subject.lm.depth - self.subject.source)

    def read_cost(self, prompts: int) -> float:
        """Of reading so many prompts once: prompts * tokens, through all blocks."""
        return prompts * self.tokens * self.subject.lm.depth

    def choice_cost(self, vectors: int) -> float:
        """Of ranking so many vectors on the validation prompts."""
        judged = self.subject.judge is not None and not self.subject.judge.planted
        return self.score_cost(vectors, self.sizes.validation) + judged * self.said_cost(
            2 * self.sizes.probes * vectors
        )

    def said_cost(self, completions: int) -> float:
        """Of completions: tokens that come one by one cost several times what they do in a row."""
        return completions * self.subject.lm.depth * (self.tokens + 6 * min(self.sizes.tokens, 24))

    def unit(self) -> tuple[float, int]:
        """Seconds that a unit of these costs takes here, by a few scores and completions; bytes that they ask for."""
        lm, some = self.subject.lm, list(self.split().validation[:8])
        scorer = self.fresh_scorer(some, (), None)
        vectors = random_directions(min(8, scorer.batch), lm.width, 0)
        ids, tokens = lm.encode(some, self.subject.system), min(self.sizes.tokens, 8)

        def few() -> None:
            """One round of scores and one of completions."""
            scorer.effects(vectors)
            complete(lm, ids, max_new_tokens=tokens)

        few()  # what only a first call bears
        seconds = clocked(few, lm.device)
        read, said = len(some) * self.tokens, len(some) * tokens
        units = self.score_cost(len(vectors), len(some)) + lm.depth * (read + 6 * said)
        return seconds / units, scorer.batch * scorer.row_bytes

    def key(self, cell: Cell) -> str:
        """What the record of a cell is filed under."""
        sizes = asdict(self.sizes)
        # What decides how many cells there are does not decide what one of them measures.
        for plural in ("n", "shuffles", "top", "widths", "scales"):
            sizes.pop(plural)
        sizes["train"] = max(*self.sizes.n, self.sizes.fitted)
        return key_of({"subject": self.subject.identity, "sizes": sizes, "cell": [cell.experiment, cell.settings]})
