"""Plots as SVG: shapes with classes, whose colours a style sheet decides, so that light and dark both fit.

Coordinates are computed here, nothing else: no plot knows what its numbers mean. Every plot has its words as text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 360.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 12.0, 38.0


@dataclass(frozen=True)
class Axis:
    """How values become places.

    Attributes:
        label: written beside it.
        low, high: its ends.
        log: logarithmic.
        share: values are shares of one, written as percent.
        bare: without ticks: what it means is written at each thing that is drawn.
        names: of the values 0, 1, ... where they are no numbers.
    """

    label: str
    low: float
    high: float
    log: bool = False
    share: bool = False
    bare: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Sequence[object], label: str) -> "Axis":
        """Of things by their names, side by side."""
        return cls(label, -0.5, len(values) - 0.5, names=tuple(map(str, values)))

    @classmethod
    def over(cls, values: Sequence[float], label: str, *, log: bool = False, zero: bool = False) -> "Axis":
        """Around all finite values; from zero on, if told so."""
        kept = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        low, high = (min(kept), max(kept)) if kept else (0.0, 1.0)
        if log:
            low, high = (low, high) if low > 0 else (1e-3, 1.0)
            return cls(label, low / 1.15, high * 1.15, log=True)
        low = 0.0 if zero else low
        room = (high - low or abs(high) or 1.0) * 0.06
        return cls(label, low if zero else low - room, high + room)

    def at(self, value: float) -> float:
        """From 0 to 1."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = math.log(max(value, self.low)) if self.log else value
        return min(1.0, max(0.0, (value - low) / (high - low or 1.0)))

    @property
    def ticks(self) -> list[float]:
        """Round numbers between its ends."""
        if self.bare:
            return []
        if self.names:
            every = -(-len(self.names) // 8)
            return [float(k) for k in range(0, len(self.names), every)]
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            marks = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
            kept = [m for m in marks if self.low <= m <= self.high]
            tens = [m for m in kept if math.isclose(m, 10 ** round(math.log10(m)))]
            return tens if len(tens) > 2 or len(kept) > 6 else kept
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 3))
        step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (m * step) <= 5)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        """A tick as it is written."""
        if self.names:
            return self.names[round(value)]
        if self.share:
            return f"{value:.0%}"
        for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= 10 * size or (abs(value) >= size and size > 1e3):
                return f"{value / size:.3g}{letter}"
        return f"{value:.0f}" if 1000 <= abs(value) < 10000 else f"{value:.3g}"


@dataclass
class Plot:
    """A plot that is being drawn.

    Attributes:
        x, y: its axes.
        says: what it shows, for whoever cannot see it.
    """

    x: Axis
    y: Axis
    says: str
    parts: list[str] = field(default_factory=list)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is."""
        across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + across * self.x.at(x), HEIGHT - BOTTOM - up * self.y.at(y)

    def line(self, points: Sequence[tuple[float, float]], kind: str = "") -> None:
        """A curve through points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*point) for point in points))
        self.parts.append(f'<polyline class="line {kind}" points="{path}"/>')

    def dots(self, points: Sequence[tuple[float, float]], kind: str = "", names: Sequence[str] = ()) -> None:
        """Points, each with a name to be read when it is pointed at."""
        for k, point in enumerate(points):
            x, y = self.place(*point)
            name = f"<title>{escape(names[k])}</title>" if names else ""
            link = f' data-vector="{escape(names[k].split(":")[0])}"' if names else ""
            self.parts.append(f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"{link}>{name}</circle>')

    def bars(self, edges: Sequence[float], heights: Sequence[float], kind: str = "") -> None:
        """A histogram."""
        for low, high, height in zip(edges, edges[1:], heights, strict=False):
            (x, y), (right, floor) = self.place(low, height), self.place(high, self.y.low)
            self.parts.append(
                f'<rect class="bar {kind}" x="{x:.1f}" y="{y:.1f}" width="{max(right - x, 0.5):.1f}" '
                f'height="{max(floor - y, 0):.1f}"/>'
            )

    def area(self, low: tuple[float, float], high: tuple[float, float], label: str) -> None:
        """A corner that is marked, with its name in it."""
        (x, floor), (right, y) = self.place(*low), self.place(*high)
        self.parts.append(
            f'<rect class="area" x="{x:.1f}" y="{y:.1f}" width="{right - x:.1f}" height="{floor - y:.1f}"/>'
            f'<text class="note" x="{x + 4:.1f}" y="{y + 12:.1f}">{escape(label)}</text>'
        )

    def upright(self, x: float, label: str) -> None:
        """A line at a value of x, with its name."""
        at, _ = self.place(x, self.y.low)
        side, anchor = (at - 4, "end") if at > WIDTH / 2 else (at + 4, "start")
        self.parts.append(
            f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="note" x="{side:.1f}" y="{TOP + 10}" text-anchor="{anchor}">{escape(label)}</text>'
        )

    def level(self, y: float, label: str) -> None:
        """A line at a value of y, with its name at its right end."""
        _, at = self.place(self.x.low, y)
        up = at - 4 if at > TOP + 14 else at + 12
        self.parts.append(
            f'<line class="line random" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="note" x="{WIDTH - RIGHT - 2}" y="{up:.1f}" text-anchor="end">{escape(label)}</text>'
        )

    def beside(self, x: float, y: float, label: str) -> None:
        """Words to the right of a point."""
        right, at = self.place(x, y)
        self.parts.append(f'<text class="note" x="{right + 7:.1f}" y="{at + 4:.1f}">{escape(label)}</text>')

    def spans(self, rows: Sequence[tuple[str, float, float, float]]) -> None:
        """Values with their intervals (name, value, low, high), one under the other, each under its name."""
        for k, (name, value, low, high) in enumerate(rows):
            y = TOP + (HEIGHT - TOP - BOTTOM) * (k + 0.72) / len(rows)
            (x, _), (left, _), (right, _) = (self.place(at, self.y.low) for at in (value, low, high))
            kind = "" if k == 0 else " random"
            self.parts.append(
                f'<text class="note" x="{LEFT}" y="{y - 9:.1f}">{escape(name)}</text>'
                f'<line class="line span{kind}" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<circle class="dot{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
            )

    def svg(self) -> str:
        """The whole plot."""
        frame = []
        for value in self.x.ticks:
            x, y = self.place(value, self.y.low)
            frame.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{y:.1f}"/>')
            frame.append(f'<text class="tick" x="{x:.1f}" y="{y + 14:.1f}" text-anchor="middle">'
                         f"{escape(self.x.text(value))}</text>")  # fmt: skip
        for value in self.y.ticks:
            x, y = self.place(self.x.low, value)
            frame.append(f'<line class="grid" x1="{x:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            frame.append(f'<text class="tick" x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">'
                         f"{escape(self.y.text(value))}</text>")  # fmt: skip
        middle = (HEIGHT - BOTTOM + TOP) / 2
        frame.append(f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
                     f"{escape(self.x.label)}</text>")  # fmt: skip
        frame.append(f'<text class="label" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">'
                     f"{escape(self.y.label)}</text>")  # fmt: skip
        return (
            f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(self.says)}">'
            + "".join(frame + self.parts)
            + "</svg>"
        )


def curve(points: Sequence[tuple[float, float]], x: Axis, y: Axis, says: str, rule: tuple[float, str] | None) -> Plot:
    """Points with a line through them, and a value of x that is marked."""
    plot = Plot(x, y, says)
    plot.line(points)
    plot.dots(points)
    if rule is not None:
        plot.upright(rule[0], rule[1])
    return plot


def histogram(series: Sequence[tuple[str, Sequence[float]]], label: str, says: str, bins: int = 30) -> Plot:
    """Shares of several sets of values, the last of them as a line: chance."""
    values = [v for _, some in series for v in some if math.isfinite(v)]
    x = Axis.over(values, label)
    width = (x.high - x.low) / bins
    edges = [x.low + k * width for k in range(bins + 1)]
    shares = [(kind, _shares(some, x.low, width, bins)) for kind, some in series if some]
    plot = Plot(x, Axis.over([s for _, some in shares for s in some], "share", zero=True), says)
    for kind, some in shares:
        if kind == "random":
            plot.line([((a + b) / 2, s) for a, b, s in zip(edges, edges[1:], some, strict=False)], kind)
        else:
            plot.bars(edges, some, kind)
    return plot


def _shares(values: Sequence[float], low: float, width: float, bins: int) -> list[float]:
    counts = [0] * bins
    kept = [v for v in values if math.isfinite(v)]
    for value in kept:
        counts[min(bins - 1, max(0, int((value - low) / width)))] += 1
    return [count / len(kept) for count in counts]
