"""Plots in files of their own: SVG, which needs nothing, and PNG, for which matplotlib paints the very same shapes."""

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from dct.errors import DctError, UsageError
from dct.plots.charts import HEIGHT, WIDTH
from dct.plots.figures import Named
from dct.writing import write_whole

ENDINGS = (".svg", ".png")

HEAD = 26.0
"""Height of a title."""

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1c1e24",
    "soft": "#5e636e",
    "line": "#dcdcd6",
    "accent": "#2f62c9",
    "bad": "#b3423a",
}
DARK = {
    "paper": "#14161b",
    "ink": "#e4e6ea",
    "soft": "#9aa0ab",
    "line": "#2c3038",
    "accent": "#7da6f5",
    "bad": "#f08a80",
}

STYLE = """
.paper{fill:var(--paper)} text{fill:var(--soft);font:11px system-ui,sans-serif} .title{fill:var(--ink);font-size:13px;
font-weight:600} .grid{stroke:var(--line)}
.line{fill:none;stroke:var(--accent);stroke-width:2} .line.thin{stroke-width:1}
.line.random{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 3} .span,.line.span.random{stroke-dasharray:none}
.dot{fill:var(--accent)} .dot.random{fill:var(--ink)} .bar{fill:var(--accent);fill-opacity:.55} .rule{stroke:var(--bad);
stroke-width:1.5} .note{fill:var(--ink)}
"""


def check(path: Path | None) -> None:
    """Refuses a file that no plot can go to, before any work.

    Raises:
        UsageError: another ending.
        DctError: a PNG, and matplotlib is not installed.
    """
    if path is None:
        return
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"`plot` is an .svg or a .png file; got {path}", argument="plot")
    if path.suffix.lower() == ".png" and not painter():
        raise DctError(
            f"{path.name} needs matplotlib: pip install 'deep-causal-transcoders[bench]', or name an .svg as `plot`"
        )


def painter() -> bool:
    """Whether matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def write(path: Path, plots: Sequence[Named]) -> Path:
    """Writes plots, one under the other, into a file whose ending says how.

    Raises:
        DctError: as in `check`; the file cannot be written.
    """
    check(path)
    return write_whole(path, picture(plots).encode() if path.suffix.lower() == ".svg" else painted(plots))


def picture(plots: Sequence[Named]) -> str:
    """One SVG of them, on paper of its own, in the colours of whoever looks at it."""
    colours = [";".join(f"--{name}:{value}" for name, value in scheme.items()) for scheme in (LIGHT, DARK)]
    style = f":root{{{colours[0]}}} @media (prefers-color-scheme: dark){{:root{{{colours[1]}}}}}{STYLE}"
    height = len(plots) * (HEIGHT + HEAD)
    parts = []
    for k, (title, plot) in enumerate(plots):
        y = k * (HEIGHT + HEAD)
        parts.append(f'<text class="title" x="12" y="{y + 18:.0f}">{escape(title)}</text>')
        inner = plot.svg().replace(
            "<svg ", f'<svg x="0" y="{y + HEAD:.0f}" width="{WIDTH:.0f}" height="{HEIGHT:.0f}" ', 1
        )
        parts.append(inner)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height:.0f}" width="{2 * WIDTH:.0f}">'
        f'<style>{style}</style><rect class="paper" width="{WIDTH:.0f}" height="{height:.0f}"/>{"".join(parts)}</svg>\n'
    )


def painted(plots: Sequence[Named]) -> bytes:
    """The same as PNG, light."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 60, len(plots) * (HEIGHT + HEAD) / 60), dpi=150, facecolor=LIGHT["paper"])
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set_axis_off()
    ax.set_xlim(0, WIDTH)
    ax.set_ylim(len(plots) * (HEIGHT + HEAD), 0)
    for k, (title, plot) in enumerate(plots):
        y = k * (HEIGHT + HEAD)
        ax.text(12, y + 18, title, color=LIGHT["ink"], fontsize=11, fontweight="bold")
        for shape in ElementTree.fromstring(plot.svg()).iter():
            _paint(ax, shape, y + HEAD)
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor=LIGHT["paper"], metadata={"Software": None})
    return out.getvalue()


def _paint(ax: Any, shape: ElementTree.Element, down: float) -> None:
    """One of our own shapes; everything else of an SVG is not drawn."""
    from matplotlib.patches import Rectangle

    kinds = shape.get("class", "").split()

    def at(name: str) -> float:
        """A coordinate."""
        return float(shape.get(name, 0)) + (down if name in ("y", "y1", "y2", "cy") else 0.0)

    colour = {"grid": "line", "rule": "bad", "random": "ink", "note": "ink", "tick": "soft", "label": "soft"}
    chosen = LIGHT[next((colour[kind] for kind in reversed(kinds) if kind in colour), "accent")]
    dashed = "--" if "random" in kinds and "span" not in kinds else "-"
    width = 0.8 if {"grid", "thin"} & set(kinds) else 1.6
    if shape.tag == "polyline":
        points = [tuple(map(float, pair.split(","))) for pair in shape.get("points", "").split()]
        ax.plot([x for x, _ in points], [y + down for _, y in points], color=chosen, linestyle=dashed, linewidth=width)
    elif shape.tag == "line":
        ax.plot([at("x1"), at("x2")], [at("y1"), at("y2")], color=chosen, linestyle=dashed, linewidth=width)
    elif shape.tag == "circle":
        ax.plot([at("cx")], [at("cy")], "o", color=chosen, markersize=4)
    elif shape.tag == "rect":
        size = float(shape.get("width", 0)), float(shape.get("height", 0))
        ax.add_patch(Rectangle((at("x"), at("y")), *size, color=chosen, alpha=0.5, linewidth=0))
    elif shape.tag == "text":
        turned = shape.get("transform", "")
        x, y, side = at("x"), at("y"), {"middle": "center", "end": "right"}.get(shape.get("text-anchor", ""), "left")
        if turned:
            x, y = (float(part) for part in turned.split("(")[1].split(")")[0].split())
            y += down
        text = (shape.text or "").replace("$", r"\$")
        ax.text(
            x,
            y,
            text,
            color=chosen,
            fontsize=8.5,
            ha=side,
            va="center" if turned else "baseline",
            rotation=90 * bool(turned),
        )
