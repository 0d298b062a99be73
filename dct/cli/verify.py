"""`dct verify`: a sample of a run's numbers and replies, measured again here."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.cli.minus import load_minus
from dct.cli.signature import argument
from dct.cli.terminal import Terminal, command, escape, titled
from dct.cli.work import RUN_HELP, open_run
from dct.errors import DctError
from dct.settings import RunModelSettings, RunOutputSettings, VerifySettings

if TYPE_CHECKING:
    from rich.table import Table

    from dct.remeasuring import Check
    from dct.runs import Run


@command
def verify(
    model: RunModelSettings,
    options: VerifySettings,
    output: RunOutputSettings,
    run: Annotated[Path | None, argument(RUN_HELP)] = None,
) -> None:
    """Measure a sample of a run's numbers and replies again, here, and say whether they hold.

    What the vectors cause and how strongly, the scale, and greedy replies that `dct rank` kept. Exit code 1 where
    something does not come out again.
    """
    terminal = Terminal(output.json, output.quiet)
    from dct.factors import Factors
    from dct.runs import find_run

    info = Factors.load(find_run(run).factors).info
    if model.dtype == "auto" and info.get("dtype"):
        model = model.changed(dtype=str(info["dtype"]))
    opened, factors, lm = open_run(terminal, run, model, force=output.force)
    from dct.remeasuring import Again

    minus = load_minus(terminal, factors, lm, model, output.force) if factors.info.get("minus") else None
    again = Again(lm, factors, options.sample, options.seed, minus)
    with terminal.busy("measuring what the vectors cause"):
        checks = again.fit()
    rows, length = _replies(opened, factors.digest)
    with terminal.busy("completing"):
        checks += [one for one in (again.replies(rows, length),) if one is not None]
    terminal.show(_table(checks))
    failed = [one for one in checks if not one.holds]
    content = {
        "run": str(opened.folder),
        "holds": not failed,
        "checks": [{**asdict(one), "holds": one.holds} for one in checks],
    }
    terminal.result(content)
    if failed:
        was = ", ".join(f"{name} {version}" for name, version in sorted((factors.info.get("versions") or {}).items()))
        terminal.warn(
            f"{opened.folder} does not hold here ({', '.join(one.name for one in failed)}): it was made on "
            f"{factors.info.get('device', 'an unknown device')} with {was or 'unknown versions'}"
        )
        sys.exit(1)
    terminal.summary(
        f"{opened.folder} holds here",
        [
            ("sample", f"{min(options.sample, len(factors))} of {len(factors)} vectors"),
            (
                "replies",
                "as kept by dct rank" if rows else "none were kept: [bold cyan]dct rank[/bold cyan] makes some",
            ),
        ],
    )


def _replies(run: "Run", digest: str) -> tuple[list[dict[str, Any]], int]:
    """Replies that the ranking of these very factors kept, and how many tokens each was allowed."""
    try:
        ranking = run.load_ranking()
    except DctError:
        return [], 0
    length = ranking.get("max_new_tokens")
    if ranking.get("factors") != digest or not length:
        return [], 0
    from dct.journal import records

    return list(records(run.completions)), int(length)


def _table(checks: "list[Check]") -> "Table":
    """A line for each kind of number."""
    table = titled("measured again")
    for heading in ("", "what", "sample", "differs by", "allowed", "most"):
        table.add_column(heading, justify="right" if heading in ("sample", "differs by", "allowed") else "left")
    for one in checks:
        mark = "[green]holds[/green]" if one.holds else "[red]differs[/red]"
        most = escape(one.worst) if one.worst and one.difference > 0 else ""
        size = "nothing" if one.difference == 0 else f"{one.difference:.2g}"
        table.add_row(mark, escape(one.name), str(one.of), size, f"{one.allowed:g}", most)
    return table
