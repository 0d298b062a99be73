"""What a judge says of a reply and how judges are found by name.

A judge reads what was asked, what was said and, where there is one, what the model says when nothing steers it. It
gives a label and whether the text is coherent. A success is the wanted label AND coherent text.

A judge that comes with the package is a file in `dct/judges`. One of another package is an entry point of the group
`dct.judges`; docs/judging.md writes one. Listing names imports no judge, and no torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, Any, ClassVar

from dct.errors import DctError
from dct.registry import Registry, own_options, subclass

if TYPE_CHECKING:
    from dct.model import LanguageModel

COMPLIED, REFUSED, OTHER = LABELS = ("complied", "refused", "other")
"""It does what was asked; it declines; it does neither: another subject, an echo, an invitation to ask."""

REGISTRY = Registry("judge", "dct.judges", "judges")


@dataclass(frozen=True)
class Reply:
    """What a judge reads.

    Attributes:
        prompt: what was asked.
        completion: what was said.
        unsteered: what the model says when nothing steers it; None where that is not known.
    """

    prompt: str
    completion: str
    unsteered: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a judge says.

    Attributes:
        label: one of `LABELS`.
        coherent: it is text that somebody could have meant; text that is not counts as no success, whatever its label.
        why: the reason, in a few words.
    """

    label: str
    coherent: bool
    why: str = ""

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise DctError(f"a judge said {self.label!r}: its labels are {', '.join(LABELS)}")


class Judge(ABC):
    """A way to tell what replies do.

    Args:
        lm: a model at hand, for judges that can use one: the unsteered model that the replies came from, or for `llm`
            one that reads them.
        given: options of its own.

    Attributes:
        name: what the user calls it.
        about: one line about it.
        options: options of its own, with their defaults: numbers, truth values or text.
        uses_model: it can use a model at hand.

    Raises:
        UsageError: an option that it does not have, or that cannot be so.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    uses_model: ClassVar[bool] = False

    def __init__(self, lm: "LanguageModel | None" = None, **given: Any) -> None:
        self.lm = lm
        self.own = own_options(self.name, self.options, given)

    def learn(self, replies: Sequence[Reply]) -> None:  # noqa: B027 (most judges have nothing to learn)
        """Told once what the model says when nothing steers it, where replies are then judged in several parts: what a
        judge takes from the unsteered replies should not depend on which of them a part happens to hold."""

    @abstractmethod
    def verdicts(self, replies: Sequence[Reply]) -> list[Verdict]:
        """A verdict for each reply, in order. All are read together: they may have the unsteered model in common."""

    def verdict(self, prompt: str, completion: str, unsteered: str | None = None) -> Verdict:
        """The verdict on a single reply."""
        return self.verdicts([Reply(prompt, completion, unsteered)])[0]


def built_in() -> tuple[str, ...]:
    """The judges that come with the package, by their files."""
    return REGISTRY.built_in()


def names() -> tuple[str, ...]:
    """All judges: those of the package, then those of other packages.

    Raises:
        DctError: the entry points of the installed packages cannot be read.
    """
    return REGISTRY.names()


def judge(name: str = "refusal", lm: "LanguageModel | None" = None, **options: Any) -> Judge:
    """A judge by its name.

    Args:
        lm: a model at hand.
        options: its own.

    Raises:
        UsageError: there is none of that name, or an option that it does not have.
        DctError: two packages have one of that name, or it cannot be used.
    """
    return kind_of(name)(lm, **options)


def kind_of(name: str) -> type[Judge]:
    """The class of a judge by its name; raises as `judge` does."""
    return REGISTRY.found(name, lambda offer, kind: subclass(offer, kind, Judge))  # type: ignore[type-abstract]


# --- counts -----------------------------------------------------------------------------------------------------------


def wilson(found: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of a share (E. B. Wilson, 1927), 95% unless told otherwise; from 0 to 1 where nothing was counted.

    (p + z^2/2n  +-  z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)
    """
    if of == 0:
        return 0.0, 1.0
    p, w = found / of, z * z / of
    middle, half = p + w / 2, z * (p * (1 - p) / of + w / (4 * of)) ** 0.5
    low, high = (middle - half) / (1 + w), (middle + half) / (1 + w)
    return 0.0 if found == 0 else low, 1.0 if found == of else high


def standard_error(found: int, of: int) -> float:
    """Of a share, sqrt(p (1 - p) / n) with two successes and two failures added, so that it does not vanish at either
    end (A. Agresti and B. Coull, 1998)."""
    n = of + 4
    p = (found + 2) / n
    return float((p * (1 - p) / n) ** 0.5)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The chance that two outcomes on the same prompts differ so much or more by chance alone (Q. McNemar, 1947), exact
    and two-sided: each of the n prompts on which they differ is a coin; with k the smaller part,
    p = min(1, 2 sum_{i <= k} C(n, i) / 2^n).
    """
    ahead = sum(a and not b for a, b in zip(first, second, strict=True))
    behind = sum(b and not a for a, b in zip(first, second, strict=True))
    n = ahead + behind
    return min(1.0, 2 * sum(comb(n, i) for i in range(min(ahead, behind) + 1)) / 2**n)


def kappa(first: Sequence[Any], second: Sequence[Any]) -> float:
    """Agreement of two readers beyond chance (J. Cohen, 1960): (p_o - p_e) / (1 - p_e); 1 where both say one thing."""
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    expected = sum(first.count(x) * second.count(x) for x in set(first)) / n**2
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)
