"""How replies are judged."""

from dataclasses import dataclass
from typing import ClassVar

from dct.declaration import Choice, Settings, setting
from dct.errors import UsageError
from dct.judging import built_in
from dct.settings.model import DTYPES, _check_memory


def _judges() -> tuple[str, ...]:
    from dct.judging import names

    return names()


def _check_options(name: str, value: list[str]) -> None:
    for one in value:
        if not one.partition("=")[1] or not one.partition("=")[0].strip().isidentifier():
            raise UsageError(f"`{name}` is an option of the judge as name=value, got {one!r}", argument="judge_option")


@dataclass(repr=False, eq=False, match_args=False)
class JudgeSettings(Settings):
    """Which judge, and what it is told."""

    table: ClassVar[str] = "judge"
    title: ClassVar[str] = "Judge"

    judge: str = setting("refusal", "Who says what a reply does.", check=Choice(_judges, built_in()), first=True)
    judge_option: list[str] = setting(
        [], "An option of the judge's own, such as refused=sorry; repeatable.", check=_check_options, first=True
    )


@dataclass(repr=False, eq=False, match_args=False)
class JudgeModelSettings(Settings):
    """A model for the judge."""

    table: ClassVar[str] = "model"
    title: ClassVar[str] = "Model"

    model: str | None = setting(
        None,
        "refusal: the unsteered model, whose likelihoods help to tell coherent text; llm: one that reads.",
        short="m",
        shown="none; text alone",
    )
    dtype: str = setting("auto", "Type of the weights.", check=DTYPES)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps, or map (all devices).")
    memory: str | None = setting(
        None, "Memory to stay within, such as 8GB.", shown="what is free on the device", check=_check_memory
    )
    trust_remote_code: bool = setting(False, "Run model code that comes with the weights.")
