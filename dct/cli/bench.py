"""`dct bench`: what the vectors of each fit elicit, measured."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.aliases import DEMO
from dct.cli import options as o
from dct.cli.costs import announce, as_estimate
from dct.cli.declare import count, option
from dct.cli.tasks import OWN, TaskChoice
from dct.cli.terminal import Terminal, command, escape
from dct.cli.work import load_model, note_repeated, short_name
from dct.errors import InterruptedWorkError, UsageError
from dct.prompts import default_origin, read

if TYPE_CHECKING:
    from dct.bench.runner import Progress
    from dct.bench.subject import Sizes, Subject
    from dct.bench.tables import Report
    from dct.estimate import Cost


@command
def bench(
    model: o.Model = DEMO,
    adapter: o.Adapter = None,
    source: o.Source = None,
    target: o.Target = None,
    quick: Annotated[
        bool, option("--quick", help="Every experiment, small: whether it runs, not what is true.")
    ] = False,
    only: Annotated[
        str | None, option("--only", help="Some of the experiments: i,ii,iii,iv,v,vi.", show_default="all")
    ] = None,
    factors: Annotated[
        int | None,
        count("--factors", least=2, help="Vectors of every fit.", show_default="a sixth of the width, at most 512"),
    ] = None,
    shuffles: Annotated[
        int | None, count("--shuffles", help="Of the sample-complexity experiment.", show_default="5")
    ] = None,
    prompts: o.Prompts = None,
    column: o.Column = None,
    harmless: o.Harmless = None,
    task: Annotated[
        str | None,
        option(help="Questions with answers, for the locked skill.", show_default="locked, for an organism"),
    ] = None,
    match: o.Match = None,
    unlock: o.Unlock = None,
    positive: o.Positive = "Sure",
    negative: o.Negative = "Sorry",
    ratio: o.Ratio = None,
    scale: o.Scale = None,
    system: o.System = None,
    reply_prefix: o.ReplyPrefix = None,
    escape_control: o.EscapeControl = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    seed: o.Seed = 0,
    layers: o.Layers = "",
    revision: o.Revision = None,
    trust_remote_code: o.Trust = False,
    out: Annotated[Path | None, option(help="Results folder.", show_default="runs/bench-MODEL")] = None,
    figures: Annotated[bool, option("--figures/--no-figures", help="Draw figures (needs matplotlib).")] = True,
    force: Annotated[bool, option("--force", help="Measure again what is on record.")] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Measure what the vectors of each fit elicit: six experiments, as tables and figures.

    i sample complexity, ii addition against ablation, iii password-locked skill, iv enumeration of behaviours,
    v feature multiplicity, vi training curves. Every finished measurement is kept: the same command goes on where it
    was interrupted. On the demo model, and on any other that `dct organism train` made, completions are judged by the
    planted truth.
    """
    terminal = Terminal(as_json, quiet)
    if task is None and (match is not None or (unlock is not None and not _is_organism(model))):
        raise UsageError("--match and --unlock belong to --task, which is missing")
    from dct.bench.figures import available
    from dct.bench.runner import chosen

    experiments = chosen(only)
    if figures and not available():
        terminal.warn(
            "no figures: matplotlib is missing; pip install 'deep-causal-transcoders[bench]' (or --no-figures)"
        )
    loading: dict[str, Any] = {
        "adapter": adapter,
        "dtype": dtype,
        "device": device,
        "layers": layers,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "reply_prefix": reply_prefix,
        "escape_control": escape_control,
    }
    from dct.bench.subject import Subject, full, organism_folder, organism_judge, organism_unlock
    from dct.bench.subject import quick as small
    from dct.lock import held
    from dct.model import check_layers, choose_layers

    if source is not None and target is not None:
        check_layers(source, target)
    organism = organism_folder(model)

    def origin(kind: str) -> str:
        if organism is not None and model != DEMO:
            return str(organism / "prompts" / f"{kind}.jsonl")
        return default_origin(model, kind)

    harmful, mild = read(prompts or origin("harmful"), column), read(harmless or origin("harmless"))
    note_repeated(terminal, harmful)
    note_repeated(terminal, mild)
    asked = None
    if task is not None or organism is not None:
        own = task in (None, OWN)
        template = organism_unlock() if unlock is None and organism is not None and own else unlock
        asked = TaskChoice(origin(OWN) if own else str(task), None, match, template).read(model)
    lm = load_model(terminal, model, **loading)
    first, last = choose_layers(lm.depth, model, source, target)
    check_layers(first, last, lm.depth)
    subject = Subject(
        lm=lm,
        source=first,
        target=last,
        harmful=harmful.texts,
        harmless=mild.texts,
        task=asked,
        judge=organism_judge() if organism is not None else None,
        words=(positive, negative),
        system=system,
        ratio=ratio,
        scale=scale,
        seed=seed,
    )
    sizes = (small if quick else full)(subject.lm.width, factors, shuffles)
    folder = out or Path("runs") / f"bench-{short_name(model)}{'-quick' if quick else ''}"
    with held(folder):
        content = run_bench(terminal, subject, sizes, folder, experiments, figures and available(), force)
    terminal.result(content)


def _is_organism(model: str) -> bool:
    from dct.bench.subject import organism_folder

    return organism_folder(model) is not None


def run_bench(
    terminal: Terminal,
    subject: "Subject",
    sizes: "Sizes",
    folder: Path,
    experiments: list[str],
    figures: bool,
    force: bool = False,
) -> dict[str, Any]:
    """Measures what is not on record, shows the tables, writes tables and figures; returns what results.json holds."""
    import time

    from dct.bench import report as written
    from dct.bench.records import Records
    from dct.bench.runner import run
    from dct.bench.workshop import Workshop

    began = time.monotonic()
    records = Records(folder)
    if force:
        records.clear()
    w = Workshop(subject, sizes, records)
    w.keep_rendered()
    with terminal.busy("calibrating"):
        R = w.scale
    parts = w.split()
    about = (
        f"slice {subject.source} to {subject.target}, R = {R:.4g}; {sizes.factors} vectors a fit; "
        f"{len(parts.train)} prompts to learn from, {len(parts.validation)} to choose by, {len(parts.test)} to report "
        "on"
    )
    terminal.note(about)
    finished = 0
    costs: list[Cost] = []
    try:
        with terminal.progress("bench", unit="") as advance:

            def tell(now: "Progress") -> None:
                nonlocal finished
                left = "" if now.left is None else f", about {_clock(now.left)} left"
                if now.seconds is None:
                    percent = 100 * now.done / now.total
                    advance(f"({now.cell.experiment}) {now.cell.name}{left}", int(percent), 100)
                    return
                finished += 1
                if not terminal.console.is_terminal:
                    terminal.note(
                        f"[{now.number}/{now.of}] ({now.cell.experiment}) {now.cell.name}: {now.seconds:.1f} s{left}"
                    )

            def told(expected: "Cost") -> None:
                costs.append(expected)
                announce(terminal, expected, f"experiments {', '.join(experiments)}", cure="--quick, fewer --factors")

            outcome = run(w, experiments, tell, told)
    except KeyboardInterrupt:
        raise InterruptedWorkError(
            f"interrupted; {finished} new measurements are kept in {folder}: the same command goes on"
        ) from None
    if records.damaged:
        terminal.warn(f"{records.damaged} damaged files in {folder} could not be read: measured again")
    for report in outcome.reports:
        show(terminal, report)
    seconds = time.monotonic() - began
    content = {
        "title": f"dct bench: {subject.lm.name}",
        "description": about,
        "model": subject.lm.describe(),
        "scale": R,
        "subject": subject.identity,
        "sizes": asdict(sizes),
        "seconds": round(seconds, 1),
        "estimate": as_estimate(costs[0]),
        "measured seconds": round(outcome.seconds, 1),
    }
    paths = written.write(folder, outcome.reports, content)
    if figures:
        from dct.bench.figures import draw

        none = subject.judge.none if subject.judge is not None else "other"
        with terminal.busy("drawing"):
            paths += draw(folder, outcome.reports, outcome.results, none)
    measured = sum(len(results) for results in outcome.results.values())
    took = f"{_clock(seconds)}; {finished} measured now, {measured - finished} were on record"
    terminal.summary(
        f"{measured} measurements of {subject.lm.name}, layers {subject.source} → {subject.target}",
        [
            ("took", f"{took} ({_clock(outcome.seconds)} in all)"),
            ("tables", f"[bold]{escape(str(folder / written.MARKDOWN))}[/bold], CSV and JSON beside it"),
            ("figures", f"{sum(p.suffix == '.png' for p in paths)}, as SVG and PNG" if figures else "none"),
        ],
    )
    content["experiments"] = {r.experiment: written.as_json(r) for r in outcome.reports}
    return content | {"files": [str(p) for p in paths]}


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show(terminal: Terminal, report: "Report") -> None:
    """An experiment's table and what it says."""
    from rich import box
    from rich.table import Table

    if report.rows:
        table = Table(
            title=f"({report.experiment}) {report.title}",
            title_justify="left",
            header_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        first = report.rows[0]
        for name in report.shown:
            table.add_column(
                name,
                justify="left" if isinstance(first.get(name), str) else "right",
                overflow="fold",
                no_wrap=name in ("method", "direction"),
            )
        for row, following in zip(report.rows, [*report.rows[1:], None], strict=True):
            table.add_row(
                *(escape(report.text(row, name)) for name in report.shown),
                end_section=following is not None and len(report.rows) > 12 and _group(row) != _group(following),
            )
        terminal.show(table)
    else:
        terminal.show(f"[bold]({report.experiment}) {report.title}[/bold]")
    said = Table.grid(padding=(0, 1))
    for text in report.sentences:
        said.add_row("[cyan]•[/cyan]", escape(text))
    for text in report.notes:
        said.add_row("", f"[dim]{escape(text)}[/dim]")
    terminal.show(said)
    terminal.show("")


def _group(row: dict[str, Any]) -> list[Any]:
    """What rows that belong together have in common."""
    return [row.get(name) for name in ("method", "operation", "side")]
