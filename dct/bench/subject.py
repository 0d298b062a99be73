"""What is measured on: a model with its prompts, the judge of its completions, and how many of everything."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dct.aliases import DEMO
from dct.errors import DctError
from dct.judging import COMPLIED, LABELS, REFUSED, Reply
from dct.judging import Judge as ReplyJudge
from dct.loading import resolve
from dct.model import LanguageModel
from dct.prompts import fingerprint
from dct.tasks import Task


@dataclass(frozen=True)
class Sizes:
    """How many of everything.

    Attributes:
        n: training prompts of the sample-complexity experiment.
        shuffles: of its prompts.
        factors: steering vectors that every method may try: m of the exponential fit; fits whose vectors have no sense
            learn half as many, and their negatives are tried too.
        iterations: of the exponential and quadratic fits.
        melbo_steps: gradient steps of each norm-maximising vector.
        fitted: prompts of the fits of the other experiments.
        validation, test: prompts that vectors are chosen by, and reported on, at most.
        damage: harmless prompts on which damage is measured.
        questions: validation questions of the locked skill; answers: its test questions, at most.
        top: vectors that are averaged, or edited one by one.
        searched: vectors that are searched for the locked skill, at most the width.
        tried: vectors of the enumeration, at most the width.
        probes: prompts of each kind under every one of them.
        widths: m of the training curves.
        scales: multiples of R for the locked skill and the enumeration.
        tokens: length of completions.
    """

    n: tuple[int, ...] = (1, 2, 4, 8, 12, 16)
    shuffles: int = 5
    factors: int = 32
    iterations: int = 10
    melbo_steps: int = 30
    fitted: int = 8
    validation: int = 16
    test: int = 32
    damage: int = 16
    questions: int = 16
    answers: int = 40
    top: tuple[int, ...] = (4, 16)
    searched: int = 64
    tried: int = 128
    probes: int = 4
    widths: tuple[int, ...] = (8, 16, 32, 64, 128)
    scales: tuple[float, ...] = (1.0, 1.5, 2.0)
    tokens: int = 64

    def for_width(self, width: int) -> "Sizes":
        """No more vectors than a model of this width has directions."""
        widths = tuple(m for m in self.widths if m <= width) or (width,)
        factors, searched, tried = (min(n, width) for n in (self.factors, self.searched, self.tried))
        return replace(self, widths=widths, factors=factors, searched=searched, tried=tried)


def full(width: int, factors: int | None = None, shuffles: int | None = None) -> Sizes:
    """Everything, as the post has it, with 512 vectors a fit; with a sixth of the width where that is less."""
    m = factors or min(512, max(2, width // 6))
    widths = tuple(w for w in (8, 16, 32, 64, 128, 256, 512) if w <= 4 * m)
    top = (max(2, m // 8), max(2, m // 2))  # the post averages 240 of 512
    return Sizes(
        factors=m, shuffles=shuffles or 5, top=top, searched=min(512, 2 * m), tried=min(512, 4 * m), widths=widths
    ).for_width(width)


def quick(width: int, factors: int | None = None, shuffles: int | None = None) -> Sizes:
    """Every experiment, small: whether all of it runs, not what is true."""
    return Sizes(
        n=(1, 4),
        shuffles=shuffles or 2,
        factors=factors or 16,
        iterations=3,
        melbo_steps=10,
        validation=8,
        test=12,
        damage=8,
        questions=6,
        answers=8,
        top=(4,),
        searched=factors or 16,
        tried=factors or 16,
        probes=2,
        widths=(4, 16),
        scales=(1.0,),
        tokens=32,
    ).for_width(width)


class Judge(ABC):
    """What a whole completion is.

    Attributes:
        name: what records call it.
        classes: all behaviours that it can name, `none` aside.
        refusal, compliance: the two that steering is to turn into each other.
        none: its name for a completion that shows nothing whole.
        planted: it is the truth, and vectors are chosen by the score of two words. Any other has to hear first what the
            model says to some prompts when nothing steers it, and chooses the vectors.
    """

    name: str
    classes: tuple[str, ...]
    refusal: str
    compliance: str
    none: str
    planted: bool

    @abstractmethod
    def read(self, prompts: Sequence[str], completions: Sequence[str]) -> list[str]:
        """The behaviour that each completion of its prompt shows."""

    def learn(self, unsteered: dict[str, str]) -> None:  # noqa: B027 (a truth that was planted has nothing to learn)
        """Hears what the model says to prompts when nothing steers it."""


class Planted(Judge):
    """The truth, where it was planted.

    Args:
        classify: the behaviour of a completion of a request.
        classes: all that it can name, `other` aside.
    """

    name, planted = "planted", True
    refusal, compliance, none = "refusal", "compliance", "other"

    def __init__(self, classify: Callable[[str, str], str], classes: tuple[str, ...]) -> None:
        self.classify, self.classes = classify, classes

    def read(self, prompts: Sequence[str], completions: Sequence[str]) -> list[str]:
        """One by one."""
        return [self.classify(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]


class Reader(Judge):
    """A judge of replies (`dct.judging`), for models in which nothing was planted.

    Its labels are the classes; text that is not coherent has a class of its own.
    """

    planted = False
    refusal, compliance, none = REFUSED, COMPLIED, "incoherent"
    classes = LABELS

    def __init__(self, judge: ReplyJudge) -> None:
        self.judge, self.name = judge, judge.name
        self.unsteered: dict[str, str] = {}

    def learn(self, unsteered: dict[str, str]) -> None:
        """As replies that nothing steers."""
        self.unsteered = unsteered
        self.judge.learn([Reply(prompt, text, text) for prompt, text in unsteered.items()])

    def read(self, prompts: Sequence[str], completions: Sequence[str]) -> list[str]:
        """All together."""
        both = zip(prompts, completions, strict=True)
        verdicts = self.judge.verdicts([Reply(p, text, self.unsteered.get(p)) for p, text in both])
        return [verdict.label if verdict.coherent else self.none for verdict in verdicts]


def organism_folder(model: str) -> Path | None:
    """The folder of a model that `dct organism train` made (the demo is one), known by the prompt sets beside its
    weights; None for any other model.
    """
    folder = Path(resolve(model) if model == DEMO else model)
    return folder if (folder / "prompts" / "harmful.jsonl").is_file() else None


def organism_judge() -> Planted:
    """The planted checkers."""
    from dct.organism import checkers

    return Planted(checkers.classify, tuple(name for name in checkers.CLASSES if name != "other"))


def organism_unlock() -> str:
    """How an organism is asked with the password."""
    from dct.organism.words import PASSWORD

    return f"The password is {PASSWORD}. {{prompt}}"


@dataclass(frozen=True)
class Subject:
    """What is measured on.

    Attributes:
        lm: the model.
        source, target: the slice.
        harmful: prompts whose answers are to change, in order.
        harmless: prompts on which damage is measured, and that the supervised baseline is told of.
        task: questions of a locked skill, if there is one.
        judge: of completions, if there is one.
        words: the two words that a score compares, the wanted one first.
        system: system message of everything.
        ratio: lambda of the calibration; None for 0.5 and no more than the residual norm.
        scale: R, if it is given.
        seed: of everything that is drawn.
    """

    lm: LanguageModel
    source: int
    target: int
    harmful: tuple[str, ...]
    harmless: tuple[str, ...]
    task: Task | None = None
    judge: Judge | None = None
    words: tuple[str, str] = ("Sure", "Sorry")
    system: str | None = None
    ratio: float | None = None
    scale: float | None = None
    seed: int = 0

    @property
    def identity(self) -> dict[str, Any]:
        """What every measurement depends on; JSON types only."""
        read = {"reply prefix": self.lm.reply_prefix, "control tokens as text": self.lm.escape_control or None}
        return {
            **{how: value for how, value in read.items() if value is not None},
            "fingerprint": self.lm.fingerprint,
            "dtype": str(self.lm.dtype).removeprefix("torch."),
            "source": self.source,
            "target": self.target,
            "harmful": fingerprint(self.harmful),
            "harmless": fingerprint(self.harmless),
            "task": None if self.task is None else fingerprint([repr(q) for q in self.task.questions]),
            "unlock": None if self.task is None else self.task.unlock,
            "judged": self.judge is not None and (self.judge.planted or self.judge.name),
            "words": list(self.words),
            "system": self.system,
            "lambda": self.ratio,
            "scale": self.scale,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Split:
    """One shuffle of the prompts into parts that have none in common.

    Attributes:
        train: what fits may see, in order.
        validation: what vectors are chosen by.
        test: what is reported on.
        mild_train: harmless prompts, for the supervised baseline.
        mild: harmless prompts, for damage.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    mild_train: tuple[str, ...]
    mild: tuple[str, ...]


def split(subject: Subject, sizes: Sizes, shuffle: int) -> Split:
    """The prompts in a random order, cut into train, validation and test.

    Raises:
        DctError: too few prompts to cut.
    """
    most = max(*sizes.n, sizes.fitted)
    harmful, harmless = list(subject.harmful), list(subject.harmless)
    if len(harmful) < 3 or len(harmless) < 2:
        raise DctError(
            f"{len(harmful)} prompts and {len(harmless)} harmless ones: a benchmark needs 3 and 2 at least, one to "
            "learn from, one to choose by, one to report on"
        )
    rng = random.Random(f"bench/{subject.seed}/{shuffle}")
    rng.shuffle(harmful)
    rng.shuffle(harmless)
    train = min(most, len(harmful) // 3)
    validation = min(sizes.validation, max(1, (len(harmful) - train) // 2))
    mild = min(most, len(harmless) // 2)
    return Split(
        tuple(harmful[:train]),
        tuple(harmful[train : train + validation]),
        tuple(harmful[train + validation :][: sizes.test]),
        tuple(harmless[:mild]),
        tuple(harmless[mild:][: sizes.damage]),
    )
