"""A sweep as one HTML file that stands alone: no network, no script."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from dct.plots import figures
from dct.publicname import public
from dct.sweep.facts import best, best_scored, varying
from dct.sweep.grid import AXES
from dct.sweep.words import brackets, columns, meaning, value
from dct.version import __version__


def rendered(content: Mapping[str, Any]) -> str:
    """The page of what `dct sweep --json` says."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    found = content["rows"]
    told, chosen = columns(found), best(found) or best_scored(found)
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = made.from_string((files("dct.sweep") / "page.html").read_text("utf-8"))
    return template.render(
        style=Markup((files("dct.report") / "page.css").read_text("utf-8")),
        version=__version__,
        content={**content, "failed": [{**one, "why": public(one["why"])} for one in content["failed"]]},
        title=" × ".join(_axis(axis, found) for axis in varying(found)) or "one fit",
        told=meaning(found),
        plots=[(title, plot.says, Markup(plot.svg())) for title, plot in figures.grid(found)],
        common=_common(found),
        headings=[heading for heading, _ in told] + ["run folder"],
        rows=[
            {
                "best": row is chosen,
                "texts": [text(row) for _, text in told] + [public(row["folder"]).rsplit("/", 1)[-1]],
            }
            for row in found
        ],
        note=brackets(found).capitalize(),
        warnings=[(row["folder"].rsplit("/", 1)[-1], text) for row in found for text in row["warnings"]],
    )


def _axis(axis: str, found: list[dict[str, Any]]) -> str:
    return f"{len({str(row[axis]) for row in found})} {'numbers of prompts' if axis == 'n' else f'{axis}s'}"


def _common(found: list[dict[str, Any]]) -> str:
    """What all fits have in common."""
    if not found:
        return "No fit is finished."
    differ = varying(found)
    same = [f"{axis} {value(found[0][axis])}" for axis in AXES if axis not in differ and found[0][axis] is not None]
    return f"All with {', '.join(same)}." if same else ""
