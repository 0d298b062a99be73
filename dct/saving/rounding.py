"""An edit as it is wanted, and what the rounding of the type that it is saved in leaves of it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Rounding:
    """Sums over the tensors of an edit; W is the source's value, W' the wanted one and S the saved one.

    Attributes:
        elements: entries that the edit changes.
        lost: those of them that are saved as the source's own value would be.
        along: <S - W, W' - W>.
        size: |W' - W|^2.
        left: squared size of what S still has along the directions.
        before: squared size of what W had along them.
        largest: largest |S - W'| of an entry.
    """

    elements: int = 0
    lost: int = 0
    along: float = 0.0
    size: float = 0.0
    left: float = 0.0
    before: float = 0.0
    largest: float = 0.0

    def add(self, source: Tensor, wanted: Tensor, saved: Tensor, D: Tensor | None, axis: int) -> None:
        """Counts one tensor: the first two in float64, the third in the type that it is saved in.

        `axis` is the one along which the rows of D lie.
        """
        asked = wanted - source
        changed = asked != 0
        self.elements += int(changed.sum())
        self.lost += int((changed & (saved == source.to(saved.dtype))).sum())
        saved = saved.to(source.dtype)
        self.along += float((asked * (saved - source)).sum())
        self.size += float(asked.square().sum())
        self.largest = max(self.largest, float((saved - wanted).abs().max()))
        if D is not None:
            self.left += float(along(saved, D, axis).square().sum())
            self.before += float(along(source, D, axis).square().sum())

    def report(self) -> dict[str, Any] | None:
        """Shares, as JSON has them; None where nothing was edited.

        `lost`: of the entries that the edit changes, those that rounded back to the source's. `survived`: how much of
        the edit is there, |projection of S - W on W' - W| / |W' - W|; 1 is all of it. `remaining`: what is still
        written along the directions, relative to before. `largest`: largest difference of an entry to the exact edit.
        """
        if not self.size:
            return None
        return {
            "lost": self.lost / self.elements,
            "survived": self.along / self.size,
            "remaining": (self.left / self.before) ** 0.5 if self.before else None,
            "largest": self.largest,
        }


def along(values: Tensor, D: Tensor, axis: int) -> Tensor:
    """What values have along the rows of D, which lie along one of their last two axes (-1 or -2)."""
    return values @ D.T if axis == -1 else D @ values


def projected(values: Tensor, D: Tensor, axis: int) -> Tensor:
    """Values without their component in the span of the orthonormal rows of D along an axis."""
    there = along(values, D, axis)
    return values - (there @ D if axis == -1 else D.T @ there)


def wanted(source: Tensor, edited: Tensor, D: Tensor | None) -> tuple[Tensor, int | None]:
    """The edited values in float64, computed from the source's where that is what the edit was.

    Args:
        source: the tensor before the edit, in the layout of the file.
        edited: the model's own edited values: rounded to the type that it was loaded in, of a source that was too.
        D: orthonormal rows that some axis lost, if the edit was that.

    Returns:
        The values, and the axis that lost the rows; None where no axis explains the edit, and the values are the
        model's own.
    """
    there = edited.detach().cpu().double()
    before = source.double()
    if D is None:
        return there, None
    tries = [
        (projected(before, D, axis), axis)
        for axis in range(-min(before.ndim, 2), 0)
        if before.shape[axis] == D.shape[1]
    ]
    if not tries:
        return there, None
    far = [float((values - there).norm()) for values, _ in tries]
    best = min(range(len(tries)), key=far.__getitem__)
    if far[best] > torch.finfo(edited.dtype).eps * float(before.norm()):
        return there, None
    return tries[best]
