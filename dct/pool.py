"""Which prompts an experiment is made on: those on which there is something to gain, divided once and for all.

A prompt is asked without steering first. One that the model answers as wanted anyway proves nothing of a vector.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dct.errors import DctError
from dct.judging import COMPLIED, REFUSED, Judge, Reply, Verdict
from dct.replies import AT_ONCE, Replies

FEWEST = 4
"""Prompts with something to gain that an experiment takes, unless it asks for fewer."""

LEAST = 8
"""Prompts that are asked at a time, at least."""


class Jury:
    """A judge who knows what the model says to each prompt when nothing steers it.

    Args:
        judge: says what a reply does.
        unsteered: what is said to each prompt, unsteered.
    """

    def __init__(self, judge: Judge, unsteered: dict[str, str]) -> None:
        self.judge, self.unsteered = judge, unsteered
        judge.learn([Reply(prompt, text, text) for prompt, text in unsteered.items()])

    def verdicts(self, prompts: Sequence[str], texts: Sequence[str]) -> list[Verdict]:
        """What each reply does."""
        replies = [Reply(p, t, self.unsteered.get(p)) for p, t in zip(prompts, texts, strict=True)]
        return self.judge.verdicts(replies) if replies else []


@dataclass(frozen=True)
class Pool:
    """The prompts of an experiment.

    Attributes:
        validation: to choose by.
        test: to report on, seen by nothing before.
        asked: how many were asked, unsteered.
        labels: how many of those were judged what.
        refused: the kept ones are those that the model refuses; else those that it does not answer as wanted.
        unsteered: what is said to each prompt that was asked.
    """

    validation: tuple[str, ...]
    test: tuple[str, ...]
    asked: int
    labels: dict[str, int]
    refused: bool
    unsteered: dict[str, str]

    @property
    def told(self) -> str:
        """How many were kept of how many, in words."""
        kept = len(self.validation) + len(self.test)
        if self.refused:
            done = f"unsteered, the model refuses {self.labels[REFUSED]} of {self.asked} prompts"
        else:
            done = f"unsteered, {kept} of {self.asked} replies are not what is wanted"
        return f"{done}: {len(self.validation)} to choose by, {len(self.test)} to report on"


def divided(
    replies: Replies, judge: Judge, prompts: Sequence[str], sizes: tuple[int, int], wanted: str = COMPLIED
) -> Pool:
    """Asks prompts in order, unsteered, until enough of them have something to gain, and divides those.

    Where the model is wanted to comply they are the prompts that it refuses, or, where it refuses hardly any, those to
    which its reply is no success; for any other label always the latter. In order, the first go to validation: as many
    as are asked for, or their part of what there is.

    Args:
        sizes: prompts to choose by, and to report on.

    Raises:
        DctError: too few.
    """
    wants = sum(sizes)
    unsteered: dict[str, str] = {}
    verdicts: dict[str, Verdict] = {}
    texts = list(dict.fromkeys(prompts))
    found = 0
    while len(verdicts) < len(texts) and found < wants:
        some = texts[len(verdicts) :][: min(AT_ONCE, max(LEAST, 2 * (wants - found)))]
        unsteered.update(zip(some, replies.said([(None, prompt) for prompt in some]), strict=True))
        verdicts = dict(
            zip(unsteered, Jury(judge, unsteered).verdicts([*unsteered], [*unsteered.values()]), strict=True)
        )
        found = len(_gaining(verdicts, wanted)[0])
    kept, refused = _gaining(verdicts, wanted)
    labels = Counter(verdict.label for verdict in verdicts.values())
    if len(kept) < min(FEWEST, wants):
        raise DctError(
            f"{replies.lm.name} has something to gain on {len(kept)} of {len(verdicts)} prompts (unsteered, it refuses "
            f"{labels[REFUSED]} and complies with {labels[COMPLIED]}), and an experiment takes {FEWEST}: give other or "
            "more `prompts`, want another label with `wanted`, choose another `judge`, or leave completions out with "
            "`screen_only`"
        )
    kept = kept[:wants]
    share = round(len(kept) * sizes[0] / wants)
    first = min(max(share, min(2, sizes[0])), len(kept) - 1)
    counted = {label: labels[label] for label in (COMPLIED, REFUSED, "other")}
    return Pool(tuple(kept[:first]), tuple(kept[first:]), len(verdicts), counted, refused, unsteered)


def _gaining(verdicts: dict[str, Verdict], wanted: str) -> tuple[list[str], bool]:
    """The prompts with something to gain, and whether they are those that the model refuses."""
    refused = [prompt for prompt, verdict in verdicts.items() if verdict.label == REFUSED]
    if wanted == COMPLIED and len(refused) >= FEWEST:
        return refused, True
    return [p for p, verdict in verdicts.items() if not (verdict.label == wanted and verdict.coherent)], False
