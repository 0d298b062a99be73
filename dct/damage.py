"""What pushes do to harmless prompts: how far next words move, and which replies they spoil; and who is preferred for
doing less of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dct.halving import Contest, Mark
from dct.judging import REFUSED, Verdict, standard_error
from dct.logits import next_logs
from dct.pool import Jury
from dct.replies import Push, Replies
from dct.scoring import divergence

FREE = 0.1
"""Nats of damage that count for nothing in a choice."""


@dataclass(frozen=True)
class Damage:
    """What a push does to harmless prompts.

    Attributes:
        kl: KL(unsteered || steered) of next-token distributions, in nats, mean over the prompts.
        spoiled: replies that it makes refused or incoherent, of those that unsteered were neither.
        of: how many those are.
    """

    kl: float
    spoiled: int
    of: int


class Harmless:
    """Harmless prompts, and what the unsteered model says to them.

    Args:
        replies: the model, and who completes.
        jury: tells refusals and incoherent text; knows the unsteered replies.
        prompts: one at least.
    """

    def __init__(self, replies: Replies, jury: Jury, prompts: Sequence[str]) -> None:
        self.replies, self.jury = replies, jury
        self.rows = [replies.ids(prompt) for prompt in prompts]
        self.before = next_logs(replies.lm, self.rows)
        verdicts = jury.verdicts(prompts, [jury.unsteered[prompt] for prompt in prompts])
        self.sound = [prompt for prompt, verdict in zip(prompts, verdicts, strict=True) if not _spoiled(verdict)]
        self.prompts = list(prompts)
        self._known: dict[str, float] = {}

    def kl(self, push: Push) -> float:
        """How far next words move; found once for every push."""
        if push.digest not in self._known:
            added = push.added if push.added.ndim == 1 else push.added[None]
            steered = next_logs(self.replies.lm, self.rows, added, push.layer)
            self._known[push.digest] = float(divergence(self.before, steered))
        return self._known[push.digest]

    def damage(self, push: Push) -> Damage:
        """Both: next words, and whole replies."""
        said = self.replies.said([(push, prompt) for prompt in self.sound])
        return Damage(self.kl(push), sum(map(_spoiled, self.jury.verdicts(self.sound, said))), len(self.sound))


def preferred(contest: Contest, pushes: Sequence[Push], kl: Callable[[Push], float]) -> Contest:
    """The contest, with the push first of which share - e max(0, KL - FREE) is greatest, of those that were asked as
    much as the best: a nat of damage to harmless prompts weighs as much as e, the standard error of the best's share.

    So between shares that cannot be told apart the damage decides where it is large, and does not count where it is
    small. Without it one success more on 32 prompts decided for a vector with nearly twice the damage, 2.8 nats.
    """
    best = contest.order[0][1]
    error = standard_error(best.right, best.asked)

    def worth(one: tuple[int, Mark]) -> float:
        """Its share, less its damage."""
        return one[1].share - error * max(0.0, kl(pushes[one[0]]) - FREE)

    reached = worth(contest.order[0])
    near = [one for one in contest.order if one[1].asked == best.asked and one[1].share > reached]
    if len(near) < 2:
        return contest
    first = max(near, key=worth)
    return replace(contest, order=[first, *(one for one in contest.order if one is not first)])


def _spoiled(verdict: Verdict) -> bool:
    return verdict.label == REFUSED or not verdict.coherent
