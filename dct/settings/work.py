"""How many processes share a job."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dct.declaration import Settings, counted, setting

MOST = 1024
"""Processes, at most."""


def processes_of(text: str) -> int | Literal["auto"]:
    """`processes` as text has it."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"must be a number or `auto`: got {text!r}") from None


def _check(name: str, value: Any) -> None:
    if value != "auto":
        counted(1, MOST)(name, value)


@dataclass(repr=False, eq=False, match_args=False)
class WorkSettings(Settings):
    """Who does the work; no part of a run's record: any number of processes finds the same."""

    table: ClassVar[str] = "work"
    title: ClassVar[str] = "Work"

    processes: int | Literal["auto"] = setting(
        1, "Processes that share the work; auto: one for each GPU.", parse=processes_of, check=_check
    )
