"""A sweep in words: what stands in its table, for terminals and pages alike, and what it comes to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dct.publicname import public
from dct.sweep.facts import best, best_scored, varying

Row = Mapping[str, Any]

Column = tuple[str, Callable[[Row], str]]
"""A heading, and what stands under it of a row."""

BROAD = ("chosen by", "means", "spoiled", "R")
"""Headings that a narrow table does without."""


def brackets(found: Sequence[Row]) -> str:
    """What stands in brackets in the table."""
    told = ["of kinds, those of as many random vectors"] * any("kinds" in row for row in found)
    told += ["of stability between seeds, chance"] * any(row["stability"] for row in found)
    told = ["of the test, the 95% interval in percent"] * any(row.get("arms") for row in found) + told
    return f"in brackets: {'; '.join(told)}" if told else ""


def columns(found: Sequence[Row]) -> list[Column]:
    """Headings, each with what it says of a row: the axes that differ, and what was measured."""
    axes = varying(found) or ["source", "target"]
    made: list[Column] = [(axis, _on(axis)) for axis in axes]
    by = {row.get("by") for row in found}
    if "judged" in by:
        made += [
            ("chosen by", lambda row: counted(_arm(row, "found").get("validation"))),
            ("test", lambda row: shared(_arm(row, "found"))),
            ("random", lambda row: counted(_arm(row, "random").get("test"))),
            ("means", lambda row: counted(_arm(row, "supervised").get("test"))),
            ("unsteered", lambda row: counted(row.get("unsteered"))),
            ("KL", lambda row: number((_arm(row, "found").get("damage") or {}).get("kl"))),
            ("spoiled", lambda row: spoiled(_arm(row, "found").get("damage"))),
        ]
    if "score" in by:
        made += [
            ("score", lambda row: signed(row.get("gain"))),
            ("random", lambda row: signed(row.get("random_gain"))),
            ("KL", lambda row: number(row.get("kl"))),
        ]
    made.append(("R", lambda row: f"{row['R']:.4g}"))
    if any("kinds" in row for row in found):
        made.append(("kinds", lambda row: f"{row['kinds']} ({row['random_kinds']})" if "kinds" in row else "–"))
    if any(row["stability"] for row in found):
        made.append(("stable", lambda row: steady(row["stability"])))
    return made


def _on(axis: str) -> Callable[[Row], str]:
    return lambda row: value(row[axis])


def _arm(row: Row, name: str) -> dict[str, Any]:
    arm: dict[str, Any] = (row.get("arms") or {}).get(name) or {}
    return arm


# --- what stands in a cell of a table ---------------------------------------------------------------------------------


def value(what: Any) -> str:
    """Of an axis."""
    return "–" if what is None else public(what) if isinstance(what, str) else f"{what:g}"


def counted(mark: Mapping[str, Any] | None) -> str:
    """Successes of those asked."""
    return "–" if not mark else f"{mark['right']}/{mark['asked']}"


def shared(arm: Mapping[str, Any]) -> str:
    """Successes on the test, with the interval."""
    if not arm:
        return "–"
    (low, high), mark = arm["interval"], arm["test"]
    return f"{counted(mark)} ({100 * low:.0f}–{100 * high:.0f})"


def spoiled(damage: Mapping[str, Any] | None) -> str:
    """Harmless replies that were spoiled."""
    return "–" if not damage else f"{damage['spoiled']}/{damage['of']}"


def number(what: float | None) -> str:
    """Three digits behind the point."""
    return "–" if what is None else f"{what:.3f}"


def signed(what: float | None) -> str:
    """A change."""
    return "–" if what is None else f"{what:+.2f}"


def steady(found: Mapping[str, float] | None) -> str:
    """|cos| of matched vectors between seeds, and chance."""
    return "–" if not found else f"{found['mean']:.2f} ({found['chance']:.2f})"


# --- what it comes to -------------------------------------------------------------------------------------------------


def meaning(found: Sequence[Row]) -> list[tuple[str, str]]:
    """What a sweep says, as names and sentences."""
    chosen, scored = best(found), best_scored(found)
    told = []
    if chosen is not None:
        arm = chosen["arms"]["found"]
        tested = f"{shared(arm)} of the unseen prompts that it is tested on"
        told.append(("best", f"{where(chosen, found)}: vector {arm['vector']}, {tested}"))
        others = [f"unsteered {counted(chosen['unsteered'])}"]
        for name, called in (("random", "a random vector"), ("supervised", "a difference of means")):
            rival = best(found, name)
            if rival is not None:
                others.append(f"{called} {counted(rival['arms'][name]['test'])}")
        told.append(("beside it", f"{', '.join(others)}; each the best of the grid by the prompts for choosing"))
        if arm["damage"]:
            spoils = f"KL {arm['damage']['kl']:.3f}; {spoiled(arm['damage'])} replies become refused or incoherent"
            told.append(("damage", f"on harmless prompts: {spoils}"))
    elif scored is not None:
        null = max(row["random_gain"] for row in found if row.get("random_gain") is not None)
        text = f"{where(scored, found)}: vector {scored['vector']} moves the score by {signed(scored['gain'])}"
        text += f" (KL {number(scored['kl'])} on harmless prompts)"
        told.append(("best", f"{text}, the best random vector of the grid by {signed(null)}; no reply was judged"))
    groups = [dict(pair) for pair in {tuple(sorted(row["stability"].items())) for row in found if row["stability"]}]
    if groups:
        mean, chance = (sum(one[key] for one in groups) / len(groups) for key in ("mean", "chance"))
        told.append(("seeds", f"matched vectors of other seeds have |cos| {mean:.2f}, random directions {chance:.2f}"))
    return told


def where(row: Row, found: Sequence[Row]) -> str:
    """A fit by where it stands on the axes that differ."""
    return ", ".join(f"{axis} {value(row[axis])}" for axis in varying(found)) or "the one fit"
