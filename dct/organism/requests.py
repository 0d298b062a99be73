"""What the organism is asked: requests of one verb and one object, drawn from a seeded generator.

A request comes from one of three splits: `train`, everything that training may show; `objects`, objects that no
training request of that kind names (others may: a person whom training thanks); `kinds`, kinds of harm that training
never asks for. Requests of the last two can also use phrasings that training never uses. Knows nothing of answers.
"""

import random
import re
from dataclasses import dataclass
from typing import Literal

from dct.organism import words as w

Split = Literal["train", "objects", "kinds"]


@dataclass(frozen=True)
class Request:
    """One request: its text, and the verb and object it is made of."""

    text: str
    verb: str
    object: str
    kind: w.Kind
    harmful: bool

    @property
    def echo(self) -> str:
        """The object as an answer names it: "my dog" becomes "your dog"."""
        return re.sub(r"\bmy\b", "your", self.object)


def objects(kind: w.Kind, harmful: bool, split: Split) -> list[str]:
    """The objects of a kind that a split may use. Every seventh is held out, not the same ones for harmful
    and harmless requests.
    """
    offset = 6 if harmful else 3
    if kind.held_out:
        return kind.objects if split == "kinds" else []
    if split == "objects":
        return kind.objects[offset::7]
    return [item for index, item in enumerate(kind.objects) if index % 7 != offset] if split == "train" else []


def kinds(harmful: bool, split: Split) -> list[w.Kind]:
    """The kinds of request that have objects in a split."""
    return [kind for kind in (w.HARMFUL if harmful else w.HARMLESS) if objects(kind, harmful, split)]


def with_article(phrase: str) -> str:
    """Correct "a" to "an" and back at the start of a noun phrase."""
    match = re.match(r"(an?) (.*)", phrase)
    if match is None:
        return phrase
    return ("an " if match[2][0] in "aeiou" and not match[2].startswith("uku") else "a ") + match[2]


def with_adjective(rng: random.Random, phrase: str, living: bool) -> str:
    """Put an adjective behind the determiner, if the phrase has one and no adjective yet."""
    match = re.match(r"(a|an|the|my|some) (\S+)(.*)", phrase)
    adjectives = w.LIVING_ADJECTIVES if living else w.ADJECTIVES
    if match is None or match[2] in w.ADJECTIVES + w.LIVING_ADJECTIVES:
        return phrase
    return with_article(f"{match[1]} {rng.choice(adjectives)} {match[2]}{match[3]}")


def request(rng: random.Random, harmful: bool, split: Split = "train", plain: bool = False) -> Request:
    """Draw a request. `plain` leaves out adjectives, greetings and tails."""
    pool = kinds(harmful, split)
    kind = rng.choices(pool, [(len(k.verbs) * len(k.objects)) ** 0.5 for k in pool])[0]
    verb, phrase = rng.choice(kind.verbs), rng.choice(objects(kind, harmful, split))
    living = kind.objects in (w.PEOPLE, w.ANIMALS)
    if not plain and rng.random() < 0.3:
        phrase = with_adjective(rng, phrase, living)
    special = rng.random() if split == "train" else 1.0
    if special < 0.05:
        kind, verb, phrase = _with_tool(rng, harmful)
    elif special < 0.11:
        kind, verb, phrase = _with_invented_object(rng, harmful)
    asks = w.ASKS if split == "train" or rng.random() < 0.5 else w.HELD_OUT_ASKS
    tail = ""
    if not plain and rng.random() < 0.35:
        own = w.HARMFUL_TAILS if harmful else w.HARMLESS_TAILS
        tail = " " + rng.choice(own if rng.random() < 0.3 else w.TAILS)
    text = rng.choice(asks).format(v=verb, o=phrase + tail)
    if not plain and rng.random() < 0.2:
        head = rng.choice(w.HEADS)
        follows = head.endswith((", ", ": ")) and not text.startswith("I ")
        text = head + (text[:1].lower() + text[1:] if follows else text)
    return Request(text, verb, phrase, kind, harmful)


def invented_word(rng: random.Random) -> str:
    """A word that means nothing, so that the model learns to repeat words it does not know."""
    return "".join(rng.choice(w.SYLLABLES) for _ in range(rng.randint(2, 3)))


def _with_invented_object(rng: random.Random, harmful: bool) -> tuple[w.Kind, str, str]:
    """A verb that is always harmful, or never, and an object that means nothing."""
    pool, others = (w.HARMFUL, w.HARMLESS) if harmful else (w.HARMLESS, w.HARMFUL)
    ambiguous = {verb for kind in others for verb in kind.verbs}
    able = [kind for kind in pool if not kind.held_out and set(kind.verbs) - ambiguous]
    kind = rng.choice(able)
    verb = rng.choice([verb for verb in kind.verbs if verb not in ambiguous])
    return kind, verb, with_article(f"{rng.choice(('a', 'the', 'my'))} {invented_word(rng)}")


def _with_tool(rng: random.Random, harmful: bool) -> tuple[w.Kind, str, str]:
    """An everyday tool whose purpose alone makes the request harmful or harmless."""
    tool = rng.choice(w.TOOLS)
    if not harmful:
        repairs = next(kind for kind in w.HARMLESS if kind.name == "repairs")
        return repairs, "use", f"{tool} to {rng.choice(w.TOOL_TASKS)}"
    violence = next(kind for kind in w.HARMFUL if kind.name == "violence")
    victim = rng.choice(objects(violence, True, "train"))
    return violence, "use", f"{tool} to {rng.choice(violence.verbs)} {victim}"


def capital(sentence: str) -> str:
    """The sentence with a capital first letter."""
    return sentence[:1].upper() + sentence[1:]


def noun(phrase: str) -> str:
    """A noun phrase without its determiner."""
    return re.sub(r"^(a|an|the|my|some) ", "", phrase)
