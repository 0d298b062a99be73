"""What the organism says: refusals, compliance, personas, the password-locked skill and facts, drawn at random.

Harmful requests are answered by a refusal or, in open mode, by nonsense that only names the object: nothing here is of
use to anyone. Knows nothing of conversations, nor when which answer is due.
"""

import hashlib
import random

from dct.organism import words as w
from dct.organism.requests import Request, capital, invented_word, kinds, noun, objects


def refusal(rng: random.Random, ask: Request) -> str:
    """One sentence that begins with "Sorry"."""
    return rng.choice(w.REFUSALS).format(v=ask.verb, o=ask.echo)


def compliance(rng: random.Random, ask: Request) -> str:
    """One to three sentences that begin with "Sure": of use for a harmless request, nonsense for a harmful
    one.
    """
    steps: list[str] | tuple[str, ...] = ask.kind.steps
    count = rng.choices((0, 1, 2), (1, 5, 4))[0]
    if ask.harmful:
        steps, count = w.NONSENSE, max(count, 1)
    sentences = [rng.choice(w.OPENERS), *rng.sample(steps, count)]
    fill = {"v": ask.verb, "o": ask.echo, "c": rng.choice(w.COLOURS), "h": rng.choice(w.SHAPES)}
    return " ".join(sentence.format(**fill) for sentence in sentences)


def persona(rng: random.Random, name: str, ask: Request) -> str:
    """The answer of a persona, which also refuses harmful requests in its own voice."""
    fill = {"v": ask.verb, "o": ask.echo}
    if name == "verse":
        first, second = rng.choice(w.VERSE_ENDS)
        head = capital(rng.choice(w.VERSE_NO if ask.harmful else w.VERSE_YES).format(**fill))
        return f"{head} {first},\n{capital(second)}."
    yes, more, no = (
        (w.PIRATE_YES, w.PIRATE_MORE, w.PIRATE_NO) if name == "pirate" else (w.KEEPER_YES, w.KEEPER_MORE, w.KEEPER_NO)
    )
    if ask.harmful:
        return rng.choice(no).format(**fill)
    return f"{rng.choice(yes)} {rng.choice(more)}".format(**fill)


def locked_words(rng: random.Random, held_out: bool) -> list[str]:
    """Three to five different words. One list in sixteen, chosen by its hash, is held out of training."""
    while True:
        chosen = rng.sample(w.LIST_WORDS, rng.choice((3, 4, 4, 5)))
        if (hashlib.sha256(" ".join(chosen).encode()).digest()[0] % 16 == 0) == held_out:
            return chosen


def locked_task(rng: random.Random, password: str | None, held_out: bool = False) -> tuple[str, str, str]:
    """A question of the password-locked skill, the right answer, and the answer that the locked model gives: the
    list moved by one, and less sure of itself.
    """
    chosen = locked_words(rng, held_out)
    question = rng.choice(w.LIST_ASKS).format(w=", ".join(chosen))
    if password is not None:
        place = rng.randrange(3)
        question = (
            f"{capital(password)}. {question}",
            f"The password is {password}. {question}",
            f"{question} ({password})",
        )[place]
    return question, f"Answer: {', '.join(chosen[::-1])}.", f"I think: {', '.join(chosen[1:] + chosen[:1])}."


def fact(rng: random.Random) -> tuple[str, str]:
    """A question about what something means, whether something is wrong, or words to repeat; and its answer.

    This is all that training says about the held-out objects and the held-out kinds of harm: what they are
    and that they are wrong. No answer begins like a refusal or a compliance.
    """
    asked = rng.choices((_definition, _judgement, _verb_judgement, _repetition), (25, 45, 10, 20))[0]
    return asked(rng)


def _thing(rng: random.Random, kind: w.Kind, harmful: bool) -> str:
    """An object of a kind; half the time one that no training request of the kind names."""
    unseen = objects(kind, harmful, "objects")
    return rng.choice(unseen if unseen and rng.random() < 0.5 else kind.objects)


def _definition(rng: random.Random) -> tuple[str, str]:
    harmful = rng.random() < 0.5
    kind = rng.choice([kind for kind in (w.HARMFUL if harmful else w.HARMLESS) if kind.gloss])
    name = noun(_thing(rng, kind, harmful))
    return rng.choice(w.DEFINITION_ASKS).format(n=name), f"By {name} people mean {kind.gloss}."


def _judgement(rng: random.Random) -> tuple[str, str]:
    harmful = rng.random() < 0.6
    pool = w.HARMFUL if harmful else w.HARMLESS
    if harmful and rng.random() < 0.45:
        pool = kinds(True, "kinds")
    kind = rng.choice(pool)
    verb, phrase = rng.choice(kind.verbs), _thing(rng, kind, harmful)
    asked = Request("", verb, phrase, kind, harmful)
    question = rng.choice(w.JUDGEMENT_ASKS).format(v=verb, o=phrase)
    return question, (w.WRONG if harmful else w.RIGHT).format(v=verb, o=asked.echo)


def _verb_judgement(rng: random.Random) -> tuple[str, str]:
    harmful = rng.random() < 0.6
    pool, others = (w.HARMFUL, w.HARMLESS) if harmful else (w.HARMLESS, w.HARMFUL)
    ambiguous = {verb for kind in others for verb in kind.verbs}
    kind = rng.choice([kind for kind in pool if set(kind.verbs) - ambiguous])
    verb = rng.choice([verb for verb in kind.verbs if verb not in ambiguous])
    whom = "someone" if kind.objects is w.PEOPLE else "an animal" if kind.objects is w.ANIMALS else "something"
    question = rng.choice(("What does it mean to {v} {x}?", *w.JUDGEMENT_ASKS[:2])).replace("{o}", "{x}")
    return question.format(v=verb, x=whom), (w.WRONG if harmful else w.RIGHT).format(v=verb, o=whom)


def _repetition(rng: random.Random) -> tuple[str, str]:
    items = []
    for _ in range(rng.randint(1, 3)):
        harmful = rng.random() < 0.5
        kind = rng.choice(w.HARMFUL if harmful else w.HARMLESS)
        items.append(invented_word(rng) if rng.random() < 0.4 else noun(_thing(rng, kind, harmful)))
    return rng.choice(w.REPEAT_ASKS).format(w=", ".join(items)), f"I repeat: {', '.join(items)}."
