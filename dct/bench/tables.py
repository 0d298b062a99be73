"""What an experiment found, as rows and sentences, and the few numbers that tables are made of."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Report:
    """What an experiment found.

    Attributes:
        experiment: its number.
        title: its name.
        rows: the table: one dictionary of JSON values a row, all with the same keys as the first or fewer.
        sentences: what the table says.
        notes: what its columns are, and what was left out.
        hidden: columns that only files have.
    """

    experiment: str
    title: str
    rows: list[dict[str, Any]]
    sentences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hidden: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        """All of them, as files have them."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    @property
    def shown(self) -> list[str]:
        """Those that a table for people has: an error stands behind what it is the error of."""
        return [name for name in self.columns if not name.endswith("error") and name not in self.hidden]

    def text(self, row: dict[str, Any], name: str) -> str:
        """A cell of such a table."""
        error = row.get("error" if name == "gain" else f"{name} error")
        return shown(name, row.get(name)) + (f" ± {shown(name, error).lstrip('+')}" if error is not None else "")


def mean_and_error(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and its standard error; no error from a single value, nothing from none."""
    kept = [float(v) for v in values if v is not None]
    if not kept:
        return None, None
    mean = statistics.fmean(kept)
    return mean, statistics.stdev(kept) / math.sqrt(len(kept)) if len(kept) > 1 else None


def percent(share: float | None) -> str:
    """A share for people; a dash where there is none."""
    return "–" if share is None else f"{share:.0%}"


SHARES = (
    "flipped",
    "complies",
    "share",
    "chosen by",
    "recovered",
    "none whole",
    "> 0.9",
    "> 0.99",
    "hits",
    "settled",
)
"""Columns that are shares of one."""

FORMATS = {
    "gain": "+.2f",
    "damage": ".3f",
    "mean |cos|": ".2f",
    "std |cos|": ".2f",
    "change of V": ".1g",
    "cosine": ".3f",
    "random": ".3f",
}
"""How other numbers are written; three digits where nothing is said."""


def shown(name: str, value: Any) -> str:
    """A table's cell as text."""
    if value is None:
        return "–"
    if isinstance(value, float):
        if name in SHARES:
            return percent(value)
        return format(value, FORMATS.get(name, ".3g"))
    return str(value)
