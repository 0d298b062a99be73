"""`task`: whether a reply is the known answer of its question (see `dct.tasks`)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from dct.errors import DctError, UsageError
from dct.judging import COMPLIED, OTHER, Judge, Reply, Verdict
from dct.tasks import read


class Task(Judge):
    """A right answer has complied; whatever else is said is other. A right answer is coherent, since it is right.

    Options:
        questions: file of prompts with `answer` or `regex`, as `dct rank` takes it as its `task`.
        column: field that holds the prompt.
        match: regular expression with {answer} in it, for answers that are only part of a reply.
    """

    name = "task"
    about = "answers that are known"
    options: ClassVar = {"questions": "", "column": "", "match": ""}

    def __init__(self, lm: Any = None, **given: Any) -> None:
        super().__init__(lm, **given)
        if not self.own["questions"]:
            raise UsageError("the judge task needs `questions`: a file of prompts with answers", argument="judge")
        task = read(self.own["questions"], self.own["column"] or None, self.own["match"] or None)
        self.questions = {question.prompt: question for question in task.questions}

    def verdicts(self, replies: Sequence[Reply]) -> list[Verdict]:
        """By the question of each prompt.

        Raises:
            DctError: a prompt that is no question of the task.
        """
        from dct.judges.shared.coherence import incoherence

        found = []
        for number, reply in enumerate(replies, start=1):
            question = self.questions.get(reply.prompt)
            if question is None:
                where = self.own["questions"]
                raise DctError(f"the prompt of record {number} is no question of {where}: judge the task's own prompts")
            right = question.right(reply.completion)
            fault = "" if right else incoherence(reply.completion)
            why = "the right answer" if right else fault or "not the answer"
            found.append(Verdict(COMPLIED if right else OTHER, not fault, why))
        return found
