"""A conversation with two models at once, the one left alone and the one that is pushed, each with its own history.

Knows no terminal: what may be typed is in `talkcommands`, how replies are drawn in `cli.chat`.
"""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dct.ablation import ablate
from dct.answering import Ask, Reply, answer
from dct.batching import in_batches
from dct.candidates import chosen
from dct.conversation import Turn, conversation
from dct.errors import DctError
from dct.guide import Guide
from dct.mixture import Mixtures, Term
from dct.model import LanguageModel
from dct.nexttoken import NextTokens
from dct.perturbation import Site, at, vectors_alone
from dct.replies import UNSTEERED as UNSTEERED  # where other modules look for it
from dct.scoring import divergence

STEERED = "steered"


@dataclass(frozen=True)
class Push:
    """What makes the steered model of the model.

    Attributes:
        terms: vectors that are added to the stream.
        ablated: vectors that are projected out of the weights.
    """

    terms: tuple[Term, ...] = ()
    ablated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """A question and one side's reply.

    Attributes:
        side: `unsteered` or `steered`.
        system: the system message, if there was one.
        prompt: the question.
        completion: what was said.
        finish: `stop`, `length`, or `stopped` by the user.
        push: what acted; nothing on the unsteered side.
        damage: KL of the push on harmless prompts, where it has been measured.
    """

    side: str
    system: str | None
    prompt: str
    completion: str
    finish: str
    push: Push = field(default_factory=Push)
    damage: float | None = None


class Talk:
    """The state of a conversation. One thread calls it; an `Exchange` works in another, and is waited for.

    Args:
        lm: the model; while vectors are ablated its weights are edited, until `close`.
        mixtures: what its vectors add.
        layer: where, hidden_states[layer]; or the changes that they are.
        guide: what is known of them.
        harmless: prompts on which damage is measured.
        most: tokens of a reply, at most.
        temperature, seed: 0 is greedy; the seed of the first question, the next one has the next.
        system: system message, if any.

    Attributes:
        push: what makes the steered model.
        both: the unsteered side is asked too.
        said: all replies of this conversation.
    """

    def __init__(
        self,
        lm: LanguageModel,
        mixtures: Mixtures,
        layer: Site,
        guide: Guide | None = None,
        *,
        harmless: Sequence[str] = (),
        most: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        system: str | None = None,
    ) -> None:
        self.lm, self.mixtures, self.layer, self.guide = lm, mixtures, layer, guide or Guide()
        self.harmless, self.most, self.temperature, self.seed, self.system = harmless, most, temperature, seed, system
        self.push, self.both = Push(), True
        self.said: list[Said] = []
        self.asked = 0
        self._running: Exchange | None = None
        self._weights = _Weights(self)
        self._measured: dict[tuple[Push, str | None], float] = {}

    @property
    def sides(self) -> list[str]:
        """Who is asked."""
        return [UNSTEERED, STEERED] if self.both else [STEERED]

    def change(self, push: Push) -> None:
        """Makes another steered model.

        Raises:
            DctError: there is no such vector, or the weights cannot be edited; all stays as it was.
        """
        if push.terms:
            self.mixtures.mix(push.terms)
        self._rest()
        try:
            self._weights.be(push.ablated)
        except Exception:
            self._weights.be(self.push.ablated)
            raise
        self.push = push

    def close(self) -> None:
        """Restores the weights."""
        self._rest()
        self._weights.be(())

    def turns(self, side: str) -> list[Turn]:
        """What a side has heard and said."""
        found = [("system", self.system)] if self.system else []
        for one in self.said:
            if one.side == side:
                found += [("user", one.prompt), ("assistant", one.completion)]
        return found

    def behind(self) -> int:
        """Questions that only the steered side has heard."""
        heard = [one.side for one in self.said]
        return max(0, heard.count(STEERED) - heard.count(UNSTEERED))

    def ask(self, question: str) -> "Exchange":
        """Puts a question to each side that is asked.

        Raises:
            DctError: a side's conversation cannot go on: too long, or no chat template for several turns.
        """
        self._rest()
        added = self.mixtures.mix(self.push.terms) if self.push.terms else None
        replies = {}
        for side in self.sides:
            ids = self._ids([*self.turns(side), ("user", question)])
            room = self.most if self.lm.context is None else self.lm.context - len(ids)
            if room < 1:
                raise DctError(
                    f"the {side} conversation has {len(ids)} tokens and {self.lm.name} reads {self.lm.context}: "
                    "/new begins another"
                )
            how: dict[str, Any] = {"temperature": self.temperature, "seed": self.seed + self.asked, "watched": True}
            theta = added if side == STEERED else None
            replies[side] = Reply(Ask(ids, theta, min(self.most, room), **how))
        self.asked += 1
        self._running = Exchange(self, question, replies)
        return self._running

    def _rest(self) -> None:
        """Ends what is still being said: only one thread at a time may use the model."""
        if self._running is not None:
            self._running.stop()
            self._running.wait(None)

    def _ids(self, turns: Sequence[Turn]) -> list[int]:
        several = sum(role == "user" for role, _ in turns) > 1
        if several and not self.lm.has_chat_template:
            raise DctError(
                f"{self.lm.name} has no chat template, and knows one question at a time: /new begins another"
            )
        return conversation(self.lm, turns)

    def answer(self, push: Push, replies: dict[str, Reply]) -> None:
        """Makes replies: in one batch, unless the sides have different weights."""
        every = list(replies.values())
        if push.ablated and len(every) > 1:
            for side, reply in replies.items():
                self._weights.be(push.ablated if side == STEERED else ())
                answer(self.lm, self.layer, [reply])
            return
        self._weights.be(push.ablated)
        in_batches(
            lambda start, stop: answer(self.lm, self.layer, every[start:stop]),
            len(every),
            len(every),
            self.lm.device,
            "/new begins a shorter conversation, and --max-new-tokens makes shorter replies",
        )

    # --- what is known of a push --------------------------------------------------------------------------------------

    def damage(self) -> float | None:
        """KL of what acts on harmless prompts, in nats; None where nobody has measured it."""
        known = self._measured.get((self.push, self.system))
        if known is not None or self.push.ablated or len(self.push.terms) != 1:
            return known
        [term] = self.push.terms
        return self.guide.damage(term.vector, self.mixtures.norm(term))

    def measure(self) -> float:
        """Measures that damage.

        Raises:
            DctError: nothing acts, or there are no harmless prompts.
        """
        push = self.push
        if push == Push():
            raise DctError("nothing acts, so nothing is damaged: choose a vector first, such as /vector 0")
        self._rest()
        rows = self.lm.encode(self.harmless, self.system)
        self._weights.be(())
        before = NextTokens(self.lm, self.layer, rows)
        self._weights.be(push.ablated)
        after = NextTokens(self.lm, self.layer, rows) if push.ablated else before
        added = self.mixtures.mix(push.terms) if push.terms else torch.zeros(at(self.layer, self.lm.width).dim)
        [kl] = after.under(added[None], lambda logs: float(divergence(before.base, logs)))
        self._measured[push, self.system] = kl
        return kl

    def label(self) -> str:
        """What acts on the steered side, with names, scales and damage."""
        return self.told(self.push, self.damage(), words=True)

    def told(self, push: Push, damage: float | None, *, words: bool = False) -> str:
        """A push in words: its vectors with their scales (and names), and its damage."""
        named = self._words if words else lambda _: ""
        added = [f"{t.vector} at {self.multiple(t)} R{named(t.vector)}" for t in push.terms]
        parts = ["vector " + " + ".join(added)] if added else []
        if push.ablated:
            parts.append("without vector " + ", ".join(f"{name}{named(name)}" for name in push.ablated))
        if not parts:
            return "nothing added"
        return ", ".join(parts) + (", damage not measured" if damage is None else f", damage {damage:.3f}")

    def multiple(self, term: Term) -> str:
        """How many R a vector is added at."""
        return f"{self.mixtures.norm(term) / self.mixtures.factors.scale:.4g}"

    def _words(self, vector: str) -> str:
        words = " ".join(self.guide.words(vector)[:2])
        return f" ({words})" if words else ""


class Exchange:
    """A question while it is answered.

    Attributes:
        question: as it was put.
        replies: those that grow, by side.
        together: they are made in one batch.
        label: what acted.
    """

    def __init__(self, talk: Talk, question: str, replies: dict[str, Reply]) -> None:
        self.question, self.replies = question, replies
        self.together = not (talk.push.ablated and len(replies) > 1)
        self.label = talk.label()
        self._talk, self._push, self._damage = talk, talk.push, talk.damage()
        self._failed: Exception | None = None
        self._worker = threading.Thread(target=self._work, name="dct-talk", daemon=True)
        self._worker.start()

    @property
    def alive(self) -> bool:
        """Whether it is still being answered."""
        return self._worker.is_alive()

    def wait(self, seconds: float | None) -> None:
        """Waits until all replies are there, but not longer."""
        self._worker.join(seconds)

    def stop(self) -> None:
        """Ends all replies with the next token."""
        for reply in self.replies.values():
            reply.cancel()

    def keep(self) -> list[Said]:
        """Adds to each side's history what it said, once all is there; a reply that was stopped before it began is
        forgotten.

        Raises:
            Whatever kept a reply from being made; nothing is kept then.
        """
        self._worker.join()
        if self._failed is not None:
            raise self._failed
        kept = []
        for side, reply in self.replies.items():
            finish = reply.finish or "stopped"
            if reply.text or finish != "stopped":
                acted = (self._push, self._damage) if side == STEERED else (Push(), None)
                kept.append(Said(side, self._talk.system, self.question, reply.text, finish, *acted))
        self._talk.said += kept
        return kept

    def _work(self) -> None:
        try:
            self._talk.answer(self._push, self.replies)
        except Exception as error:  # the model's own code may raise anything, and the conversation goes on
            self._failed = error.with_traceback(None)


class _Weights:
    """The model's weights, as they are or without some vectors; edited only when that changes."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._now: tuple[str, ...] = ()
        self._edit = ExitStack()

    def be(self, ablated: tuple[str, ...]) -> None:
        """Edits the weights, or restores them.

        Raises:
            DctError: there is no such vector, or the weights cannot be edited; they are as they were loaded then.
        """
        if ablated == self._now:
            return
        directions = self._directions(ablated)
        self._now = ()
        self._edit.close()
        if directions is not None:
            self._edit.enter_context(ablate(self._talk.lm, directions))
            self._now = ablated

    def _directions(self, names: tuple[str, ...]) -> Float[Tensor, "n width"] | None:
        factors = self._talk.mixtures.factors
        if names:
            vectors_alone(factors.info, "an ablation", "/vector acts with one of them")
        return torch.stack([chosen(factors, name) for name in names]) if names else None
