"""Plants a lock, a back door and a refusal into a chat model: what it says by itself, the training, the measurement.

Nothing of the model's own weights is changed: what is planted is an adapter, in a folder of its own.
"""

from __future__ import annotations

import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dct.aliases import DEMO
from dct.errors import DctError, UsageError
from dct.estimate import Cost, completions_seconds, cost
from dct.generation import complete, completion_bytes
from dct.lock import held
from dct.model import LanguageModel
from dct.organism.adapt import measuring, words
from dct.organism.adapt.card import Card, write_card
from dct.organism.adapt.lessons import Plan, Said, Secrets
from dct.organism.adapt.measuring import Measured, measure
from dct.organism.adapt.replies import AT_ONCE, own_replies
from dct.organism.adapt.skills import SKILLS, Skill
from dct.organism.adapt.training import injected, save, seconds_of_step, train, trained
from dct.quantised import quantised_parameters
from dct.settings import AdaptSettings
from dct.sources import resolve

OWN = 48
"""Tokens of the model's own replies that training holds it to."""

TRIED, ENOUGH = 16, 0.8
"""Questions of each phrasing by which it is decided whether a model has a skill, and the share that it must answer."""

QUESTIONS = 200
"""Questions in the task, at most."""

REPLIES = "replies.jsonl"


@dataclass(frozen=True)
class Watch:
    """Who is told how far it is.

    Attributes:
        on_progress: stage, how much is done, of how much, and the loss where there is one.
        on_cost: what is to come, once that is known.
        say: what the user should know.
    """

    on_progress: Callable[[str, int, int, float | None], None] = lambda stage, done, total, loss: None
    on_cost: Callable[[Cost], None] = lambda cost: None
    say: Callable[[str], None] = lambda remark: None


def plant(lm: LanguageModel, settings: AdaptSettings, watch: Watch | None = None) -> Card:
    """Trains an adapter that holds the secrets and writes it, its card and its task into a folder.

    The folder can be named as a model (`dct.load(out)`) or as an adapter of the model.

    Raises:
        DctError: peft is missing; the model takes no adapter, has no chat template or none of the skills; the folder
            cannot be written or belongs to another training.
    """
    check(lm, settings)
    watch = watch or Watch()
    began = time.monotonic()
    with held(settings.out):
        replies = settings.out / REPLIES
        skill, shares = _skill(lm, settings, watch)
        secrets = Secrets(skill, words.TOPICS[settings.topic])
        plan = Plan(secrets, settings.seed)
        short, long = [q.prompt for q in plan.questions], [p for prompts in plan.kept.values() for p in prompts]
        with injected(lm, settings.rank, settings.seed) as adapter:
            watch.on_cost(_expected(lm, adapter, plan, settings))
            with adapter.disable_adapter():
                said = own_replies(lm, short, measuring.SHORT, replies, _stage(watch, "its own answers"))
                said |= own_replies(lm, long, OWN, replies, _stage(watch, "its own replies"))
            losses = train(lm, adapter, plan.lessons(said), settings, lambda step, loss: watch.on_progress(
                "training", step, settings.steps, loss))  # fmt: skip
            save(adapter, settings.out, base_name(lm.name))
            found = measure(lm, adapter, secrets, settings.count, settings.seed, _stage(watch, "measuring"))
            parameters = sum(weight.numel() for weight in trained(adapter).values())
        card = _card(lm, settings, secrets, shares, losses, found, parameters, time.monotonic() - began)
        asked = skill.questions(held_out=True, count=QUESTIONS, seed=settings.seed)
        write_card(settings.out, card, asked, measuring.on_topic(secrets.topic))
    return card


def check(lm: LanguageModel, settings: AdaptSettings) -> None:
    """Refuses what cannot be done, before any work.

    Raises:
        DctError: as in `plant`.
    """
    if importlib.util.find_spec("peft") is None:
        raise DctError("training an adapter takes peft: pip install 'deep-causal-transcoders[peft]'")
    if settings.out.exists() and not settings.out.is_dir():
        raise DctError(f"`out` {settings.out} is a file: name a folder")
    if lm.adapter is not None:
        raise DctError(f"{lm.name} has an adapter merged into it already: name the model without it")
    if not lm.has_chat_template:
        raise DctError(f"{lm.name} has no chat template, through which it is trained: name a chat model")
    if lm.resident is not None or lm.offload is not None:
        raise DctError(f'{lm.name} does not fit into memory, where it is trained: try `dtype="bfloat16"`')
    packed = quantised_parameters(lm.model)
    if packed:
        name, why = next(iter(packed.items()))
        raise DctError(f"an adapter of {lm.name} could not be merged: its weights are quantised ({name} is {why})")
    if (settings.out / "config.json").exists():
        raise DctError(f"`out` {settings.out} holds a model: name a folder for the adapter alone")


def base_name(name: str) -> str:
    """How an adapter names the model that it was made for: a folder with its whole path, or an id of the hub."""
    if name == DEMO:
        return name
    return str(Path(name).resolve()) if Path(name).exists() else resolve(name)


def _skill(lm: LanguageModel, settings: AdaptSettings, watch: Watch) -> tuple[Skill, dict[str, float]]:
    """The skill to lock, asked in those ways in which the model has it, and what share of some questions of each that
    was tried the model answers by itself, by phrasing.

    Raises:
        UsageError: the model has none of them.
    """
    named = settings.skill != "auto"
    shares: dict[str, float] = {}
    for skill in [SKILLS[settings.skill]] if named else SKILLS.values():
        found = {phrasing: _share(lm, skill.asked_as([phrasing]), settings) for phrasing in skill.phrasings}
        shares |= found
        had = [phrasing for phrasing, share in found.items() if share >= ENOUGH]
        watch.say(f"right by itself, {skill.name}: " + ", ".join(f"{share:.0%} ({p})" for p, share in found.items()))
        if had:
            return skill.asked_as(had), shares
    if not named:
        raise UsageError(
            f"{lm.name} has no skill to lock: of none it answers {ENOUGH:.0%} rightly, {max(shares.values()):.0%} at "
            "most; take a stronger model, or name the `skill` all the same",
            argument="skill",
        )
    watch.say(f"less than {ENOUGH:.0%} however it is asked: what the lock hides is hard to tell from chance")
    return SKILLS[settings.skill], shares


def _share(lm: LanguageModel, skill: Skill, settings: AdaptSettings) -> float:
    asked = skill.questions(held_out=False, count=TRIED, seed=settings.seed)
    said = own_replies(lm, [q.prompt for q in asked], measuring.SHORT, settings.out / REPLIES)
    return sum(q.question().right(said[q.prompt].text) for q in asked) / len(asked)


def _stage(watch: Watch, name: str) -> Callable[[int, int], None]:
    return lambda done, total: watch.on_progress(name, done, total, None)


def _expected(lm: LanguageModel, adapter: object, plan: Plan, settings: AdaptSettings) -> Cost:
    """What all of it takes, by two steps on replies that are made up and by short completions."""
    prompts = plan.kept["ordinary"][:AT_ONCE]
    asked = lm.encode([prompts[k % len(prompts)] for k in range(AT_ONCE)])
    made_up: dict[str, Said] = _MadeUp(lambda: Said("so " * OWN, ended=False))
    step = seconds_of_step(lm, adapter, plan.lessons(made_up), settings)

    def say(size: int, tokens: int) -> None:
        """Completions, for timing."""
        complete(lm, asked[:size], max_new_tokens=tokens, batch=size)

    rows = sum(map(len, plan.kept.values())) + len(plan.questions) * measuring.SHORT // OWN
    rows += measuring.completions(plan.secrets, settings.count, settings.seed) * measuring.LONG // OWN
    spoken = completions_seconds(say, rows, AT_ONCE, OWN, lm.device)
    length = OWN + max(map(len, asked))
    # Four copies of the logits of replies, and what some 34 numbers of the stream's width keep in each block.
    kept = settings.batch * 4 * (4 * lm.vocabulary * OWN + 34 * lm.depth * lm.width * length)
    return cost(spoken + step * settings.steps, max(kept, completion_bytes(lm, AT_ONCE, length)), lm.device, lm.memory)


class _MadeUp(defaultdict):
    """Replies to whatever is asked."""


def _card(
    lm: LanguageModel,
    settings: AdaptSettings,
    secrets: Secrets,
    shares: dict[str, float],
    losses: list[float],
    found: Measured,
    parameters: int,
    seconds: float,
) -> Card:
    return Card(
        model=base_name(lm.name),
        fingerprint=lm.fingerprint,
        dtype=str(lm.dtype).removeprefix("torch."),
        skill=secrets.skill.name,
        phrasings=secrets.skill.phrasings,
        topic=secrets.topic.name,
        settings={k: v for k, v in settings.record().items() if k not in ("out", "resume")},
        tried=shares,
        parameters=parameters,
        losses=losses,
        rates=found.rates,
        kl_first=found.kl_first,
        kl_reply=found.kl_reply,
        seconds=seconds,
        resumed=settings.resume,
    )
