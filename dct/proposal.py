"""Which two layers a scan speaks for, and why. Knows only the numbers of a scan, no model."""

from collections.abc import Sequence
from dataclasses import dataclass

from dct.calibration import LEAST
from dct.errors import DctError

Grid = Sequence[Sequence[float]]
"""By target t = 1..depth, then by source s < t."""


@dataclass(frozen=True)
class Proposal:
    """A pair of layers and the reasons for it, in words."""

    source: int
    target: int
    reasons: list[str]
    sure: bool


def propose(written: Grid, nonlinear: Grid) -> Proposal:
    """The last source from which the blocks still write, by the end, at least as much in answer to a random vector as
    they carry on (|J - I|_F >= |I|_F); the target halfway from there to the end, so that as many blocks act on what was
    written as wrote it, or the first one above that is nonlinear enough for a calibrated scale (a ratio of 0.25).

    Where no source or no target passes, it is the one that comes closest, and not `sure`.

    Raises:
        DctError: there is no pair.
    """
    depth = len(written)
    if not depth:
        raise DctError("the scan has no pair of layers: the model has no blocks")
    last = written[-1]
    writing = [s for s in range(depth) if last[s] >= 1]
    source = max(writing) if writing else max(range(depth), key=lambda s: last[s])
    half = source + (depth - source + 1) // 2
    bent = [t for t in range(half, depth + 1) if nonlinear[t - 1][source] >= LEAST]
    target = bent[0] if bent else max(range(half, depth + 1), key=lambda t: nonlinear[t - 1][source])
    ratio = nonlinear[target - 1][source]
    end = f"by the end the blocks above {source} write {last[source]:.2f} times what they carry of a random vector"
    reasons = [
        f"{end}: the last source from which it is as much" if writing else f"{end}: nowhere is it as much",
        f"{target} is halfway from there to the end" if target == half else f"{target} is more than halfway to the end",
        f"the non-linearity ratio there is {ratio:.2f} ({LEAST:g} is enough)",
    ]
    return Proposal(source, target, reasons, bool(writing) and bool(bent))
