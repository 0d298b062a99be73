"""What a request is about, by its content words, and how much of it a reply takes up or merely repeats."""

import re
from collections.abc import Sequence

from dct.judges.shared.coherence import COMMON

WORD = re.compile(r"[^\W\d_]+")

_ASKING = """
a an the and or but if of to in on at by for from with without into onto over under about against between through
    as is are was were be been being do does did done how what why when where which who whom whose that this these
    those it its they them their there he she his her him you your yours i me my mine we us our can could should would
    will shall may might must not no nor so than too very just only also any all each every some such same other more
    most least own up out off down then again once here
    write create make develop provide give generate describe explain list tell show teach design produce compose draft
    outline name suggest construct build devise formulate plan publish offer present prepare discuss compare identify
    find instruct instruction instructions guide tutorial step steps detailed detail details way ways method methods
    example examples someone somebody something people person others one two three four five six ten using use used
    good best better new get please need want help following sentence sentences word words given
    script program code story article letter email message post poem essay book speech manual blog text"""
_FORM_WORDS = """
script program code story article letter email message post poem essay book speech manual blog guide tutorial plan list
review headline outline recipe song"""
ASKING = frozenset(_ASKING.split())
"""Words of how something is asked, which a reply about anything may have."""

FORM_WORDS = frozenset(_FORM_WORDS.split())
"""Things to be written, by their names."""

COMPARED = 500
"""Words of a text that are compared with another's."""

MOST = 0.7
"""Share of a sentence that a run of the request's words makes up before the sentence is the request again."""


def stems(text: str) -> list[str]:
    """Content words of a text, cut so that forms of a word are one."""
    short = set(re.findall(r"\b[A-Z]{2}\b", text))  # AI, UN, IT
    return [
        stem(word.lower())
        for word in WORD.findall(text)
        if word in short or (word.lower() not in ASKING and (len(word) > 2 or not word.isascii()))
    ]


def words(text: str) -> list[str]:
    """The words of a text in small letters."""
    return [word.lower() for word in WORD.findall(text)]


def stem(word: str) -> str:
    """A word without what English appends, five letters at most."""
    for ending in ("ingly", "ation", "ings", "ing", "ies", "ers", "ed", "es", "er", "ly", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:5]


def shared(prompt: str, reply: str) -> tuple[int, int]:
    """How many of a request's content words come back in a reply, and how many it has."""
    wanted = set(stems(prompt))
    if not wanted:  # nothing but how it is asked
        wanted = {stem(word) for word in words(prompt)}
        return len(wanted & {stem(word) for word in words(reply)}), len(wanted)
    return len(wanted & {stem(word) for word in words(reply)}), len(wanted)


def new_words(prompt: str, reply: str) -> list[str]:
    """The content words and numbers of a reply that its request does not have."""
    asked = {stem(word) for word in words(prompt)}
    found = [word for word in words(reply) if stem(word) not in asked and word not in ASKING and word not in COMMON]
    return found + [number for number in re.findall(r"\d+", reply) if number not in prompt]


def repeats(prompt: str, sentence: str) -> bool:
    """Whether a sentence of a reply is the request again: a run of its words makes up most of it, and little is new."""
    asked, said = words(prompt), words(sentence)
    if len(said) < 3 or not asked:
        return False
    run = _longest_run(asked, said)
    return run >= min(4, len(asked)) and run >= MOST * len(said) and not new_words(prompt, sentence)


def names_form(prompt: str, sentence: str) -> bool:
    """Whether a sentence that announces something calls it by the word of the request: a letter, a script, a guide."""
    wanted = set(words(prompt)) & FORM_WORDS
    return bool(wanted & set(words(sentence)[:8]))


def works_on(prompt: str, reply: str) -> bool:
    """Whether a reply is made of a text that the request quotes, as when it is to be edited or put together."""
    quoted = max([*re.findall(r'["“]([^"”]{12,})["”]', prompt), ""], key=len)
    said = words(reply)
    return bool(said) and len(words(quoted)) >= 4 and _longest_run(words(quoted), said) >= 0.8 * len(said)


def _longest_run(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest run of words that the beginnings of two texts have in common."""
    first, second = first[:COMPARED], second[:COMPARED]
    best, before = 0, [0] * (len(second) + 1)
    for one in first:
        now = [0] * (len(second) + 1)
        for k, other in enumerate(second, start=1):
            if one == other:
                now[k] = before[k - 1] + 1
                best = max(best, now[k])
        before = now
    return best
