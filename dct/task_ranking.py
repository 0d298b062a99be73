"""Which steering vectors make a model answer questions that it does not answer by itself.

A password-locked model knows an answer that it does not give. Whether a vector unlocks it is asked of whole greedy
completions, never of a word's logit: vectors are chosen on some questions and reported on others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dct.candidates import Aim, candidates, tries
from dct.estimate import Cost, cost
from dct.exam import Exam, Tally
from dct.factors import Factors
from dct.halving import Contest, Mark, completions, rounds
from dct.model import LanguageModel
from dct.openings import SORRY, SURE, chosen_words
from dct.perturbation import Site, at
from dct.ranking import UNWATCHED, Watch, multiples
from dct.replies import Push, Replies
from dct.scoring import Effect, Scorer
from dct.settings import ContestSettings, RankSettings
from dct.tasks import Question, Task

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
    layer: Site,
    *,
    system: str | None = None,
    max_new_tokens: int = 64,
    batch: int | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Bool[Tensor, "vectors questions"]:
    """Which questions are answered rightly under which vector: greedy completions, all rows in batches.

    Args:
        vectors: what is added to hidden_states[layer], as it stands (pass R v; zeros leave the model alone).
        batch: completions at a time; left out, see `dct.replies.at_once`.
        on_rows: told how many completions have been judged.
    """
    exam = _exam(Replies(lm, max_new_tokens, system=system, batch=batch, on_rows=on_rows))
    return exam.asked([Push(layer, vector) for vector in vectors.cpu()], task.questions)


def _exam(replies: Replies, exhaustive: bool = False) -> Exam[Question]:
    """Questions that know their answers."""

    def right(questions: Sequence[Question], texts: Sequence[str]) -> list[bool]:
        """Which texts answer their questions."""
        return [question.right(text) for question, text in zip(questions, texts, strict=True)]

    return Exam(replies, lambda question: question.prompt, right, exhaustive)


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
    settings: ContestSettings | None = None,
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
        changes: fields of `ContestSettings`, and of `RankSettings`: the scales to try, the words whose score stands
            beside the marks, the seed.

    Raises:
        UsageError, DctError: as in `rank`.
    """
    settings, ranking = divided(settings or ContestSettings(), changes)
    validation, test = parts
    aim = Aim.of(factors, source, factors.scale * ranking.scale if scale is None else scale, system)
    field = _Field.of(factors, aim, multiples(ranking), lm.width, ranking.seed)
    unlocked = test.unlocked()
    length = settings.max_new_tokens or max(answer_length(lm, validation), answer_length(lm, test))
    contest = completions(rounds(len(field.steered), len(validation), settings.exhaustive))
    planned = 2 * contest + (TESTED + 2 + (unlocked is not None)) * len(test)
    replies = Replies(lm, length, system=aim.system, on_rows=Tally(planned, watch.on_rows))
    exam = _exam(replies, settings.exhaustive)
    scorer = _scorer(lm, test, harmless, aim, ranking)
    watch.cost(lambda: _expected(replies, validation, planned, scorer))
    found = exam.choose(field.pushes(field.steered), validation.questions)
    luck = exam.choose(field.pushes(field.null), validation.questions)
    solvers, best = field.solvers(found)
    lucky, mark = luck.order[0]
    top, chance = field.steered[best[:TESTED]], field.null[[lucky]]
    marks = exam.marks([*field.pushes(top), *field.pushes(chance), None], test.questions)
    effects = scorer.effects(torch.cat([top, chance]))
    for place, (tested, effect) in enumerate(zip(marks[: len(top)], effects[: len(top)], strict=True)):
        solvers[place] = replace(solvers[place], test=tested, effect=effect)
    return TaskRanking(
        vectors=solvers,
        unsteered=marks[-1],
        unlocked=None if unlocked is None else exam.marks([None], unlocked.questions)[0],
        random_best=Solver("random", field.norms[lucky], None, mark, marks[-2], effects[-1]),
        random_mean=luck.everyone,
        scale=aim.scale,
        scales=multiples(ranking),
        validation=len(validation),
        test=len(test),
        harmless=len(harmless),
        task=test.origin,
    )


S = TypeVar("S", bound=ContestSettings)


def divided(settings: S, changes: dict[str, Any]) -> tuple[S, RankSettings]:
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
        layer: where they are added.
    """

    names: list[str]
    alpha: list[float]
    steered: Float[Tensor, "tries width"]
    null: Float[Tensor, "tries width"]
    norms: list[float]
    layer: Site

    @classmethod
    def of(cls, factors: Factors, aim: Aim, scales: Sequence[float], width: int, seed: int) -> "_Field":
        """All directions of the factors and as many random ones (drawn from seed + 2), at every scale."""
        names, directions = candidates(factors)
        alpha = factors.alpha.repeat(len(directions) // len(factors))
        strongest = alpha.argsort(descending=True, stable=True).tolist()
        steered, norms = tries(directions[strongest], aim.scale, scales)
        null, _ = tries(at(aim.layer, width).random(len(directions), seed + 2), aim.scale, scales)
        return cls([names[k] for k in strongest], [float(alpha[k]) for k in strongest], steered, null, norms, aim.layer)

    def pushes(self, vectors: Float[Tensor, "tries width"]) -> list[Push]:
        """Vectors as they are added."""
        return [Push(self.layer, vector) for vector in vectors.cpu()]

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


def _scorer(lm: LanguageModel, task: Task, harmless: Sequence[str], aim: Aim, ranking: RankSettings) -> Scorer:
    """Tells the score of two texts on the questions, which stands beside the marks, and the damage."""
    asked = [q.prompt for q in task.questions]
    positive = SURE if ranking.positive is None else ranking.positive
    negative = SORRY if ranking.negative is None else ranking.negative
    compared = chosen_words(lm, positive, negative, asked, harmless, system=aim.system)
    return Scorer(lm, compared, aim.layer, asked, harmless, aim.system)


def _expected(replies: Replies, validation: Task, planned: int, scorer: Scorer) -> Cost:
    """What all completions will take, and the damage of a few vectors."""
    lm = replies.lm
    spent, more = replies.expected([q.prompt for q in validation.questions], planned)
    scored = scorer.expected(TESTED + 1)
    return cost(spent + scored.seconds, max(more, scored.more_memory), lm.device, lm.memory)
