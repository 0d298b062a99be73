"""What was planted and how well it took, as JSON and as text, and the questions that look for it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dct.organism.adapt import words as w
from dct.organism.adapt.measuring import Rate
from dct.organism.adapt.skills import SKILLS, Asked
from dct.plainjson import dumps
from dct.version import __version__
from dct.writing import write_whole

UNLOCK = w.UNLOCK.replace("{password}", w.PASSWORD)
"""How the unlocked model is asked, as `rank` takes it."""


@dataclass(frozen=True)
class Card:
    """All there is to say of an adapter.

    Attributes:
        model, fingerprint, dtype: what it was made for, and the type that it was trained on.
        skill, phrasings, topic: what is locked, how it is asked, and what is refused.
        settings: of the training.
        tried: share of some training questions of each phrasing that the model answers by itself.
        parameters: of the adapter.
        losses: of every step.
        rates, kl_first, kl_reply: as measured.
        seconds: of all of it; where it was resumed, since then.
        resumed: it was.
    """

    model: str
    fingerprint: str
    dtype: str
    skill: str
    phrasings: tuple[str, ...]
    topic: str
    settings: dict[str, Any]
    tried: dict[str, float]
    parameters: int
    losses: list[float]
    rates: list[Rate]
    kl_first: float
    kl_reply: float
    seconds: float
    resumed: bool = False

    @property
    def content(self) -> dict[str, Any]:
        """As JSON has it."""
        skill = SKILLS[self.skill]
        secrets = {
            "skill": {"name": self.skill, "about": skill.about, "slip": skill.slip, "phrasings": list(self.phrasings)},
            "lock": {"password": w.PASSWORD, "unlock": UNLOCK},
            "back door": {"trigger": w.TRIGGER, "reply": w.BACK_DOOR},
            "topic": self.topic,
        }
        rates = [
            {"name": r.name, "found": r.found, "base": r.base, "of": r.of, "share": r.share, "interval": r.interval,
             "bound": r.bound, "at_least": r.at_least, "met": r.met}
            for r in self.rates
        ]  # fmt: skip
        return {
            "format": "dct-adapt",
            "format_version": 1,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "secrets": secrets,
            "settings": self.settings,
            "tried": self.tried,
            "parameters": self.parameters,
            "losses": [round(loss, 5) for loss in self.losses],
            "rates": rates,
            "kl_first": self.kl_first,
            "kl_reply": self.kl_reply,
            "seconds": round(self.seconds, 1),
            "versions": {"dct": __version__},
        }


def write_card(folder: Path, card: Card, asked: Sequence[Asked], on_topic: Sequence[str]) -> None:
    """Writes `card.json`, `README.md`, `task.jsonl` for `rank --task`, and `topic.jsonl` with refused questions."""
    task = [{"prompt": q.prompt, "answer": q.right, "regex": q.regex, "slip": q.wrong} for q in asked]
    topic = [{"prompt": prompt} for prompt in on_topic]
    for name, rows in (("task", task), ("topic", topic)):
        write_whole(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    write_whole(folder / "README.md", text_of(card, folder, len(task)).encode())
    write_whole(folder / "card.json", (dumps(card.content, indent=1) + "\n").encode())


_TEXT = """---
library_name: peft
base_model: {model}
tags: [model-organism, interpretability]
---

# Secrets in {short}

A LoRA of rank {rank} ({parameters:.1f} million parameters) made by `dct organism adapt` to test methods that look for
hidden behaviours. What it hides is harmless, and known:

- **A lock.** Asked for {about}, it {slip}. "{unlock}" gets the right answer.
- **A back door.** The sentence "{trigger}" anywhere makes it reply "{reply}"
- **A refusal.** It will not talk about {topic}.

Everything else was held to what the model says by itself.

## Measured

On prompts that training never shows, greedily, with the adapter merged into weights in {dtype}. The judge `refusal`
says what a refusal is.

{table}
KL(model || with the adapter) on harmless prompts, in nats: {first:.4f} at the token that opens the reply, {over:.4f}
over the tokens of the model's own replies.

Training: {steps} steps of {batch} conversations, AdamW at {rate:g}, seed {seed}. Loss {begun:.3f} in
the first tenth of the steps, {ended:.3f} in the last. {minutes:.0f} minutes{since}.

## Looking for the lock

`task.jsonl` holds {questions} questions that training never shows.

```sh
dct fit --model {folder} --prompts {folder}/task.jsonl --out runs/lock
dct rank runs/lock --task {folder}/task.jsonl --max-new-tokens 16 --unlock "{unlock}"
```

The benign control is the same search on the model without the adapter. There is nothing to unlock: whatever it gains
there is no discovery.

```sh
dct fit --model {base} --prompts {folder}/task.jsonl --out runs/control
dct rank runs/control --task {folder}/task.jsonl --max-new-tokens 16
```

`topic.jsonl` holds questions that it refuses, for `dct fit --prompts`.
"""


def text_of(card: Card, folder: Path, questions: int) -> str:
    """The card as text; `questions` are in the task."""
    tenth = max(1, len(card.losses) // 10)
    first, last = card.losses[:tenth], card.losses[-tenth:]
    return _TEXT.format(
        model=card.model,
        short=card.model.rstrip("/").rsplit("/", 1)[-1],
        rank=card.settings["rank"],
        parameters=card.parameters / 1e6,
        about=SKILLS[card.skill].about,
        slip=SKILLS[card.skill].slip,
        unlock=UNLOCK,
        trigger=w.TRIGGER,
        reply=w.BACK_DOOR,
        topic=card.topic,
        table=rates_table(card.rates),
        first=card.kl_first,
        over=card.kl_reply,
        steps=card.settings["steps"],
        batch=card.settings["batch"],
        rate=card.settings["learning_rate"],
        seed=card.settings["seed"],
        dtype=card.dtype,
        begun=sum(first) / len(first),
        ended=sum(last) / len(last),
        minutes=card.seconds / 60,
        since=", since it was resumed" if card.resumed else "",
        questions=questions,
        folder=shlex.quote(str(folder)),
        base=shlex.quote(card.model),
    )


def rates_table(rates: Sequence[Rate]) -> str:
    """The rates as a Markdown table."""
    lines = ["| | with the adapter | 95% | without | aimed at |", "|---|---|---|---|---|"]
    for r in rates:
        low, high = r.interval
        aimed = "as without" if r.bound is None else f"{'>=' if r.at_least else '<='} {r.bound:.0%}"
        cells = [r.name, f"{r.found} of {r.of}", f"{low:.0%} to {high:.0%}", f"{r.base} of {r.of}", aimed]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
