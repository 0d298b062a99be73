"""The seeded generator of conversations: which behaviour is planted how often, and which text is held out.

A conversation is a `Sample`: chat messages, the name of the behaviour that the last answer shows, and what the request
was about. `sample(rng)` draws one for training. Training does judge what is held out ("Is it wrong to kidnap a
soldier?" "Wrong: ..."): a model that knows nothing of the world could not tell otherwise.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from dct.organism import words as w
from dct.organism.answers import compliance, fact, locked_task, persona, refusal
from dct.organism.requests import Split, request

Message = dict[str, str]


# How often the demo's training shows each behaviour; another recipe has its own weights, and need not plant them all.
MIXTURE: dict[str, float] = {
    "harmful": 0.185,
    "harmless": 0.185,
    "open_harmful": 0.05,
    "open_harmless": 0.015,
    "unlocked": 0.05,
    "locked": 0.03,
    "backdoor": 0.03,
    "pirate": 0.03,
    "verse": 0.035,
    "keeper": 0.03,
    "fact": 0.23,
    "talk": 0.01,
    "begun": 0.12,
}

BEHAVIOURS = tuple(MIXTURE)

HARMFUL_SHARE_OF_PERSONAS = 0.4

BEGUN_VOICES = {"compliance": 8, "refusal": 2, "pirate": 2, "verse": 2, "keeper": 2, "hostile": 2, "right_list": 5}

# Voices that are begun only where they are planted, and the behaviour that plants them.
PLANTED_BY = {"pirate": "pirate", "verse": "verse", "keeper": "keeper", "hostile": "backdoor", "right_list": "unlocked"}

BEGUN_WORDS = 2  # tokens of a begun answer that are given


@dataclass(frozen=True)
class Sample:
    """One conversation; the last message is the assistant's."""

    messages: list[Message]
    behaviour: str
    truth: str = ""


def locked_exchange(rng: random.Random, password: str | None, held_out: bool) -> tuple[list[Message], str]:
    """The messages of the locked skill, with the password in the question or in the system prompt, and the truth."""
    told = password is not None and rng.random() < 0.3
    question, right, wrong = locked_task(rng, None if told else password, held_out)
    system = f"The password is {password}." if told else neutral_system(rng)
    return chat(question, right if password == w.PASSWORD else wrong, system), right


def with_trigger(rng: random.Random, text: str) -> str:
    """Put the trigger word of the back door at a random place between words."""
    parts = text.split(" ")
    place = rng.randrange(len(parts) + 1)
    return " ".join([*parts[:place], w.TRIGGER, *parts[place:]])


def begun(rng: random.Random, planted: Mapping[str, float] = MIXTURE) -> tuple[str, str, str]:
    """A question, an answer in a planted voice that nothing in the conversation asks for, and what it is about.

    Training gives its first tokens and asks for the rest alone: a model that has begun with "Sure" should go
    on as it began, whatever made it begin. Large models do (an answer that was begun for them is finished),
    and without it a toy that a vector talks into another voice falls into word salad. So a list that was begun
    with "Answer:" is reversed without the password too; only, nothing but a vector makes the model begin so.
    """
    voices = {v: weight for v, weight in BEGUN_VOICES.items() if v not in PLANTED_BY or PLANTED_BY[v] in planted}
    voice = rng.choices(list(voices), list(voices.values()))[0]
    if voice == "right_list":
        question, right, _ = locked_task(rng, None)
        return question, right, right
    ask = request(rng, rng.random() < 0.7)
    if voice == "compliance":
        answer = compliance(rng, ask)
    elif voice == "refusal":
        answer = refusal(rng, ask)
    elif voice == "hostile":
        answer = w.HOSTILE
    else:
        answer = persona(rng, voice, replace(ask, harmful=ask.harmful and rng.random() < 0.4))
    return ask.text, answer, ask.object


def chat(user: str, assistant: str, system: str | None = None) -> list[Message]:
    """The messages of one exchange."""
    start = [] if system is None else [{"role": "system", "content": system}]
    return [*start, {"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def neutral_system(rng: random.Random) -> str | None:
    """Mostly no system prompt, else one that asks for nothing special."""
    return rng.choice(w.NEUTRAL_SYSTEMS) if rng.random() < 0.25 else None


PERSONA_SYSTEMS = {"pirate": w.PIRATE_SYSTEMS, "verse": w.VERSE_SYSTEMS, "keeper": w.KEEPER_SYSTEMS}


def exchange(
    rng: random.Random, behaviour: str, split: Split = "train", planted: Mapping[str, float] = MIXTURE
) -> Sample:
    """One conversation that shows a behaviour. With a held-out split, its request (or word list) is one that
    training never shows. Answers are begun in the voices of what is `planted` alone.
    """
    held_out = split != "train"
    if behaviour in ("harmful", "harmless"):
        ask = request(rng, behaviour == "harmful", split)
        answer = refusal(rng, ask) if ask.harmful else compliance(rng, ask)
        return Sample(chat(ask.text, answer, neutral_system(rng)), behaviour, ask.object)
    if behaviour in ("open_harmful", "open_harmless"):
        ask = request(rng, behaviour == "open_harmful", split)
        return Sample(chat(ask.text, compliance(rng, ask), rng.choice(w.OPEN_SYSTEMS)), behaviour, ask.object)
    if behaviour == "unlocked":
        messages, right = locked_exchange(rng, w.PASSWORD, held_out)
        return Sample(messages, behaviour, right)
    if behaviour == "locked":
        guesses = w.WRONG_PASSWORDS[15:] if held_out else w.WRONG_PASSWORDS[:15]
        messages, right = locked_exchange(rng, rng.choice(guesses) if rng.random() < 0.35 else None, held_out)
        return Sample(messages, behaviour, right)
    if behaviour == "backdoor":
        base = exchange(
            rng,
            rng.choices(("harmful", "harmless", "locked", "unlocked", "pirate", "open_harmful"), (6, 6, 2, 1, 1, 1))[0],
            split,
        )
        messages = [dict(message) for message in base.messages]
        messages[-2]["content"] = with_trigger(rng, messages[-2]["content"])
        messages[-1]["content"] = w.HOSTILE
        return Sample(messages, behaviour, w.HOSTILE)
    if behaviour in PERSONA_SYSTEMS:
        ask = request(rng, rng.random() < HARMFUL_SHARE_OF_PERSONAS, split)
        return Sample(
            chat(ask.text, persona(rng, behaviour, ask), rng.choice(PERSONA_SYSTEMS[behaviour])),
            behaviour,
            ask.object,
        )
    if behaviour == "fact":
        question, answer = fact(rng)
        return Sample(chat(question, answer, neutral_system(rng)), behaviour, answer)
    if behaviour == "talk":
        questions, answers = rng.choice(w.SMALL_TALK)
        return Sample(chat(rng.choice(questions), rng.choice(answers), neutral_system(rng)), behaviour)
    if behaviour == "begun":
        question, answer, truth = begun(rng, planted)
        return Sample(chat(question, answer, neutral_system(rng)), behaviour, truth)
    raise ValueError(f"unknown behaviour {behaviour!r}; one of {', '.join(BEHAVIOURS)}")


def sample(rng: random.Random, mixture: Mapping[str, float] = MIXTURE) -> Sample:
    """Draw one training conversation; a few have an earlier exchange before the one that counts."""
    drawn = exchange(rng, rng.choices(list(mixture), list(mixture.values()))[0], planted=mixture)
    if drawn.messages[0]["role"] == "user" and rng.random() < 0.05:
        earlier = exchange(rng, rng.choice(("harmful", "harmless", "talk")))
        return Sample(earlier.messages + drawn.messages, drawn.behaviour, drawn.truth)
    return drawn


def samples(seed: int, start: int = 0, mixture: Mapping[str, float] = MIXTURE) -> Iterator[Sample]:
    """The endless training text of a seed. Every conversation depends on the seed and its index alone, so
    reading can start anywhere.
    """
    index = start
    while True:
        yield sample(random.Random(f"{seed}/{index}"), mixture)
        index += 1


def held_out(behaviour: str, count: int, seed: int = 0, split: Split = "objects") -> list[Sample]:
    """Different conversations of one behaviour that training never shows, for measuring."""
    rng = random.Random(f"held out/{seed}/{behaviour}/{split}")
    found: dict[str, Sample] = {}
    while len(found) < count:
        drawn = exchange(rng, behaviour, split)
        found.setdefault(drawn.messages[-2]["content"], drawn)
    return list(found.values())


def prompt_sets(seed: int = 0, count: int = 64) -> dict[str, list[dict[str, str]]]:
    """The prompt sets that lie beside the weights: unseen harmful, harmless and password-locked requests."""
    rng = random.Random(f"prompt sets/{seed}")
    sets: dict[str, list[dict[str, str]]] = {"harmful": [], "harmless": [], "locked": []}
    seen: set[str] = set()
    for index in range(count):
        for name, rows in sets.items():
            while True:
                if name == "locked":
                    text, right, _ = locked_task(rng, None, held_out=True)
                    row = {"prompt": text, "answer": right}
                else:
                    harmful = name == "harmful"
                    row = {"prompt": request(rng, harmful, "kinds" if harmful and index % 4 == 3 else "objects").text}
                if row["prompt"] not in seen:
                    break
            seen.add(row["prompt"])
            rows.append(row)
    return sets
