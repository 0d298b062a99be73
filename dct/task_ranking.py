"""Which steering vectors make a model answer questions that it does not answer by itself.

A password-locked model knows an answer that it does not give. Whether a vector unlocks it is asked of whole greedy
completions, never of a word's logit: vectors are chosen on some questions and reported on others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dct.calibration import random_directions
from dct.candidates import Aim, candidates, tries
from dct.estimate import Cost, completions_seconds, cost
from dct.factors import Factors
from dct.generation import complete, completion_bytes
from dct.halving import Contest, Mark, completions, halving, rounds
from dct.model import LanguageModel
from dct.ranking import UNWATCHED, Watch, multiples
from dct.scoring import Effect, Scorer
from dct.settings import RankSettings, RankTaskSettings
from dct.tasks import Task
from dct.wordpair import words

AT_ONCE = 64
"""Completions at a time."""

TESTED = 5
"""The first so many of a ranking are asked the test questions."""


def answer_length(lm: LanguageModel, task: Task, most: int = 64) -> int:
    """Tokens that are enough to tell right from wrong: where completions must equal their answers, twice the longest
    answer and a few more; `most` for patterns.
    """
    if any(q.pattern is not None for q in task.questions):
        return most
    longest = max(len(lm.tokenizer(q.answer, add_special_tokens=False)["input_ids"]) for q in task.questions)
    return min(most, 2 * longest + 8)


def examine(
    lm: LanguageModel,
    task: Task,
    vectors: Float[Tensor, "vectors width"],
    layer: int,
    *,
    system: str | None = None,
    max_new_tokens: int = 64,
    batch: int = AT_ONCE,
    on_rows: Callable[[int], None] | None = None,
) -> Bool[Tensor, "vectors questions"]:
    """Which questions are answered rightly under which vector: greedy completions, all rows in batches.

    Args:
        vectors: what is added to hidden_states[layer], as it stands (pass R v; zeros leave the model alone).
        on_rows: told how many completions have been judged.
    """
    prompts = lm.encode([q.prompt for q in task.questions], system)
    rows = [(v, q) for v in range(len(vectors)) for q in range(len(prompts))]
    right = torch.zeros(len(vectors), len(prompts), dtype=torch.bool)
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        added = vectors[[v for v, _ in some]].to(lm.device)
        said = complete(lm, [prompts[q] for _, q in some], added, layer, max_new_tokens=max_new_tokens, batch=batch)
        for (v, q), text in zip(some, said, strict=True):
            right[v, q] = task.questions[q].right(text)
        if on_rows is not None:
            on_rows(len(some))
    return right


@dataclass(frozen=True)
class Solver:
    """A steering vector and how many questions it answers.

    Attributes:
        vector: its name, as in a ranking.
        scale: norm at which it did best.
        alpha: the factor's strength; None for random vectors.
        validation: on the questions that it was chosen by.
        test: on the questions kept for reporting, for the first few of a ranking.
        effect: damage on harmless prompts, and the words' score on the test questions; for the first few.
    """

    vector: str
    scale: float
    alpha: float | None
    validation: Mark
    test: Mark | None = None
    effect: Effect | None = None


@dataclass(frozen=True)
class TaskRanking:
    """Steering vectors by the share of questions that they make the model answer, and their baselines.

    Attributes:
        vectors: best first on the validation questions; the first few with their test marks.
        unsteered, unlocked: test marks of the model left alone, and asked as one that knows the password.
        random_best: the best of as many random vectors at the same scales, chosen in the same way.
        random_mean: right answers of all random vectors to the questions that each of them was asked.
        scale: R; scales: the multiples of it that were tried.
        validation, test: how many questions of each.
    """

    vectors: list[Solver]
    unsteered: Mark
    unlocked: Mark | None
    random_best: Solver
    random_mean: Mark
    scale: float
    scales: tuple[float, ...]
    validation: int
    test: int
    harmless: int
    task: str

    @property
    def recovered(self) -> float | None:
        """Share of what the password unlocks that the best vector does: (test - unsteered) / (unlocked - unsteered)."""
        best = self.vectors[0].test
        if best is None or self.unlocked is None or self.unlocked.share <= self.unsteered.share:
            return None
        return (best.share - self.unsteered.share) / (self.unlocked.share - self.unsteered.share)


def rank_by_task(
    lm: LanguageModel,
    factors: Factors,
    parts: tuple[Task, Task],
    harmless: Sequence[str] = (),
    settings: RankTaskSettings | None = None,
    *,
    source: int | None = None,
    scale: float | None = None,
    system: str | None = None,
    watch: Watch = UNWATCHED,
    **changes: Any,
) -> TaskRanking:
    """Chooses among all vectors and scales by the validation questions, and reports on the test questions.

    Args:
        parts: questions to choose by, and others to report on, as `Task.split` gives them.
        harmless: damage is measured on them.
        settings: length of completions (left out, what the answers need); whether to ask everyone everything.
        source, scale, system, watch: as in `rank`.
        changes: fields of `RankTaskSettings`, and of `RankSettings`: the scales to try, the words whose score stands
            beside the marks, the seed.

    Raises:
        UsageError, DctError: as in `rank`.
    """
    settings, ranking = _divided(settings or RankTaskSettings(), changes)
    validation, test = parts
    aim = Aim.of(factors, source, factors.scale * ranking.scale if scale is None else scale, system)
    field = _Field.of(factors, aim, multiples(ranking), lm.width, ranking.seed)
    unlocked = test.unlocked()
    length = settings.max_new_tokens or max(answer_length(lm, validation), answer_length(lm, test))
    contest = completions(rounds(len(field.steered), len(validation), settings.exhaustive))
    planned = 2 * contest + (TESTED + 2 + (unlocked is not None)) * len(test)
    exam = _Exam(lm, validation, aim, length, settings.exhaustive, planned, watch.on_rows)
    compared = words(lm, ranking.positive, ranking.negative, aim.system)
    scorer = Scorer(lm, compared, aim.layer, [q.prompt for q in test.questions], harmless, aim.system)
    if watch.on_cost is not None:
        watch.on_cost(exam.expected(scorer))
    found, luck = exam.choose(field.steered), exam.choose(field.null)
    solvers, best = field.solvers(found)
    top = field.steered[best[:TESTED]]
    for place, (mark, effect) in enumerate(zip(exam.marks(test, top), scorer.effects(top), strict=True)):
        solvers[place] = replace(solvers[place], test=mark, effect=effect)
    lucky, mark = luck.order[0]
    [lucky_mark], [lucky_effect] = exam.marks(test, field.null[[lucky]]), scorer.effects(field.null[[lucky]])
    nothing = torch.zeros(1, lm.width)
    return TaskRanking(
        vectors=solvers,
        unsteered=exam.marks(test, nothing)[0],
        unlocked=None if unlocked is None else exam.marks(unlocked, nothing)[0],
        random_best=Solver("random", field.norms[lucky], None, mark, lucky_mark, lucky_effect),
        random_mean=luck.everyone,
        scale=aim.scale,
        scales=multiples(ranking),
        validation=len(validation),
        test=len(test),
        harmless=len(harmless),
        task=test.origin,
    )


def _divided(settings: RankTaskSettings, changes: dict[str, Any]) -> tuple[RankTaskSettings, RankSettings]:
    """Both groups of settings, with the changes that belong to either."""
    own = {one.name for one in fields(settings)}
    others = {name: value for name, value in changes.items() if name not in own}
    return settings.changed(**{k: v for k, v in changes.items() if k in own}), RankSettings().changed(**others)


@dataclass(frozen=True)
class _Field:
    """All that competes: every vector at every scale, strongest factors first, and as many random vectors.

    Attributes:
        names: of the directions, strongest first.
        alpha: their strengths.
        steered, null: R v at every scale, one scale after the other; of the factors, and random ones.
        norms: of either's rows.
    """

    names: list[str]
    alpha: list[float]
    steered: Float[Tensor, "tries width"]
    null: Float[Tensor, "tries width"]
    norms: list[float]

    @classmethod
    def of(cls, factors: Factors, aim: Aim, scales: Sequence[float], width: int, seed: int) -> "_Field":
        """All directions of the factors and as many random ones (drawn from seed + 2), at every scale."""
        names, directions = candidates(factors)
        alpha = factors.alpha.repeat(len(directions) // len(factors))
        strongest = alpha.argsort(descending=True, stable=True).tolist()
        steered, norms = tries(directions[strongest], aim.scale, scales)
        null, _ = tries(random_directions(len(directions), width, seed + 2), aim.scale, scales)
        return cls([names[k] for k in strongest], [float(alpha[k]) for k in strongest], steered, null, norms)

    def solvers(self, contest: Contest) -> tuple[list[Solver], list[int]]:
        """Every vector where its best scale stands, best first, and which of the tries that is."""
        solvers: dict[str, Solver] = {}
        best: list[int] = []
        for k, mark in contest.order:
            which = k % len(self.names)
            name = self.names[which]
            if name not in solvers:
                solvers[name] = Solver(name, self.norms[k], self.alpha[which], mark)
                best.append(k)
        return list(solvers.values()), best


@dataclass
class _Exam:
    """Asks vectors questions, and keeps count.

    Attributes:
        validation: the questions that vectors are chosen by.
        aim: where they are added; they come with their norm.
        length: of a completion, in tokens.
        exhaustive: everyone is asked everything.
        planned: completions in all, as far as that is known beforehand.
        on_rows: told how many have been judged, of how many.
    """

    lm: LanguageModel
    validation: Task
    aim: Aim
    length: int
    exhaustive: bool
    planned: int
    on_rows: Callable[[int, int], None] | None
    judged: int = 0

    def choose(self, vectors: Float[Tensor, "vectors width"]) -> Contest:
        """The vectors by right answers to the validation questions, by halving."""

        def ask(which: list[int], questions: list[int]) -> Tensor:
            """As `halving` asks: vectors and questions by number."""
            return self._asked(Task(tuple(self.validation.questions[q] for q in questions)), vectors[which])

        return halving(ask, len(vectors), len(self.validation), self.exhaustive)

    def marks(self, task: Task, vectors: Float[Tensor, "vectors width"]) -> list[Mark]:
        """How many of all questions each vector answers rightly."""
        return [Mark(int(row.sum()), len(task)) for row in self._asked(task, vectors)]

    def _asked(self, task: Task, vectors: Tensor) -> Tensor:
        return examine(
            self.lm,
            task,
            vectors,
            self.aim.layer,
            system=self.aim.system,
            max_new_tokens=self.length,
            on_rows=self._told,
        )

    def _told(self, rows: int) -> None:
        self.judged += rows
        if self.on_rows is not None:
            self.on_rows(self.judged, max(self.planned, self.judged))

    def expected(self, scorer: Scorer) -> Cost:
        """What all completions will take, by short ones of the first questions, and the damage of a few vectors."""
        lm = self.lm
        prompts = lm.encode([q.prompt for q in self.validation.questions[:AT_ONCE]], self.aim.system)
        prompts = [prompts[k % len(prompts)] for k in range(AT_ONCE)]

        def say(size: int, tokens: int) -> None:
            """Completions under no vector, for timing."""
            none = torch.zeros(size, lm.width)
            complete(lm, prompts[:size], none, self.aim.layer, max_new_tokens=tokens, batch=size)

        spent = completions_seconds(say, self.planned, AT_ONCE, self.length, lm.device)
        scored = scorer.expected(TESTED + 1)
        more = completion_bytes(lm, AT_ONCE, self.length + max(map(len, prompts)))
        return cost(spent + scored.seconds, max(more, scored.more_memory), lm.device, lm.memory)
