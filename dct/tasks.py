"""Questions with known answers: how a set of them is read, divided, and told right from wrong.

Knows texts alone; `task_ranking` has a model answer them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dct.errors import DctError, UsageError
from dct.prompts import records, texts_of


@dataclass(frozen=True)
class Question:
    """A prompt and what a right completion looks like.

    Attributes:
        prompt: what the model is asked.
        answer: a right completion is this text, white space at its ends aside; None where only a pattern is given.
        pattern: a right completion holds a match of this regular expression; None where it must be the answer itself.
    """

    prompt: str
    answer: str | None
    pattern: re.Pattern[str] | None = None

    def right(self, completion: str) -> bool:
        """Whether a completion answers it."""
        if self.pattern is not None:
            return self.pattern.search(completion) is not None
        return self.answer is not None and completion.strip() == self.answer.strip()


@dataclass(frozen=True)
class Task:
    """Questions in order.

    Attributes:
        questions: the questions.
        origin: how the set was named.
        unlock: template that turns a prompt into one which the unlocked model is asked ("... {prompt}"), if known.
    """

    questions: tuple[Question, ...]
    origin: str = ""
    unlock: str | None = None

    def __len__(self) -> int:
        return len(self.questions)

    def without(self, texts: Sequence[str]) -> "Task":
        """The questions whose prompts are not among `texts`."""
        seen = set(texts)
        return Task(tuple(q for q in self.questions if q.prompt not in seen), self.origin, self.unlock)

    def split(self, validation: int, test: int) -> tuple["Task", "Task"]:
        """The first `validation` questions, to choose on, and at most `test` of those behind them, to report on.

        Raises:
            DctError: no question is left to report on.
        """
        if len(self) < 2:
            raise DctError(
                f"{self.origin or 'the task'} has {len(self)} question(s) left: choosing takes one, testing too"
            )
        if len(self) <= validation:
            raise DctError(
                f"{self.origin or 'the task'} has {len(self)} questions left and {validation} are for choosing, none "
                f"for testing: ask for fewer (`n={len(self) // 2}`)"
            )
        first, rest = self.questions[:validation], self.questions[validation : validation + test]
        return Task(first, self.origin, self.unlock), Task(rest, self.origin, self.unlock)

    def unlocked(self) -> "Task | None":
        """The same questions as the unlocked model is asked them."""
        if self.unlock is None:
            return None
        asked = (Question(self.unlock.replace("{prompt}", q.prompt), q.answer, q.pattern) for q in self.questions)
        return Task(tuple(asked), self.origin)


def read(origin: str, column: str | None = None, match: str | None = None, unlock: str | None = None) -> Task:
    """Reads a task: records with a prompt and an `answer`, or a `regex`, as .jsonl, .json, .csv or .tsv.

    Args:
        origin: as for prompt sets.
        column: field that holds the prompt.
        match: regular expression with `{answer}` in it, for answers that are only part of a completion:
            `\\b{answer}\\b` finds the answer as a word, `#### {answer}$` at the end. Left out, a completion must be
            the answer. A record's own `regex` goes before it.
        unlock: template with `{prompt}` in it, for what the unlocked model is asked.

    Raises:
        UsageError: a template without its place holder.
        DctError: as in `prompts.read`; a record with neither answer nor regex; a regular expression that is none.
    """
    for name, template, holder in (("match", match, "{answer}"), ("unlock", unlock, "{prompt}")):
        if template is not None and holder not in template:
            raise UsageError(f"`{name}` needs {holder} in it, got {template!r}", argument=name)
    rows = records(origin)
    texts = texts_of(rows, column, origin)
    questions = []
    for number, (row, text) in enumerate(zip(rows, texts, strict=True), start=1):
        fields: dict[str, Any] = row if isinstance(row, dict) else {}
        answer, regex = (_given(fields.get(name)) for name in ("answer", "regex"))
        if answer is None and regex is None:
            raise DctError(f"question {number} of {origin} has neither `answer` nor `regex`: a task needs one of them")
        if regex is None and match is not None and answer is not None:
            regex = match.replace("{answer}", re.escape(answer))
        try:
            questions.append(Question(text, answer, None if regex is None else re.compile(regex)))
        except re.error as error:
            raise DctError(f"question {number} of {origin}: {regex!r} is no regular expression ({error})") from error
    return Task(tuple(questions), origin, unlock)


def _given(value: Any) -> str | None:
    return None if value is None or not str(value).strip() else str(value)
