"""`dct bench planted`: how many factors a fit recovers from maps in which they are known."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dct.cli.reports import clock, show
from dct.cli.terminal import Terminal, command, escape
from dct.errors import InterruptedWorkError, UsageError
from dct.settings import PlantedOutputSettings, PlantedSettings

if TYPE_CHECKING:
    import torch

    from dct.bench.records import Records
    from dct.bench.recovery import Cell


@command
def planted(options: PlantedSettings, output: PlantedOutputSettings) -> None:
    """Measure how many factors a fit recovers from maps in which they are known, and up to how many it does.

    The maps are made for this: exponential factors in directions that are orthogonal, uniform or correlated, of
    heavy-tailed strength, beside a deep random network; quadratic ones; gated ones. Every finished fit is kept: the
    same command goes on where it was cut.
    """
    terminal = Terminal(output.json, output.quiet)
    from dct.bench.recovery import plan
    from dct.lock import held
    from dct.placement import device_of

    device = device_of(options.device)
    if device.type == "mps":
        raise UsageError("planted maps are made on cpu or cuda: pass `device` cpu", argument="device")
    if not plan(options):
        raise UsageError(
            "nothing to measure: orthogonal factors are no more than the width, and qr learns no more", argument="true"
        )
    with held(output.out):
        content = _measured(terminal, options, output, device)
    terminal.result(content)


def _measured(
    terminal: Terminal, options: PlantedSettings, output: PlantedOutputSettings, device: "torch.device"
) -> dict[str, Any]:
    """Measures what is not on record, shows the tables, writes tables and figure; returns what results.json holds."""
    from dct.bench import report as written
    from dct.bench.records import Records
    from dct.bench.recovery import reports
    from dct.plots import files
    from dct.plots.figures import recovery

    began = time.monotonic()
    records = Records(output.out)
    if output.force:
        records.clear()
    results, fresh, left = _run(terminal, options, records, device)
    if records.damaged:
        terminal.warn(f"{records.damaged} damaged files in {output.out} could not be read: measured again")
    made = reports(results, options)
    for one in made:
        show(terminal, one)
    spent = sum(float(result["seconds"]) for _, result in results)
    kept = {name: value for name, value in options.record().items() if name not in ("seconds", "device")}
    content = {
        "title": "dct bench planted",
        "description": f"recovery of planted factors, {options.iterations} iterations, on {device.type}",
        "settings": kept,
        "measured seconds": round(spent, 1),
        "left": left,
    }
    paths: list[Path] = []
    if results:
        paths = written.write(output.out, made, content)
        paths.append(files.write(output.out / "recovery.svg", recovery(made[0].rows)))
    terminal.summary(
        f"{len(results)} fits of planted maps",
        [
            ("took", f"{clock(time.monotonic() - began)}; {fresh} measured now, {len(results) - fresh} were on record"),
            *([("left", f"{left}: the time was up; the same command goes on")] if left else []),
            ("tables", f"[bold]{escape(str(output.out / written.MARKDOWN))}[/bold], CSV and JSON beside it"),
            ("figure", escape(str(output.out / "recovery.svg"))),
        ],
    )
    content["experiments"] = {one.experiment: written.as_json(one) for one in made}
    return content | {"files": [str(p) for p in paths]}


def _run(
    terminal: Terminal, options: PlantedSettings, records: "Records", device: "torch.device"
) -> tuple[list[tuple["Cell", dict[str, Any]]], int, int]:
    """The cells, how many are new and how many are left, with a line for each that was measured."""
    from dct.bench.recovery import run

    finished = 0
    try:
        with terminal.progress("bench planted", unit="fits") as advance:

            def tell(cell: "Cell", number: int, of: int, seconds: float | None) -> None:
                nonlocal finished
                advance(str(cell), number - (seconds is None), of)
                if seconds is not None:
                    finished += 1
                    if not terminal.console.is_terminal:
                        terminal.note(f"[{number}/{of}] {cell}: {seconds:.1f} s")

            return run(options, records, device, tell)
    except KeyboardInterrupt:
        raise InterruptedWorkError(
            f"interrupted; {finished} new fits are kept in {records.folder}: the same command goes on"
        ) from None
