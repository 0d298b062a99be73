"""Tables of what was measured, as CSV, JSON and Markdown."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dct import plainjson
from dct.bench.tables import Report
from dct.writing import write_whole

RESULTS = "results.json"
MARKDOWN = "report.md"


def file_name(report: Report) -> str:
    """Of an experiment's files, without ending: `i-sample-complexity`."""
    return f"{report.experiment}-{report.title.lower().replace(' ', '-')}"


def write(folder: Path, reports: Sequence[Report], about: dict[str, Any]) -> list[Path]:
    """Writes a CSV for each experiment that has rows, all of it as JSON, and as Markdown.

    Args:
        about: what was measured on, and how much; JSON types.
    """
    written = []
    for report in reports:
        if report.rows:
            written.append(write_whole(folder / f"{file_name(report)}.csv", _csv(report).encode()))
    content = {**about, "experiments": {r.experiment: as_json(r) for r in reports}}
    written.append(write_whole(folder / RESULTS, (plainjson.dumps(content, indent=1) + "\n").encode()))
    written.append(write_whole(folder / MARKDOWN, markdown(reports, about).encode()))
    return written


def as_json(report: Report) -> dict[str, Any]:
    """What `results.json` holds of a report."""
    return {"title": report.title, "rows": report.rows, "sentences": report.sentences, "notes": report.notes}


def _csv(report: Report) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, report.columns, lineterminator="\n")
    table.writeheader()
    table.writerows(report.rows)
    return text.getvalue()


def markdown(reports: Sequence[Report], about: dict[str, Any]) -> str:
    """All tables and sentences, to be read or put into a document."""
    lines = [
        f"# {about['title']}",
        "",
        f"{about['description']}. {about['measured seconds'] / 60:.0f} minutes in all.",
        "",
    ]
    for report in reports:
        lines += [f"## ({report.experiment}) {report.title}", ""]
        if report.rows:
            lines += [_row(report.shown), _row(["---"] * len(report.shown))]
            lines += [_row([report.text(row, name) for name in report.shown]) for row in report.rows]
            lines.append("")
        lines += [f"- {text}" for text in report.sentences]
        lines += ["", *(f"({text})" for text in report.notes), ""]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
