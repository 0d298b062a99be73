"""A sweep in words: what stands in its table, for terminals and pages alike, and what it comes to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dct.publicname import public
from dct.sweep.facts import best, best_scored, varying

Row = Mapping[str, Any]

BRACKETS = "in brackets: of kinds, those of as many random vectors; of stability between seeds, chance"
"""What stands in brackets in the table."""

Column = tuple[str, Callable[[Row], str]]
"""A heading, and what stands under it of a row."""


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
            ("damage (KL)", lambda row: number((_arm(row, "found").get("damage") or {}).get("kl"))),
            ("spoiled", lambda row: spoiled(_arm(row, "found").get("damage"))),
        ]
    if "score" in by:
        made += [
            ("score", lambda row: signed(row.get("gain"))),
            ("random", lambda row: signed(row.get("random_gain"))),
            ("damage (KL)", lambda row: number(row.get("kl"))),
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
    return f"{counted(mark)}  {mark['right'] / mark['asked']:.0%} ({100 * low:.0f}–{100 * high:.0f})"


def spoiled(damage: Mapping[str, Any] | None) -> str:
    """Harmless replies that were spoiled."""
    return "–" if not damage else f"{damage['spoiled']}/{damage['of']}"


def number(what: float | None) -> str:
    """Three digits behind the point."""
    return "–" if what is None else f"{what:.3f}"


def signed(what: float | None) -> str:
    """A change."""
    return "–" if what is None else f"{what:+.3g}"


def steady(found: Mapping[str, float] | None) -> str:
    """|cos| of matched vectors between seeds, and chance."""
    return "–" if not found else f"{found['mean']:.2f} ({found['chance']:.2f})"


# --- what it comes to -------------------------------------------------------------------------------------------------


def meaning(found: Sequence[Row]) -> list[tuple[str, str]]:
    """What a sweep says, as names and sentences."""
    chosen, null, scored = best(found), best(found, "random"), best_scored(found)
    told = []
    if chosen is not None:
        arm, which = chosen["arms"]["found"], where(chosen, found)
        text = f"{which}: vector {arm['vector']}, {shared(arm)} on unseen prompts; "
        text += f"unsteered {counted(chosen['unsteered'])}"
        if null is not None:
            by_chance = counted(null["arms"]["random"]["test"])
            text += f"; the best random vector, chosen over the grid in the same way, {by_chance}"
        told.append(("best", f"{text} (chosen by the other prompts, so that the test is one)"))
        if arm["damage"]:
            spoils = f"KL {arm['damage']['kl']:.3f}; {spoiled(arm['damage'])} replies become refused or incoherent"
            told.append(("damage", f"on harmless prompts: {spoils}"))
    elif scored is not None:
        text = f"{where(scored, found)}: vector {scored['vector']} moves the score by {signed(scored['gain'])}"
        told.append(
            ("best", f"{text}, the best random one there by {signed(scored['random_gain'])}; no reply was judged")
        )
    groups = [dict(pair) for pair in {tuple(sorted(row["stability"].items())) for row in found if row["stability"]}]
    if groups:
        mean, chance = (sum(one[key] for one in groups) / len(groups) for key in ("mean", "chance"))
        told.append(("seeds", f"matched vectors of other seeds have |cos| {mean:.2f}, random directions {chance:.2f}"))
    return told


def where(row: Row, found: Sequence[Row]) -> str:
    """A fit by where it stands on the axes that differ."""
    return ", ".join(f"{axis} {value(row[axis])}" for axis in varying(found)) or "the one fit"
