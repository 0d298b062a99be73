"""What work will cost, before it begins: seconds from timed pieces of the work itself, bytes from what a pass keeps.

Knows nothing of language models: a map may say what one row of a pass needs (`row_bytes`), how many rows go into one
(`batch`) and where (`device`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dct.derivatives import Derivatives, Map
from dct.memory import available, peak, used
from dct.team import alone, current

Work = dict[str, int]
"""Rows that will go through a map, by the `Derivatives` method that they go through."""

COST = {"value": 1.0, "vjp": 1.7, "value_and_gradient": 2.3, "jvp": 2.4, "second": 9.0, "second_transposed": 10.0}
"""Time of a row, in units of a value: only for what is too small a part of the work to be worth a timed pass."""

PART = 0.15
"""Share of the work from which on a kind of pass is timed."""

SPENT = 0.05
"""Share of the whole time that timing may take, beyond a first row."""

FIRST = 5.0
"""Seconds below which a first row is run again: it may have borne what every first call bears, a second or two."""

SOON = 0.5
"""Seconds that timing may take in any case."""


def pass_rows(rows: int, work: Work) -> int:
    """Rows of a first derivative that need as much memory as the largest pass of some work, of `rows` at a time: a
    second derivative keeps everything twice.
    """
    return max([(2 if kind.startswith("second") else 1) * min(rows, n) for kind, n in work.items()], default=0)


COPIES = 12
"""Of the attention weights in a second derivative: their tangents, those of the softmax and of the products around it,
for both directions."""


def fit_bytes(factors: int, dim: int, rows: int, row_bytes: int) -> int:
    """Bytes that a fit asks for: those of a pass of so many rows, beside V, U and what the algebra makes of them."""
    matrix = 4 * factors * dim
    square = 8 * factors * factors  # K, its eigenvectors and a few of its size, in float64
    return rows * row_bytes + 8 * matrix + 6 * square


def seconds(f: Map, dim: int, *works: Work, batch: int | None = None) -> list[float]:
    """How long each of several pieces of work will take, by timing the kinds of pass that matter in all of them.

    A kind that is timed is run on one row and on as many as a small share of the whole time allows; a pass takes a
    fixed time and one per row.
    """
    d = Derivatives(f, dim, batch=batch)
    total: Work = {}
    for work in works:
        for kind, rows in work.items():
            total[kind] = total.get(kind, 0) + rows
    guessed = {kind: COST[kind] * rows for kind, rows in total.items() if rows}
    if not guessed:
        return [0.0 for _ in works]
    largest = max(guessed, key=lambda kind: guessed[kind])
    timed = [kind for kind in guessed if kind == largest or guessed[kind] >= PART * sum(guessed.values())]

    def passes(kind: str) -> Callable[[int], float]:
        """Seconds of a pass of this kind, as a function of its rows."""
        return lambda rows: _timed(d, kind, rows)

    laws = {
        kind: _law(passes(kind), min(d.rows_at_once(kind), total[kind]), sum(guessed.values()) / COST[kind])
        for kind in timed
    }
    fixed, per_row = laws[largest]

    def law(kind: str) -> tuple[float, float]:
        """Seconds of a pass and of each row; of a kind that was not timed, by `COST`."""
        return laws.get(kind, (fixed, per_row * COST[kind] / COST[largest]))

    def duration(kind: str, rows: int) -> float:
        """Seconds of so many rows: ceil(rows / rows at once) * fixed + rows * each."""
        fixed, per_row = law(kind)
        rows = current().most(rows)
        return -(-rows // d.rows_at_once(kind)) * fixed + rows * per_row

    return [float(sum(duration(kind, rows) for kind, rows in work.items())) for work in works]


FIRST_CALLS = 64_000_000
"""Bytes that first calls bring in, whatever they work on: code that torch loads when a derivative is first taken or a
matrix factored, and the stacks of its threads. At most 55 MB were seen."""

MARGIN = 0.25
"""Share by which more is announced than is counted: allocators round up, and leave gaps."""


def bound(more: int) -> int:
    """Bytes that work will not exceed, from those that it was counted to need."""
    return FIRST_CALLS + int((1 + MARGIN) * more)


@dataclass(frozen=True)
class Cost:
    """What a command is expected to take from here on.

    Attributes:
        seconds: of the clock.
        peak_memory: bytes that the process will have had, at most.
        more_memory: bytes of them that it does not have yet.
        free_memory: bytes that there are.
    """

    seconds: float
    peak_memory: int
    more_memory: int
    free_memory: int


def cost(seconds: float, more: int, device: torch.device, limit: int | None = None) -> Cost:
    """The cost of work that asks for `more` bytes beside what is in use, as they are counted.

    Args:
        limit: bytes that the process may use in all, as in `memory.available`.
    """
    more = bound(more)
    return Cost(round(seconds, 2), max(peak(device), used(device) + more), more, available(device, limit))


def rows_seconds(run: Callable[[int], Any], rows: int, batch: int, device: torch.device) -> float:
    """How long `rows` rows take in passes of `batch`, by timing a pass of one row and one of several.

    Args:
        run: a pass of so many rows.
    """
    if rows <= 0:
        return 0.0
    rows = current().most(rows)
    fixed, per_row = _law(lambda size: clocked(lambda: run(size), device), min(batch, rows), float(rows))
    return -(-rows // batch) * fixed + rows * per_row


FEW = 4
"""Tokens of the short completions by which longer ones are timed."""


def completions_seconds(
    say: Callable[[int, int], Any], rows: int, batch: int, tokens: int, device: torch.device
) -> float:
    """How long completions of so many tokens take in batches, by timing short ones.

    Args:
        say: completes so many rows with so many tokens.
        rows: completions in all.
        batch: completions at a time.
    """
    if rows <= 0:
        return 0.0
    few = min(FEW, tokens)
    begun = rows_seconds(lambda size: say(size, 1), rows, batch, device)
    if few == 1:
        return begun
    further = rows_seconds(lambda size: say(size, few), rows, batch, device)
    return begun + max(0.0, further - begun) * (tokens - 1) / (few - 1)


def _law(timed: Callable[[int], float], most: int, all_rows: float) -> tuple[float, float]:
    """Fixed seconds of a pass of one kind, and seconds of a row in it.

    Args:
        timed: seconds of a pass of so many rows.
        most: rows of the largest pass there will be.
        all_rows: how many rows of this kind the whole work is worth.
    """
    one = timed(1)
    if one < FIRST:
        one = min(one, timed(1))
    size = most
    while size > 1 and one * size > max(SOON, SPENT * one * all_rows):
        size //= 2
    if size <= 1:
        return 0.0, one
    many = min(timed(size) for _ in range(2 if one * size < SOON else 1))
    per_row = min(max((many - one) / (size - 1), 0.0), many / size)
    return many - size * per_row, per_row


def _timed(d: Derivatives, kind: str, rows: int) -> float:
    theta = torch.nn.functional.normalize(torch.ones(rows, d.dim, device=d.device, dtype=d.dtype), dim=1)
    out = torch.nn.functional.normalize(torch.ones(rows, d.dim_out, device=d.device, dtype=d.dtype), dim=1)
    arguments: dict[str, tuple[Any, ...]] = {
        "value": (theta,),
        "jvp": (theta,),
        "vjp": (out,),
        "value_and_gradient": (theta, out),
        "second": (theta,),
        "second_transposed": (out, theta),
    }
    return clocked(lambda: getattr(d, kind)(*arguments[kind]), d.map_device)


def clocked(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a piece of work takes in this process, until the device has done it."""
    _wait(device)
    began = time.perf_counter()
    with alone():
        run()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given: the clock must not stop before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
