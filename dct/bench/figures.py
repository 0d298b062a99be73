"""A figure for each experiment, as SVG and PNG. The only file that needs matplotlib (the extra `bench`)."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dct.bench.enumeration import curve
from dct.bench.report import file_name
from dct.bench.tables import Report
from dct.bench.workshop import Result
from dct.errors import DctError
from dct.plots.files import painter
from dct.writing import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that people with any colour vision tell apart (Okabe and Ito); greys for what is no fit.
COLOURS = {
    "exponential": "#D55E00",
    "quadratic": "#0072B2",
    "linear-projected": "#009E73",
    "linear": "#CC79A7",
    "melbo": "#E69F00",
    "random": "#888888",
    "supervised": "#222222",
}
INK, GRID = "#222222", "#DDDDDD"


def available() -> bool:
    """Whether figures can be drawn here."""
    return painter()


def draw(folder: Path, reports: Sequence[Report], results: dict[str, list[Result]], none: str = "other") -> list[Path]:
    """Draws every experiment that has rows.

    Args:
        folder: where the figures go.
        results: the cells behind the reports.
        none: the judge's name for a completion that shows nothing whole.

    Raises:
        DctError: matplotlib is not installed, or a figure cannot be written.
    """
    if not available():
        raise DctError("figures need matplotlib: pip install 'deep-causal-transcoders[bench]'")
    import matplotlib as mpl

    written = []
    style: Any = {
        "figure.dpi": 150,
        "savefig.bbox": "tight",
        "font.size": 9,
        "axes.edgecolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "svg.hashsalt": "dct",  # the same results give the same file
    }
    with mpl.rc_context(style):
        for report in reports:
            if not report.rows:
                continue
            painter = {
                "i": _samples,
                "ii": _edits,
                "iii": _locked,
                "iv": _enumeration,
                "v": _multiplicity,
                "vi": _curves,
            }
            figure = painter[report.experiment](report, results[report.experiment], none)
            for ending in ("svg", "png"):
                path = folder / f"{file_name(report)}.{ending}"
                drawn = io.BytesIO()
                figure.savefig(drawn, format=ending, metadata={"Date": None} if ending == "svg" else None)
                written.append(write_whole(path, drawn.getvalue()))
    return written


def _panels(count: int, width: float = 4.2, height: float = 3.2) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _samples(report: Report, results: list[Result], none: str) -> "Figure":
    judged = any(row.get("complies") is not None for row in report.rows)
    figure, axes = _panels(2 if judged else 1, height=3.6)
    panels = [("gain", "error", "change of the score, unseen prompts", 1.0)]
    if judged:
        panels.append(("complies", "complies error", "unseen refusals that turn into compliance (%)", 100.0))
    numbers = sorted({row["n"] for row in report.rows if row["n"] is not None})
    for ax, (what, error, label, unit) in zip(axes, panels, strict=True):
        for shift, method in enumerate(COLOURS):
            rows = [row for row in report.rows if row["method"] == method and row.get(what) is not None]
            if not rows:
                continue
            colour, values = COLOURS[method], [unit * row[what] for row in rows]
            errors = [unit * (row[error] or 0.0) for row in rows]
            if method == "random":
                ax.axhline(values[0], color=colour, linestyle=":", label=method)
                ax.axhspan(values[0] - errors[0], values[0] + errors[0], color=colour, alpha=0.15, linewidth=0)
                continue
            # A little apart, so that error bars do not lie on each other.
            at = [numbers.index(row["n"]) + 0.01 * len(numbers) * (shift - 3) for row in rows]
            line = "--" if method == "supervised" else "-"
            ax.errorbar(
                at, values, errors, color=colour, linestyle=line, marker="o", markersize=3.5, capsize=2, label=method
            )
        ax.set_xticks(range(len(numbers)), [str(n) for n in numbers])
        ax.set_xlabel("training prompts")
        ax.set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _edits(report: Report, results: list[Result], none: str) -> "Figure":
    groups = list(dict.fromkeys((row["operation"], row["side"]) for row in report.rows))
    figure, axes = _panels(len(groups), width=2.9)
    names = list(dict.fromkeys(row["direction"] for row in report.rows))
    for ax, group in zip(axes, groups, strict=True):
        rows = {row["direction"]: row for row in report.rows if (row["operation"], row["side"]) == group}
        here = [name for name in names if name in rows]
        colours = [
            COLOURS["random"]
            if name == "random"
            else COLOURS["supervised"]
            if name == "supervised"
            else COLOURS["exponential"]
            for name in here
        ]
        ax.barh(here, [rows[name]["gain"] for name in here], color=colours, height=0.65)
        for place, name in enumerate(here):
            if rows[name]["error"] is not None:
                ax.errorbar(rows[name]["gain"], place, xerr=rows[name]["error"], color=INK, capsize=2)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.invert_yaxis()
        ax.grid(False, axis="y")
        ax.set_title({"add": "added", "ablate": "ablated"}[group[0]] + f", {group[1]} side", fontsize=9)
        ax.set_xlabel("change of the score")
    return figure


def _locked(report: Report, results: list[Result], none: str) -> "Figure":
    figure, [ax] = _panels(1, width=5.0)
    names = [row["method"] for row in report.rows]
    shares = [100 * (row["share"] or 0.0) for row in report.rows]
    ax.barh(names, shares, color=[COLOURS.get(name, "#BBBBBB") for name in names], height=0.65)
    for place, (row, share) in enumerate(zip(report.rows, shares, strict=True)):
        chosen = "" if row["chosen by"] is None else f"  (chosen by {100 * row['chosen by']:.0f}%)"
        ax.text(share + 1, place, f"{share:.0f}%{chosen}", va="center", fontsize=8, color=INK)
    ax.set_xlim(0, 135)
    ax.set_xticks(range(0, 101, 25))
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set_xlabel("test questions answered rightly (%)")
    return figure


def _enumeration(report: Report, results: list[Result], none: str) -> "Figure":
    scales = list(dict.fromkeys(r.settings["scale"] for r in results))
    figure, axes = _panels(len(scales), width=3.8)
    top = max(row["behaviours"] for row in report.rows)
    for ax, scale in zip(axes, scales, strict=True):
        for r in results:
            if r.settings["scale"] != scale:
                continue
            method = r.settings["method"]
            points = curve(r.result, none)
            line = ":" if method == "random" else "-"
            ax.plot(
                *zip(*points, strict=True),
                color=COLOURS[method],
                linestyle=line,
                marker="o",
                markersize=3,
                label=method,
            )
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.set_ylim(0, max(1, top) + 0.5)
        ax.set_xlabel("vectors tried")
        ax.set_title(f"{scale:g} R", fontsize=9)
    axes[0].set_ylabel("different behaviours elicited (expected)")
    axes[0].legend(loc="upper left")
    return figure


def _multiplicity(report: Report, results: list[Result], none: str) -> "Figure":
    figure, axes = _panels(2, width=4.6)
    labels = list(dict.fromkeys(f"{row['by']}\n{row['moved']}" for row in report.rows))
    for ax, what, label in zip(
        axes, ("count", "mean |cos|"), ("vectors that move the prompts", "pairwise |cosine|"), strict=True
    ):
        for shift, method in ((-0.19, "exponential"), (0.19, "random")):
            rows = [row for row in report.rows if row["method"] == method]
            heights = [math.nan if row[what] is None else row[what] for row in rows]
            errors = None if what == "count" else [row["std |cos|"] or 0.0 for row in rows]
            ax.bar(
                [k + shift for k in range(len(rows))],
                heights,
                0.36,
                yerr=errors,
                color=COLOURS[method],
                label=method,
                capsize=2,
            )
        ax.set_xticks(range(len(labels)), labels)
        ax.set_xlim(-0.6, len(labels) - 0.4)
        ax.grid(False, axis="x")
        ax.set_ylabel(label)
    axes[0].legend()
    return figure


def _curves(report: Report, results: list[Result], none: str) -> "Figure":
    import matplotlib as mpl

    figure, axes = _panels(2, width=3.8)
    shades = mpl.colormaps["viridis"]
    for number, r in enumerate(results):
        colour = shades(0.9 * number / max(1, len(results) - 1))
        objective = r.result["objective"]
        iterations = range(1, len(objective) + 1)
        last = objective[-1][0] or 1.0
        axes[0].plot(iterations, [row[0] / last for row in objective], color=colour, marker="o", markersize=3)
        axes[1].plot(
            iterations,
            [max(row[2], 1e-8) for row in objective],
            color=colour,
            marker="o",
            markersize=3,
            label=f"m = {r.settings['m']}",
        )
    axes[0].set_ylabel("causal importance, share of its last")
    axes[1].set_ylabel("change of V")
    axes[1].set_yscale("log")
    for ax in axes:
        ax.set_xlabel("iteration")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
    return figure
