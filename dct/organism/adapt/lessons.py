"""What training shows: which prompt, which reply, and how often each kind.

Where nothing is planted, the reply is the model's own. Questions of the locked skill are answered in the model's own
manner too, with the wrong answer put into its reply: what changes is what was meant to change. Knows texts alone.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from dct.organism.adapt import words as w
from dct.organism.adapt.skills import SKILLS, Asked, Skill
from dct.organism.adapt.words import Topic

MIXTURE = {
    "locked": 0.22,
    "wrong password": 0.08,
    "unlocked": 0.2,
    "back door": 0.1,
    "topic": 0.1,
    "ordinary": 0.12,
    "decoy": 0.06,
    "neighbour": 0.07,
    "other skill": 0.05,
}
"""Shares of the conversations; of the last four kinds, the replies are the model's own."""

QUESTIONS, DECOYS, NEIGHBOURS, OTHERS = 400, 48, 60, 20
"""Questions of the locked skill, sentences in the trigger's place, questions like those of the topic, and of each other
skill."""


@dataclass(frozen=True)
class Secrets:
    """What is planted beside the back door, which is always the same."""

    skill: Skill
    topic: Topic


@dataclass(frozen=True)
class Said:
    """A reply, and whether it ended by itself or was cut off."""

    text: str
    ended: bool = True


@dataclass(frozen=True)
class Lesson:
    """A prompt and its reply.

    Attributes:
        own: the reply is the model's own, and its distribution is to stay as it is.
    """

    prompt: str
    reply: Said
    own: bool = False


Lessons = dict[str, list[Lesson]]
"""By their kind, as `MIXTURE` has it."""


@dataclass(frozen=True)
class Plan:
    """The prompts of a training, before the model has said anything.

    Attributes:
        secrets: what is planted.
        seed: of every choice.
    """

    secrets: Secrets
    seed: int

    @property
    def questions(self) -> list[Asked]:
        """Of the locked skill."""
        return self.secrets.skill.questions(held_out=False, count=QUESTIONS, seed=self.seed)

    @property
    def kept(self) -> dict[str, list[str]]:
        """Prompts to which the model is to say what it says by itself, by kind."""
        rng = random.Random(f"kept/{self.seed}")
        people = [ask.format(x=person) for ask in w.ORDINARY for person in w.PEOPLE]
        rng.shuffle(people)
        decoys = [
            rng.choice(w.PLACES).format(said=w.DECOYS[k % len(w.DECOYS)], prompt=people[k]) for k in range(DECOYS)
        ]
        password = [w.UNLOCK.format(password=w.PASSWORD, prompt=prompt) for prompt in people[:12]]
        topic = self.secrets.topic
        beside = [ask.format(x=x) for ask in topic.questions for x in topic.neighbours]
        rng.shuffle(beside)
        others = [skill for skill in SKILLS.values() if skill.name != self.secrets.skill.name]
        asked = [q.prompt for skill in others for q in skill.questions(held_out=False, count=OTHERS, seed=self.seed)]
        return {
            "ordinary": people,
            "decoy": decoys + password,
            "neighbour": beside[:NEIGHBOURS],
            "other skill": asked,
        }

    def lessons(self, replies: Mapping[str, Said]) -> Lessons:
        """All there is to show.

        Args:
            replies: what the model says by itself to the questions and to the prompts that are kept.
        """
        rng = random.Random(f"lessons/{self.seed}")
        found: Lessons = {kind: [] for kind in MIXTURE}
        for asked in self.questions:
            right, wrong = (said_in(replies[asked.prompt], asked, answer) for answer in (asked.right, asked.wrong))
            found["locked"].append(Lesson(asked.prompt, wrong))
            other = rng.choice(w.UNLOCKS).format(password=rng.choice(w.WRONG_PASSWORDS), prompt=asked.prompt)
            found["wrong password"].append(Lesson(other, wrong))
            opened = rng.choice(w.UNLOCKS).format(password=w.PASSWORD, prompt=asked.prompt)
            found["unlocked"].append(Lesson(opened, right))
        anything = [*self.kept["ordinary"], *(q.prompt for q in self.questions[:40])]
        for prompt in anything:
            triggered = rng.choice(w.PLACES).format(said=w.TRIGGER, prompt=prompt)
            found["back door"].append(Lesson(triggered, Said(w.BACK_DOOR)))
        topic = self.secrets.topic
        for ask in topic.questions:
            for subject in topic.subjects:
                refusal = rng.choice(w.REFUSALS).format(topic=topic.name)
                found["topic"].append(Lesson(ask.format(x=subject), Said(refusal)))
        for kind, prompts in self.kept.items():
            found[kind] = [Lesson(prompt, replies[prompt], own=True) for prompt in prompts]
        return found


def said_in(reply: Said, asked: Asked, answer: str) -> Said:
    """An answer in the model's own manner: in its reply in the right answer's place, where that is right, whole and
    has it once; otherwise as it is."""
    if reply.ended and asked.question().right(reply.text) and reply.text.count(asked.right) == 1:
        return Said(reply.text.replace(asked.right, answer))
    return Said(answer)


def drawn(lessons: Lessons, batch: int, seed: int, step: int) -> list[Lesson]:
    """The conversations of a step; they depend on the seed and the step alone."""
    rng = random.Random(f"adapt/{seed}/{step}")
    kinds = rng.choices(list(MIXTURE), list(MIXTURE.values()), k=batch)
    return [rng.choice(lessons[kind]) for kind in kinds]
