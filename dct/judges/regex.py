"""`regex`: what a reply is, by regular expressions of your own."""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from dct.errors import UsageError
from dct.judges.shared.coherence import incoherence
from dct.judging import COMPLIED, OTHER, REFUSED, Judge, Reply, Verdict


class Regex(Judge):
    """A reply that `refused` matches is refused, any other that `complied` matches has complied; the rest is other.

    Options:
        complied, refused: regular expressions, searched for anywhere; empty for none. `(?i)` at the beginning makes
            them blind to case.
    """

    name = "regex"
    about = "regular expressions of your own"
    options: ClassVar = {"complied": "", "refused": ""}

    def __init__(self, lm: Any = None, **given: Any) -> None:
        super().__init__(lm, **given)
        if not any(self.own.values()):
            raise UsageError("the judge regex needs `complied` or `refused`: regular expressions", argument="judge")
        self.patterns = {name: _compiled(name, self.own[name]) for name in (REFUSED, COMPLIED) if self.own[name]}

    def verdicts(self, replies: Sequence[Reply]) -> list[Verdict]:
        """By the first pattern that is found, `refused` before `complied`."""
        return [self._one(reply.completion) for reply in replies]

    def _one(self, text: str) -> Verdict:
        fault = incoherence(text)
        for label, pattern in self.patterns.items():
            found = pattern.search(text)
            if found:
                return Verdict(label, not fault, fault or f"{label}: {found[0][:40]!r}")
        return Verdict(OTHER, not fault, fault or "no pattern matches")


def _compiled(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"`{name}`: {pattern!r} is no regular expression ({error})", argument=name) from error
