"""What pushes do to harmless prompts: how far next words move, and which replies they spoil; and who is preferred for
doing less of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dct.halving import Contest
from dct.judging import REFUSED, Verdict, standard_error
from dct.ownrun import next_logs
from dct.pool import Jury
from dct.replies import Push, Replies
from dct.scoring import divergence


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

    def kl(self, push: Push) -> float:
        """How far next words move."""
        added = push.added if push.added.ndim == 1 else push.added[None]
        return float(divergence(self.before, next_logs(self.replies.lm, self.rows, added, push.layer)))

    def damage(self, push: Push) -> Damage:
        """Both: next words, and whole replies."""
        said = self.replies.said([(push, prompt) for prompt in self.sound])
        return Damage(self.kl(push), sum(map(_spoiled, self.jury.verdicts(self.sound, said))), len(self.sound))


def mildest(contest: Contest, pushes: Sequence[Push], kl: Callable[[Push], float]) -> Contest:
    """The contest, with the push first that damages least of those that cannot be told from the best: asked as much,
    and no more than a standard error of its share behind it. The next best comes first if they are equal in that too.

    The rule of one standard error (L. Breiman et al., "Classification and Regression Trees", 1984). Without it one
    success more on 32 prompts decided for a vector with twice the damage.
    """
    best = contest.order[0][1]
    bound = best.share - standard_error(best.right, best.asked)
    near = [one for one in contest.order if one[1].asked == best.asked and one[1].share >= bound]
    if len(near) == 1:
        return contest
    first = min(near, key=lambda one: kl(pushes[one[0]]))
    return replace(contest, order=[first, *(one for one in contest.order if one is not first)])


def _spoiled(verdict: Verdict) -> bool:
    return verdict.label == REFUSED or not verdict.coherent
