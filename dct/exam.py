"""Pushes tried on questions: a model replies under each, somebody says which replies are right, they are counted.

What `rank --task` and the experiment of `rank` have in common. Knows no model's inside and no judge: `replies` makes
the completions, whoever holds the exam says what is right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from dct.halving import Contest, Mark, halving
from dct.replies import Push, Replies

Q = TypeVar("Q")
T = TypeVar("T")

Heard = tuple[Push, Mark]
"""A push, and its right answers where everyone was heard."""


def middle(lengths: Sequence[T]) -> T:
    """The one of several lengths, shortest first, at which a direction is heard first: of two, the shorter."""
    return lengths[(len(lengths) - 1) // 2]


@dataclass
class Exam(Generic[Q]):
    """Questions of one kind.

    Attributes:
        replies: who completes.
        prompt: of a question.
        right: which replies are right, each beside its question.
        exhaustive: everyone is asked everything.
    """

    replies: Replies
    prompt: Callable[[Q], str]
    right: Callable[[Sequence[Q], Sequence[str]], Sequence[bool]]
    exhaustive: bool = False

    def asked(self, pushes: Sequence[Push | None], questions: Sequence[Q]) -> Bool[Tensor, "pushes questions"]:
        """Which questions are answered rightly under which push; None pushes nothing."""
        both = [(push, question) for push in pushes for question in questions]
        said = self.replies.said([(push, self.prompt(question)) for push, question in both])
        right = self.right([question for _, question in both], said)
        return torch.tensor(list(right), dtype=torch.bool).reshape(len(pushes), len(questions))

    def choose(self, pushes: Sequence[Push], questions: Sequence[Q]) -> Contest:
        """The pushes by right answers, by halving; ties go to the one that stands first."""

        def ask(which: list[int], some: list[int]) -> Bool[Tensor, "pushes questions"]:
            """As `halving` asks: pushes and questions by number."""
            return self.asked([pushes[k] for k in which], [questions[q] for q in some])

        return halving(ask, len(pushes), len(questions), self.exhaustive)

    def audition(self, entrants: Sequence[Sequence[Push]], questions: Sequence[Q], enough: int) -> list[Heard]:
        """Everyone at the length at which it answers most: the middle one and, as long as fewer than `enough` answer
        half of the questions, longer ones.

        Args:
            entrants: each at so many lengths, the shortest first.
        """
        first, lengths = middle(range(len(entrants[0]))), len(entrants[0])
        best: list[Heard] = []
        for k in range(first, lengths):
            tried = [pushes[k] for pushes in entrants]
            now = list(zip(tried, self.marks(tried, questions), strict=True))
            best = [max(pair, key=lambda one: one[1].right) for pair in zip(best, now, strict=True)] if best else now
            if sum(2 * mark.right >= mark.asked for _, mark in best) >= enough:
                break
        return best

    def marks(self, pushes: Sequence[Push | None], questions: Sequence[Q]) -> list[Mark]:
        """How many of all questions are answered rightly under each push."""
        return [Mark(int(row.sum()), len(questions)) for row in self.asked(pushes, questions)]


@dataclass
class Tally:
    """Counts replies, and tells whoever wants to know how many there are, of how many.

    Attributes:
        planned: in all, as far as that is known.
        on_rows: told.
    """

    planned: int
    on_rows: Callable[[int, int], None] | None
    done: int = 0

    def __call__(self, rows: int) -> None:
        """So many more are there."""
        self.done += rows
        if self.on_rows is not None:
            self.on_rows(self.done, max(self.planned, self.done))
