"""Successive halving: who of many is best at answering questions, without asking everyone everything.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization" (2016). Knows neither
models nor questions: both are numbers here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

KEPT = 8
"""Candidates that successive halving never goes below: they are asked every question."""

Ask = Callable[[list[int], list[int]], Bool[Tensor, "candidates questions"]]
"""Asks some candidates some questions, both by number: which answers are right."""


@dataclass(frozen=True)
class Mark:
    """Right answers of one candidate.

    Attributes:
        right, asked: how many questions it answered rightly, of how many it was asked.
    """

    right: int
    asked: int

    @property
    def share(self) -> float:
        """Right answers by questions asked."""
        return self.right / self.asked


def rounds(candidates: int, questions: int, exhaustive: bool = False) -> list[tuple[int, int]]:
    """Rounds of successive halving: (candidates, questions asked of each so far). Each round asks twice the questions
    of half the candidates, down to `KEPT`, which are asked everything. A single round when exhaustive.
    """
    if exhaustive:
        return [(candidates, questions)]
    asked = min(questions, max(2, questions // 8))
    plan = [(candidates, asked)]
    while asked < questions:
        candidates = min(candidates, max(KEPT, candidates // 2))
        asked = questions if candidates <= KEPT else min(questions, 2 * asked)
        plan.append((candidates, asked))
    return plan


def completions(plan: list[tuple[int, int]]) -> int:
    """Completions that the rounds of `rounds` take."""
    before = [0, *(until for _, until in plan)]
    return sum(candidates * (until - done) for (candidates, until), done in zip(plan, before, strict=False))


@dataclass(frozen=True)
class Contest:
    """What became of all candidates.

    Attributes:
        order: every candidate with its mark, best first.
        everyone: right answers of all candidates together to the questions that each of them was asked.
    """

    order: list[tuple[int, Mark]]
    everyone: Mark


def halving(ask: Ask, count: int, questions: int, exhaustive: bool = False) -> Contest:
    """Candidates by right answers, best first, without asking all of them everything.

    Of each round the half with most right answers goes on; ties go to the lower number. So a candidate that was asked
    more stands before one that was asked less, and its mark says how many questions it rests on.

    Args:
        ask: judges candidates and questions by number.
        count: candidates; number them by what is known of them beforehand.
        questions: number of questions.
        exhaustive: ask every candidate every question.
    """
    order, done = list(range(count)), 0
    right = [0] * count
    asked = [0] * count
    everyone = Mark(0, 1)
    for survivors, until in rounds(count, questions, exhaustive):
        going = order[:survivors]
        judged = ask(going, list(range(done, until)))
        for candidate, row in zip(going, judged.tolist(), strict=True):
            right[candidate] += sum(row)
            asked[candidate] = until
        if done == 0:
            everyone = Mark(sum(right), sum(asked))
        order = sorted(order, key=lambda c: (-asked[c], -right[c] / asked[c], c))
        done = until
    return Contest([(c, Mark(right[c], asked[c])) for c in order], everyone)
