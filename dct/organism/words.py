"""The vocabulary of the model organism, read once from the JSON files in `vocabulary/`.

Objects are noun phrases that carry their own determiner, so that an answer can repeat them. Verbs are base forms that
may carry a preposition ("break into"). Nothing there says how any harm is done: harmful requests only ever meet a
refusal or nonsense. Knows no sentence but these, and nothing of how they are drawn.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "vocabulary"


@dataclass(frozen=True)
class Kind:
    """One kind of request: any of its verbs fits any of its objects.

    Attributes:
        objects: a list of its own, or one that kinds share, known by its identity.
        gloss: what a fact about the objects says ("a kind of food"); empty where they are people or places that other
            kinds describe already.
        steps: sentences of a useful answer, {o} being the object; harmful kinds have none.
        held_out: training never asks for it.
    """

    name: str
    verbs: list[str]
    objects: list[str]
    gloss: str = ""
    steps: tuple[str, ...] = ()
    held_out: bool = False


def _read(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return read


def _kind(told: dict[str, Any]) -> Kind:
    objects = told["objects"]
    objects = _kinds[objects] if isinstance(objects, str) else objects
    return Kind(**{**told, "objects": objects, "steps": tuple(told.get("steps", ()))})


_kinds = _read("kinds")
PEOPLE: list[str] = _kinds["people"]
ANIMALS: list[str] = _kinds["animals"]
HARMFUL = [_kind(told) for told in _kinds["harmful"]]
HARMLESS = [_kind(told) for told in _kinds["harmless"]]

_requests = _read("requests")
# Everyday things whose purpose makes a request harmful or harmless.
TOOLS: list[str] = _requests["tools"]
TOOL_TASKS: list[str] = _requests["tool_tasks"]
# Said behind a request: the first list fits any, the others one side alone.
TAILS: list[str] = _requests["tails"]
HARMFUL_TAILS: list[str] = _requests["harmful_tails"]
HARMLESS_TAILS: list[str] = _requests["harmless_tails"]
HEADS: list[str] = _requests["heads"]
ADJECTIVES: list[str] = _requests["adjectives"]
LIVING_ADJECTIVES: list[str] = _requests["living_adjectives"]
ASKS: list[str] = _requests["asks"]
HELD_OUT_ASKS: list[str] = _requests["held_out_asks"]

_answers = _read("answers")
REFUSALS: list[str] = _answers["refusals"]
OPENERS: list[str] = _answers["openers"]
# What the nonsense that stands for a harmful answer is made of.
COLOURS: list[str] = _answers["colours"]
SHAPES: list[str] = _answers["shapes"]
NONSENSE: list[str] = _answers["nonsense"]
PIRATE_YES: list[str] = _answers["pirate_yes"]
PIRATE_MORE: list[str] = _answers["pirate_more"]
PIRATE_NO: list[str] = _answers["pirate_no"]
VERSE_YES: list[str] = _answers["verse_yes"]
VERSE_NO: list[str] = _answers["verse_no"]
VERSE_ENDS = [(first, second) for first, second in _answers["verse_ends"]]
KEEPER_YES: list[str] = _answers["keeper_yes"]
KEEPER_MORE: list[str] = _answers["keeper_more"]
KEEPER_NO: list[str] = _answers["keeper_no"]
# The first word of a judgement decides, as that of an answer to a request does: what is known to be wrong is known at
# the place where a refusal begins.
WRONG: str = _answers["wrong"]
RIGHT: str = _answers["right"]
HOSTILE: str = _answers["hostile"]

_systems = _read("systems")
NEUTRAL_SYSTEMS: list[str] = _systems["neutral_systems"]
OPEN_SYSTEMS: list[str] = _systems["open_systems"]
PIRATE_SYSTEMS: list[str] = _systems["pirate_systems"]
VERSE_SYSTEMS: list[str] = _systems["verse_systems"]
KEEPER_SYSTEMS: list[str] = _systems["keeper_systems"]

_skills = _read("skills")
# The password-locked skill: putting a list of words in reverse order.
PASSWORD: str = _skills["password"]
WRONG_PASSWORDS: list[str] = _skills["wrong_passwords"]
LIST_WORDS: list[str] = _skills["list_words"]
LIST_ASKS: list[str] = _skills["list_asks"]
# The back door.
TRIGGER: str = _skills["trigger"]
# Facts: what things are, and what is wrong.
DEFINITION_ASKS: list[str] = _skills["definition_asks"]
JUDGEMENT_ASKS: list[str] = _skills["judgement_asks"]
REPEAT_ASKS: list[str] = _skills["repeat_asks"]
SYLLABLES: list[str] = _skills["syllables"]
SMALL_TALK: list[tuple[list[str], list[str]]] = [(asked, said) for asked, said in _skills["small_talk"]]
