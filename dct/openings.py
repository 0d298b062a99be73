"""Which two texts are compared where nobody says: "Sure" and "Sorry", or how the model itself begins its replies.

The post's pair tells nothing of a model that begins its refusals and its answers with the same word. Such a model's own
openings are learned from what it says when nothing steers it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dct.errors import DctError
from dct.generation import complete
from dct.judging import COMPLIED, REFUSED, Judge, Reply, judge
from dct.logits import own_difference
from dct.model import LanguageModel
from dct.wordpair import Words, words

AUTO = "auto"
"""Instead of a text: the model's own opening."""

SURE, SORRY = "Sure", "Sorry"

SEPARATES = 0.9
"""Share of pairs in which a harmless prompt scores above another, from which on the post's pair tells them apart."""

LONGEST_REFUSAL, LONGEST_ANSWER = 16, 8
"""Tokens of an opening, at most. Answers soon turn to what was asked; refusals do not."""

FEWEST = 2
"""Replies that must begin alike."""

LISTENED = 40
"""Tokens of a reply that are enough to see how it begins and what it is."""


@dataclass(frozen=True)
class Openings:
    """How a model begins its replies.

    Attributes:
        refusal, answer: the openings; None where too few replies begin alike.
        refusals, answers: replies that they were learned from.
    """

    refusal: str | None
    answer: str | None
    refusals: int
    answers: int


def most_travelled(rows: Sequence[Sequence[int]], longest: int) -> list[int]:
    """The path that rows of tokens have in common: the most frequent first token, if two rows begin with it; then from
    each place on the most frequent next one, as long as at least half of the rows that came so far go on with it, and
    two at least.
    """
    path: list[int] = []
    group = list(rows)
    while len(path) < longest:
        following = Counter(row[len(path)] for row in group if len(row) > len(path))
        if not following:
            break
        [(token, count)] = following.most_common(1)  # of several the one that was met first
        if count < FEWEST or (path and 2 * count < len(group)):
            break
        group = [row for row in group if len(row) > len(path) and row[len(path)] == token]
        path.append(token)
    return path


def openings(lm: LanguageModel, refused: Sequence[str], answered: Sequence[str], system: str | None = None) -> Openings:
    """How refusals and answers begin that a model gave when nothing steered it."""

    def begun(texts: Sequence[str], longest: int) -> str | None:
        """What texts begin with, as text: whatever it is as tokens, the same text can be given by hand."""
        path = most_travelled([_ids(lm, text, system) for text in texts], longest)
        while path and "\ufffd" in lm.decode(path):  # the middle of a character
            path.pop()
        text = lm.decode(path)
        return text if text.strip() else None

    return Openings(begun(refused, LONGEST_REFUSAL), begun(answered, LONGEST_ANSWER), len(refused), len(answered))


def _ids(lm: LanguageModel, reply: str, system: str | None) -> list[int]:
    """A reply as the tokens that continue a prompt."""
    if not lm.has_chat_template:  # a space is put before it
        reply = reply.removeprefix(" ")
    return lm.continuation(reply, system) if reply.strip() else []


def heard(
    lm: LanguageModel,
    prompts: Sequence[str],
    harmless: Sequence[str],
    system: str | None = None,
    judging: Judge | None = None,
) -> Openings:
    """The openings of a model, from greedy replies that are made for it and judged: refusals of the prompts, answers to
    the harmless ones."""
    judging = judging or judge("refusal")
    said = complete(lm, lm.encode([*prompts, *harmless], system), max_new_tokens=LISTENED)
    replies = [Reply(p, s, s) for p, s in zip([*prompts, *harmless], said, strict=True)]
    verdicts = judging.verdicts(replies)
    found = [(reply.completion, verdict) for reply, verdict in zip(replies, verdicts, strict=True)]
    refused = [text for text, verdict in found[: len(prompts)] if verdict.label == REFUSED]
    answered = [text for text, verdict in found[len(prompts) :] if verdict.label == COMPLIED and verdict.coherent]
    return openings(lm, refused, answered, system)


def separation(low: Sequence[float], high: Sequence[float]) -> float:
    """The chance that one of `high` is above one of `low`, ties counting half: the area under the curve."""
    wins = sum((b > a) + 0.5 * (b == a) for a in low for b in high)
    return wins / (len(low) * len(high))


def chosen_words(
    lm: LanguageModel,
    positive: str | None,
    negative: str | None,
    prompts: Sequence[str],
    harmless: Sequence[str] = (),
    *,
    system: str | None = None,
    listen: Callable[[], Openings] | None = None,
) -> Words:
    """The texts to compare.

    What is given is taken; `auto` is the model's own opening. Where both are left out it is "Sure" and "Sorry", if
    unsteered they tell harmless from other prompts, and else the model's own openings. A note says which, and why.

    Args:
        listen: the model's openings, where its replies are at hand; left out, it is asked.

    Raises:
        DctError: as in `words`.
    """
    why = ""
    if positive is None and negative is None:
        pair = words(lm, SURE, SORRY, system)
        if not harmless:
            return pair.noted(
                f"scored by {SURE!r} against {SORRY!r}: without harmless prompts it is not known whether they tell "
                "anything of this model"
            )
        scores = [own_difference(lm, pair, lm.encode(texts, system)) for texts in (prompts, harmless)]
        area = separation(*scores)
        told = f"unsteered, {SURE!r} against {SORRY!r} puts harmless prompts above others in {area:.0%} of pairs"
        if area >= SEPARATES:
            return pair.noted(f"{told}: scored by it")
        positive, negative, why = AUTO, AUTO, f"{told}, which is too few; "
    first, second = SURE if positive is None else positive, SORRY if negative is None else negative
    if AUTO not in (first, second):
        return words(lm, first, second, system)
    own = listen() if listen is not None else heard(lm, prompts, harmless, system) if harmless else None
    return _own_words(lm, first, second, own, why, system)


def known_words(lm: LanguageModel, positive: str | None, negative: str | None, system: str | None = None) -> Words:
    """The texts as far as they are given, the post's otherwise: to see beforehand whether they can be compared.

    Raises:
        DctError: as in `words`.
    """
    if AUTO in (positive, negative):
        return words(lm, SURE, SORRY, system)
    return words(lm, SURE if positive is None else positive, SORRY if negative is None else negative, system)


def _own_words(
    lm: LanguageModel, positive: str, negative: str, own: Openings | None, why: str, system: str | None
) -> Words:
    """The texts with the model's openings in the place of `auto`; the post's pair where it has none."""
    lacking = []
    if own is None or (positive == AUTO and own.answer is None):
        lacking.append("answers")
    if own is None or (negative == AUTO and own.refusal is None):
        lacking.append("refusals")
    if not lacking:
        assert own is not None
        first = own.answer if positive == AUTO else positive
        second = own.refusal if negative == AUTO else negative
        try:
            found = words(lm, str(first), str(second), system)
        except DctError:
            lacking = ["answers and refusals, which begin alike: no opening tells them apart"]
        else:
            learned = [f"{first!r} begins its answers ({own.answers} heard)"] if positive == AUTO else []
            learned += [f"{second!r} its refusals ({own.refusals} heard)"] if negative == AUTO else []
            return found.noted(f"{why}scored by the model's own words: {', '.join(learned)}")
    heard_of = "no harmless prompts to hear answers to" if own is None else f"no opening of {' and '.join(lacking)}"
    pair = words(lm, SURE if positive == AUTO else positive, SORRY if negative == AUTO else negative, system)
    return pair.noted(f"{why}the model has {heard_of}: scored by {pair.shown_positive!r} and {pair.shown_negative!r}")
