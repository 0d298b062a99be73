"""`dct report`: a run as one HTML page."""

from pathlib import Path
from typing import Annotated

from dct.cli.signature import argument
from dct.cli.terminal import Terminal, command, escape
from dct.cli.work import RUN_HELP
from dct.settings import ReportOutputSettings

PAGE = "report.html"


@command
def report(output: ReportOutputSettings, run: Annotated[Path | None, argument(RUN_HELP)] = None) -> None:
    """Make one page of a run: what was fitted, whether it can be trusted, and every vector with what it says.

    The page is one file and takes nothing from a network. It is made from the run folder alone: no model is loaded.
    """
    terminal = Terminal(output.json, output.quiet)
    from dct.factors import Factors
    from dct.report import gathered, rendered
    from dct.runs import find_run
    from dct.writing import write_whole

    opened = find_run(run)
    with terminal.busy("making the page"):
        facts = gathered(opened, Factors.load(opened.factors))
        page = rendered(facts).encode()
        path = write_whole(output.out or opened.folder / PAGE, page)
    if facts.ranking is None:
        terminal.note("nothing is known yet of what the model says under these vectors: dct rank finds out")
    said = sum(bool(one["replies"]) for one in facts.vectors)
    terminal.summary(
        f"{len(facts.vectors)} vectors on one page, {said} of them with what the model says",
        [("saved", f"[bold]{escape(str(path))}[/bold]  ({len(page) / 1e6:.1f} MB; open it in a browser)")],
    )
    terminal.result({"page": str(path), "bytes": len(page), "vectors": len(facts.vectors), "with_replies": said})
