"""`inspect`: a scorer of inspect-ai reads the reply, one of its own or of any package; needs inspect-ai.

The other way round, `dct.judges.shared.scorer` makes a judge a scorer of inspect-ai.
"""

import asyncio
import importlib
import importlib.util
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from dct.errors import DctError, UsageError
from dct.judges.shared.coherence import incoherence
from dct.judging import COMPLIED, OTHER, Judge, Reply, Verdict
from dct.registry import first_line

OWN = "inspect_ai.scorer"
"""Where a scorer is whose module is not named."""

NAME = "dct/judge"
"""What the scorer is told that the reply's model is called."""


class Inspect(Judge):
    """A reply whose score is high enough has complied; any other is other. Coherence is told by its text alone.

    Options:
        scorer: its name in inspect_ai.scorer, such as includes, or module:name.
        arguments: what it is made with, as a JSON object.
        target: what it compares replies with, where that is the same for all.
        targets: file of prompts with `answer`, each prompt's own target.
        least: the score from which on a reply has complied; inspect-ai's C counts as 1, P as 0.5, I and N as 0.
    """

    name = "inspect"
    about = "a scorer of inspect-ai"
    options: ClassVar = {"scorer": "", "arguments": "{}", "target": "", "targets": "", "least": 1.0}

    def __init__(self, lm: Any = None, **given: Any) -> None:
        super().__init__(lm, **given)
        if not self.own["scorer"]:
            raise UsageError("the judge inspect needs `scorer`: a name such as includes", argument="judge")
        if importlib.util.find_spec("inspect_ai") is None:
            raise DctError("the judge inspect takes inspect-ai: pip install 'deep-causal-transcoders[inspect]'")
        self.scorer = _made(self.own["scorer"], self.own["arguments"])
        self.targets = _targets(self.own["targets"]) if self.own["targets"] else None

    def verdicts(self, replies: Sequence[Reply]) -> list[Verdict]:
        """By the score of each.

        Raises:
            DctError: a prompt has no target in the file, or the scorer fails.
        """
        wanted = [self._target(number, reply) for number, reply in enumerate(replies, start=1)]
        with ThreadPoolExecutor(1) as pool:  # whoever calls may be in an event loop of its own
            scores = pool.submit(lambda: asyncio.run(self._scores(replies, wanted))).result()
        return [self._read(reply, score) for reply, score in zip(replies, scores, strict=True)]

    def _target(self, number: int, reply: Reply) -> str:
        if self.targets is None:
            return str(self.own["target"])
        if reply.prompt not in self.targets:
            where = self.own["targets"]
            raise DctError(f"the prompt of record {number} has no answer in {where}: judge the prompts that it holds")
        return self.targets[reply.prompt]

    async def _scores(self, replies: Sequence[Reply], targets: Sequence[str]) -> list[Any]:
        from inspect_ai.scorer import Target

        found = []
        for number, (reply, target) in enumerate(zip(replies, targets, strict=True), start=1):
            try:
                found.append(await self.scorer(_state(number, reply, target), Target(target)))
            except Exception as error:  # it is somebody else's code
                whose = self.own["scorer"]
                raise DctError(f"the scorer {whose} fails on record {number}: {first_line(error)}") from error
        return found

    def _read(self, reply: Reply, score: Any) -> Verdict:
        from inspect_ai.scorer import value_to_float

        if score is None or not isinstance(score.value, str | int | float):
            what = "gives none" if score is None else f"is {type(score.value).__name__} and no number"
            raise DctError(f"the score of {self.own['scorer']} {what}: take a scorer of one value for each reply")
        value = value_to_float()(score.value)
        fault = incoherence(reply.completion)
        said = f"score {score.value}" + (f": {score.explanation[:60]!r}" if score.explanation else "")
        return Verdict(
            COMPLIED if value >= self.own["least"] else OTHER, not fault, f"{said}; {fault}" if fault else said
        )


def _made(name: str, arguments: str) -> Any:
    """A scorer by its name, ready to be asked.

    Raises:
        UsageError: there is none of that name, or its arguments are none.
    """
    module, _, scorer = name.rpartition(":")
    try:
        options = json.loads(arguments)
        if not isinstance(options, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise UsageError(f"`arguments` must be a JSON object: {arguments!r} ({error})", argument="arguments") from error
    try:
        return getattr(importlib.import_module(module or OWN), scorer)(**options)
    except Exception as error:  # an import of somebody else's code
        raise UsageError(f"`scorer` {name!r} cannot be made: {first_line(error)}", argument="scorer") from error


def _targets(file: str) -> dict[str, str]:
    """Answers by their prompts."""
    from dct.prompts import read

    found = read(file)
    if not found.answers:
        raise DctError(f"{file} has prompts without `answer`: each needs its target")
    return dict(zip(found.texts, found.answers, strict=True))


def _state(number: int, reply: Reply, target: str) -> Any:
    """A reply as inspect-ai has it when it scores."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelName, ModelOutput
    from inspect_ai.scorer import Target
    from inspect_ai.solver import TaskState

    return TaskState(
        model=ModelName(NAME),
        sample_id=number,
        epoch=1,
        input=reply.prompt,
        messages=[ChatMessageUser(content=reply.prompt), ChatMessageAssistant(content=reply.completion)],
        target=Target(target),
        output=ModelOutput.from_content(NAME, reply.completion),
        metadata={} if reply.unsteered is None else {"unsteered": reply.unsteered},
        completed=True,
    )
