"""`dct rank` of a run of a difference: vectors by what they make the one model say and the other not."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dct.cli.costs import announce, as_estimate
from dct.cli.stable import found_again, note_steady
from dct.cli.terminal import Terminal, escape, titled
from dct.cli.work import short_name
from dct.errors import UsageError
from dct.lock import held
from dct.prompts import PromptSet, fingerprint
from dct.settings import JudgeSettings, RankSettings, SelectSettings

if TYPE_CHECKING:
    from rich.table import Table

    from dct.difference_ranking import Apart, Parted
    from dct.estimate import Cost
    from dct.factors import Factors
    from dct.model import LanguageModel
    from dct.runs import Run


HEARD = 5
"""Vectors whose replies are shown."""


def check_apart(judge: JudgeSettings, options: RankSettings) -> None:
    """Refuses what has no meaning where vectors are ordered by how far they part two models.

    Raises:
        UsageError: it was asked for.
    """
    options.leave_order()
    if judge != JudgeSettings():
        raise UsageError(
            "a run of a difference is ranked by what the two models find likely: leave `judge` out, or add "
            "`screen_only` or `task`",
            argument="judge",
        )


def run_apart(
    terminal: Terminal,
    run: "Run",
    factors: "Factors",
    models: tuple["LanguageModel", "LanguageModel"],
    prompts: tuple[PromptSet, PromptSet],
    options: RankSettings,
    experiment: SelectSettings,
    system: str | None = None,
) -> dict[str, Any]:
    """Orders the vectors, shows the table and writes `rank.json`; returns its content.

    Args:
        models: the run's, and the one whose response was subtracted.
        prompts: to reply to, and harmless ones.
    """
    from dct.difference_ranking import apart
    from dct.journal import Journal
    from dct.ranking import Watch

    asked, harmless = prompts
    costs: list[Cost] = []
    began = time.monotonic()
    with held(run.folder), terminal.progress("asking", unit="replies") as advance:

        def tell(expected: "Cost") -> None:
            costs.append(expected)
            announce(terminal, expected, "replies", cure="--max-new-tokens, --keep or --n lower")

        found = apart(
            *models,
            factors,
            asked.texts,
            harmless.texts,
            options,
            experiment,
            system=system,
            journal=Journal(run.completions),
            watch=Watch(lambda done, of: advance("", done, of), tell),
        )
    steady = found_again(run, factors)
    content = {
        "by": "apart",
        **_content(found),
        "stability": None if steady is None else asdict(steady),
        "estimate": as_estimate(costs[0] if costs else None),
        "seconds": round(time.monotonic() - began, 2),
        "prompts_origin": asked.origin,
        "prompts_hash": fingerprint(asked.texts),
        "harmless_hash": fingerprint(harmless.texts),
    }
    content = run.save_ranking(content, factors)
    own, other = (short_name(lm.name) for lm in models)
    if own == other:
        own, other = "the model", "the other"
    terminal.show(_table(found, options.top, (own, other)))
    terminal.show(_said(found, (own, other)))
    note_steady(terminal, steady)
    _conclude(terminal, run, found, (own, other))
    return content


def _content(found: "Apart") -> dict[str, Any]:
    """What `rank.json` holds: of each vector an `effect` as of any ranking (its score is how far the first token parts
    the models), and all that is known under `apart`."""
    unsteered, random = _record(found.unsteered), [_record(one) for one in found.random]
    return {
        "vectors": [_record(one) for one in found.vectors],
        "unsteered": unsteered["effect"] | {"apart": unsteered["apart"], "more": list(found.more)},
        "streams": None if found.streams is None else _record(found.streams),
        "random": [one["effect"] | {"vector": one["vector"], "apart": one["apart"]} for one in random],
        "random_best": random[0]["effect"] | {"apart": random[0]["apart"]},
        "scale": found.scale,
        "scales": list(found.scales),
        "prompts": found.prompts,
        "harmless": found.harmless,
        "max_new_tokens": found.max_new_tokens,
    }


def _record(one: "Parted") -> dict[str, Any]:
    known = asdict(one)
    return {
        **{key: known.pop(key) for key in ("vector", "alpha", "scale")},
        "effect": {"score": one.first, "flipped": None, "kl": known.pop("damage")},
        "apart": known,
    }


# --- shown ------------------------------------------------------------------------------------------------------------


def _table(found: "Apart", top: int, names: tuple[str, str]) -> "Table":
    own, other = names
    table = titled(escape(f"what the vectors make {own} say and {other} not, R = {found.scale:.4g}"))
    for heading in ("rank", "vector", "apart (nats)", "coherent", "first", "damage", "scale"):
        table.add_column(heading, justify="right")
    table.add_column("says")
    heard = [one for one in found.vectors if one.nats is not None]
    for place, one in enumerate(heard[:top], start=1):
        table.add_row(str(place), one.vector, *_cells(one, found))
    left = len(found.vectors) - len(heard[:top])
    if left:
        table.add_row("…", f"({left} more)", style="dim")
    table.add_section()
    for name, row in _baselines(found):
        table.add_row("", name, *_cells(row, found), style="dim")
    return table


def _baselines(found: "Apart") -> list[tuple[str, "Parted"]]:
    """What the vectors are to be compared with."""
    rows = [("unsteered", found.unsteered), ("streams", found.streams), ("random", found.random[0])]
    return [(name, row) for name, row in rows if row is not None]


def _cells(one: "Parted", found: "Apart") -> list[str]:
    """The columns behind a vector's name."""
    return [
        f"{one.nats:.1f}",
        f"{one.coherent}/{found.prompts}",
        f"{one.first:.2f}",
        "–" if one.damage is None else f"{one.damage:.3f}",
        f"{one.scale / found.scale:.3g} R" if one.scale else "",
        escape(" ".join(one.says[:2])),
    ]


def _said(found: "Apart", names: tuple[str, str]) -> "Table":
    """Where the first vectors part the models most: both replies to one prompt, and those of the models left alone."""
    table = titled("where they part most: the same prompt, the same vector, both models")
    for heading in ("vector", "prompt", *names):
        table.add_column(escape(heading), ratio=None if heading == "vector" else 1)
    for one in [one for one in found.vectors if one.nats is not None][:HEARD]:
        table.add_row(one.vector, *(escape(_short(text)) for text in (one.prompt, one.own, one.other)))
    table.add_section()
    for name, one in _baselines(found):
        table.add_row(name, *(escape(_short(text)) for text in (one.prompt, one.own, one.other)), style="dim")
    return table


def _short(text: str, most: int = 64) -> str:
    """Its beginning, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _conclude(terminal: Terminal, run: "Run", found: "Apart", names: tuple[str, str]) -> None:
    best, null, alone = found.vectors[0], found.random[0], found.unsteered
    text = f"vector {best.vector} parts the models by {best.nats:.1f} nats a reply, the best random one by "
    text += f"{null.nats:.1f}; left alone they are {alone.nats:.1f} apart"
    if (best.nats or 0.0) <= max(null.nats or 0.0, alone.nats or 0.0):
        text += " [yellow](no better than chance: try other prompts, another slice or --scales)[/yellow]"
    likes = f"begins with {', '.join(map(repr, found.more))} more often" if found.more else "begins replies as it"
    terminal.summary(
        f"{len(found.vectors)} vectors ranked by what {names[0]} says under them and {names[1]} would not",
        [
            ("best", text),
            ("alone", escape(f"{names[0]} {likes}" + ("" if found.more else f" {names[1]}"))),
            ("saved", f"[bold]{escape(str(run.ranking))}[/bold], replies in {escape(run.completions.name)}"),
            ("next", '[bold cyan]dct steer --rank 1 --prompt "..."[/bold cyan]'),
        ],
    )
