"""What vectors are used for: ranking, steering, ablation and the benchmark."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dct.declaration import (
    FLOAT32,
    LARGE,
    SEEDS,
    SMALL,
    Range,
    Settings,
    above_zero,
    choice,
    counted,
    setting,
)
from dct.errors import UsageError
from dct.judging import LABELS


def scales_of(text: str) -> tuple[float, ...]:
    """`scales` as text has them: multiples of R, with commas between."""
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(SMALL <= s <= LARGE for s in found):
        raise ValueError(f"are positive multiples of R with commas between, such as 0.5,1,2,4: got {text!r}")
    return found


def check_vector(name: str, value: str) -> None:
    """A check: a vector's number."""
    digits = value.strip().removeprefix("-")
    if not digits.isdecimal() or len(digits) > 7:
        raise UsageError(f"a vector is a number such as 17, or -17 for its opposite; got {value!r}", argument="vector")


def _check_vectors(name: str, value: list[str]) -> None:
    for one in value:
        check_vector(name, one)


# --- ranking ----------------------------------------------------------------------------------------------------------

BETTER = "What a good vector makes likelier: a word, or any text."
WORSE = "What it makes less likely."
AUTOMATIC = "or auto where that pair tells nothing"


@dataclass(repr=False, eq=False, match_args=False)
class ScoreSettings(Settings):
    """What vectors are scored by, and how long they are."""

    table: ClassVar[str] = "rank"
    title: ClassVar[str] = "Ranking"
    own: ClassVar[bool] = True

    positive: str | None = setting(None, BETTER, shown=f"Sure, {AUTOMATIC}")
    negative: str | None = setting(None, WORSE, shown=f"Sorry, {AUTOMATIC}")
    scales: tuple[float, ...] | None = setting(
        None,
        "Multiples of R to try, such as 0.5,1,2,4; each vector keeps its best.",
        shown="0.7,1,1.4,2; 1 with --screen-only or --task",
        parse=scales_of,
        first=True,
    )


@dataclass(repr=False, eq=False, match_args=False)
class RankSettings(ScoreSettings):
    """How vectors are scored and ordered."""

    by: str = setting("score", "Of a screening: what orders the vectors.", check=choice("score", "alpha", "kl"))
    top: int = setting(10, "Rows to show.", check=counted(), first=True)
    scale: float = setting(1.0, "Multiplies the fitted R.", check=above_zero())
    max_damage: float | None = setting(
        None, "Of a screening: damage (KL) above which a vector or scale comes last.", check=Range(0.0, LARGE)
    )
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))

    def leave_order(self) -> None:
        """Refuses an order of the vectors where completions order them.

        Raises:
            UsageError: one was asked for.
        """
        if self.by != "score" or self.max_damage is not None:
            raise UsageError(
                "completions order the vectors: leave `by` and `max_damage` out, or add `screen_only`", argument="by"
            )


@dataclass(repr=False, eq=False, match_args=False)
class TaskSettings(Settings):
    """Questions with answers, and how they are asked."""

    table: ClassVar[str] = "task"
    title: ClassVar[str] = "Task"

    task: str | None = setting(
        None,
        "Rank by right answers instead: a file of prompts with `answer` or `regex` (or locked).",
        first=True,
    )
    match: str | None = setting(None, r"Of a task: a regular expression with {answer} in it, such as '\b{answer}\b'.")
    unlock: str | None = setting(None, "Of a task: how the unlocked model is asked, such as 'Password xyz. {prompt}'.")


@dataclass(repr=False, eq=False, match_args=False)
class ContestSettings(Settings):
    """How vectors are chosen by what a model says under them."""

    table: ClassVar[str] = "experiment"
    title: ClassVar[str] = "Experiment"

    test: int = setting(100, "At most so many prompts, or questions, are kept for reporting.", check=counted())
    max_new_tokens: int | None = setting(
        None, "Length of completions.", shown="64, on a GPU 100; of a task, by the answers", check=counted()
    )
    exhaustive: bool = setting(False, "Try everything on every prompt, without halving.")


@dataclass(repr=False, eq=False, match_args=False)
class SelectSettings(ContestSettings):
    """How vectors are chosen by judged completions."""

    screen_only: bool = setting(
        False, "Score every vector by likelihood alone, without completions: quick.", first=True
    )
    keep: int = setting(8, "Vectors that compete, of all that were heard.", check=counted())
    wanted: str = setting("complied", "The label that is a success, where the text is coherent.", check=choice(*LABELS))


@dataclass(repr=False, eq=False, match_args=False)
class VerifySettings(Settings):
    """How much of a run is measured again."""

    table: ClassVar[str] = "verify"
    title: ClassVar[str] = "Sample"
    own: ClassVar[bool] = True

    sample: int = setting(16, "Vectors, and replies, that are measured again.", check=counted(), first=True)
    seed: int = setting(0, "Seed of the sample.", check=counted(0, SEEDS))


# --- vectors in use ---------------------------------------------------------------------------------------------------


@dataclass(repr=False, eq=False, match_args=False)
class VectorSettings(Settings):
    """Which vectors of a run."""

    table: ClassVar[str] = "vectors"
    title: ClassVar[str] = "Vectors"

    vector: list[str] = setting(
        [], "A vector's number, -17 for its opposite; repeatable.", short="v", check=_check_vectors, first=True
    )
    rank: list[int] = setting([], "A vector by its place in the ranking; repeatable.", check=counted(), first=True)
    top: int | None = setting(None, "The first so many of the ranking.", check=counted())
    aggregate: str | None = setting(None, "Use their mean or svd instead of each of them.", check=choice("mean", "svd"))


@dataclass(repr=False, eq=False, match_args=False)
class SteerSettings(Settings):
    """How completions are steered."""

    table: ClassVar[str] = "steer"
    title: ClassVar[str] = "Completions"
    own: ClassVar[bool] = True

    scale: float = setting(
        1.0,
        "Multiplies R, or the scale that the ranking brings along.",
        check=Range(-LARGE, LARGE),
        first=True,
    )
    tokens: str = setting(
        "all",
        "Steer all tokens, only the prompt, or only those generated.",
        check=choice("all", "prompt", "generated"),
    )
    max_new_tokens: int = setting(64, "Length of completions.", check=counted())
    temperature: float = setting(0.0, "0 is greedy.", check=Range(0.001, 1000.0, zero=True))
    positive: str = setting("Sure", BETTER)
    negative: str = setting("Sorry", WORSE)
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))


@dataclass(repr=False, eq=False, match_args=False)
class ServeSettings(Settings):
    """Where a model is served, and how much of it."""

    table: ClassVar[str] = "serve"
    title: ClassVar[str] = "Server"
    own: ClassVar[bool] = True

    port: int = setting(8000, "Port; 0 is any that is free.", check=counted(0, 65535), first=True)
    host: str = setting("127.0.0.1", "Address to listen on; others than loopback let other machines in.")
    api_key: str | None = setting(None, "Key that clients must send; better as the variable than on the line.")
    max_new_tokens: int = setting(
        1024, "Most tokens of a reply, and those of a request without a number.", check=counted()
    )
    batch: int = setting(32, "Requests that are answered together.", check=counted(1, 1024))
    waiting: int = setting(256, "Requests that may wait; further ones are sent away.", check=counted(1, 4096))
    seconds: float = setting(600.0, "Time of a request, its wait included.", check=above_zero())


@dataclass(repr=False, eq=False, match_args=False)
class ChatSettings(Settings):
    """How replies of a conversation are made."""

    table: ClassVar[str] = "chat"
    title: ClassVar[str] = "Conversation"
    own: ClassVar[bool] = True

    system: str | None = setting(None, "System message.", shown="the run's", first=True)
    max_new_tokens: int = setting(256, "Length of replies.", check=counted(), first=True)
    temperature: float = setting(0.0, "0 is greedy.", check=Range(0.001, 1000.0, zero=True))
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))


@dataclass(repr=False, eq=False, match_args=False)
class AblateSettings(Settings):
    """What is projected out, and how it is compared."""

    table: ClassVar[str] = "ablate"
    title: ClassVar[str] = "Ablation"
    own: ClassVar[bool] = True

    site: str = setting(
        "source", "source: the vectors V; target: what they cause, U.", check=choice("source", "target")
    )
    max_new_tokens: int = setting(64, "Length of completions.", check=counted())
    positive: str = setting("Sure", BETTER)
    negative: str = setting("Sorry", WORSE)
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))


@dataclass(repr=False, eq=False, match_args=False)
class SaveSettings(Settings):
    """Where an edited model goes, if anywhere, and how."""

    table: ClassVar[str] = "save"
    title: ClassVar[str] = "Saving"

    save: Path | None = setting(None, "Write the edited model to this folder.", first=True)
    save_dtype: str = setting(
        "auto",
        "Type of the saved weights.",
        shown="the source's; for an adapter float32",
        check=choice("auto", "float32", "bfloat16", "float16"),
    )
    save_as: str = setting(
        "model",
        "model: all weights; adapter: what changes them, for PEFT, unrounded.",
        check=choice("model", "adapter"),
    )


@dataclass(repr=False, eq=False, match_args=False)
class CompareSettings(Settings):
    """What runs are compared by, beside directions."""

    table: ClassVar[str] = "compare"
    title: ClassVar[str] = "Comparison"
    own: ClassVar[bool] = True

    kinds: bool = setting(False, "Load the model too, and say which kinds of behaviour the runs share.", first=True)
    sae: Path | None = setting(
        None, "Compare with the decoder of this SAE (safetensors in SAELens' layout, or its folder).", first=True
    )
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))


# --- the benchmark ----------------------------------------------------------------------------------------------------


@dataclass(repr=False, eq=False, match_args=False)
class BenchSettings(Settings):
    """Which experiments, and how large."""

    table: ClassVar[str] = "bench"
    title: ClassVar[str] = "Experiments"
    own: ClassVar[bool] = True

    quick: bool = setting(False, "Every experiment, small: whether it runs, not what is true.", first=True)
    only: str | None = setting(None, "Some of the experiments: i,ii,iii,iv,v,vi.", shown="all", first=True)
    factors: int | None = setting(
        None, "Vectors of every fit.", shown="a sixth of the width, at most 512", check=counted(2), first=True
    )
    shuffles: int | None = setting(None, "Of the sample-complexity experiment.", shown="5", check=counted())
    positive: str = setting("Sure", BETTER)
    negative: str = setting("Sorry", WORSE)
    ratio: float | None = setting(
        None,
        "Non-linearity ratio at which the scale is calibrated.",
        key="lambda",
        shown="0.5, but R within what the streams bear",
        check=above_zero(),
    )
    scale: float | None = setting(None, "Steering scale R.", shown="calibrated", check=above_zero(FLOAT32))
    seed: int = setting(0, "Seed of every random choice.", check=counted(0, SEEDS))
