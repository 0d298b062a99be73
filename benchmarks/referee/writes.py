"""What every block writes into the stream, and where that can be seen between its parts."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from referee.own import IDS, Own, first_of, given_to, run


@dataclass(frozen=True)
class Point:
    """A place in a block where its stream can be seen.

    Attributes:
        block: which.
        name: the module that takes the stream there; empty for the end of the block.
        base: the point that something was added to on the way there; empty for the beginning of the block.
        gain: what the block multiplied its stream with on the way, channel by channel; mostly 1.
    """

    block: int
    name: str
    base: str
    gain: Tensor

    def __str__(self) -> str:
        return f"{self.block}.{self.name}" if self.name else str(self.block)


@torch.no_grad()
def points(own: Own) -> list[Point]:
    """Modules inside the blocks that take the stream between one addition and the next: what they take is what
    the block took, or what such a one took, plus a multiple of what some module gave; and the ends of the blocks.

    Some blocks scale their stream channel by channel before they add to it; that gain is known then.
    """
    found = []
    for index, block in enumerate(own.blocks):
        takes: dict[str, Tensor] = {}
        gives: dict[str, Tensor] = {}
        entering, leaving = _watched(own, block, takes, gives)
        bases = {"": entering}
        given = torch.stack([y.double() for y in gives.values()])
        for _ in range(3):
            for name, x in takes.items():
                if name in bases or any(torch.equal(x, base) for base in bases.values()):
                    continue
                step = _added(x, bases, given)
                if step is not None:
                    found.append(Point(index, name, *step))
                    bases[name] = x
        step = _added(leaving, bases, given) or ("", torch.ones(leaving.shape[-1], dtype=torch.float64))
        found.append(Point(index, "", *step))
    return found


def _watched(own: Own, block: nn.Module, takes: dict[str, Tensor], gives: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What enters a block and leaves it; what its modules take and give, where it has the stream's shape."""
    ends: list[Tensor] = []
    with ExitStack() as stack:
        for name, module in block.named_modules():

            def watch(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                x, y = given_to(args, kwargs), first_of(output)
                if not name:
                    ends.extend((x, y))
                else:
                    if isinstance(x, Tensor):
                        takes[name] = x.clone()
                    if isinstance(y, Tensor):
                        gives[name] = y.clone()

            stack.callback(module.register_forward_hook(watch, with_kwargs=True).remove)
        run(own.model, IDS[0])
    shape = ends[0].shape
    for seen in (takes, gives):
        for name in list(seen):
            if seen[name].numel() == ends[0].numel() and seen[name].shape[-1] == shape[-1]:
                seen[name] = seen[name].reshape(shape)
            else:
                del seen[name]
    return ends[0], ends[1].reshape(shape)


@torch.no_grad()
def written(own: Own, D: Tensor, points: Sequence[Point]) -> dict[str, float]:
    """The largest component along rows of D of what is written before each point, since the one it is based on."""
    largest: dict[str, float] = {}
    streams: dict[tuple[int, str], Tensor] = {}

    def enter(index: int) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            streams[index, ""] = given_to(args, kwargs)[0].double()

        return hook

    def measure(point: Point, stream: Tensor) -> None:
        before = streams[point.block, point.base]
        here = stream.double().reshape(before.shape)
        if point.name:
            streams[point.block, point.name] = here
        along = float(((here - point.gain * before) @ D.double().T).abs().max())
        largest[str(point)] = max(largest.get(str(point), 0.0), along)

    with ExitStack() as stack:
        for index, block in enumerate(own.blocks):
            stack.callback(block.register_forward_pre_hook(enter(index), with_kwargs=True).remove)
        for point in points:
            block = own.blocks[point.block]
            if point.name:

                def inside(_: nn.Module, args: Any, kwargs: Any, point: Point = point) -> None:
                    measure(point, given_to(args, kwargs))

                module = block.get_submodule(point.name)
                stack.callback(module.register_forward_pre_hook(inside, with_kwargs=True).remove)
            else:

                def end(_: nn.Module, args: Any, output: Any, point: Point = point) -> None:
                    measure(point, first_of(output))

                stack.callback(block.register_forward_hook(end).remove)
        for ids in IDS:
            run(own.model, ids)
    return largest


def _added(x: Tensor, bases: dict[str, Tensor], given: Tensor) -> tuple[str, Tensor] | None:
    """The base that x is, as it is or scaled channel by channel, with something given added, scaled in the same way;
    and that gain. None where there is no such."""
    for name, base in bases.items():
        if _multiple(x - base, given):
            return name, torch.ones(x.shape[-1], dtype=torch.float64)
    x, y = x.double()[0], given[:, 0]
    for name, base in bases.items():
        # Two unknowns for each channel, as many equations as tokens: x = scale * b + add * y.
        b = base.double()[0]
        bb, by, yy = b.square().sum(0), (b * y).sum(1), y.square().sum(1)
        bx, yx = (b * x).sum(0), (y * x).sum(1)
        det = bb * yy - by.square()
        scales, adds = (yy * bx - by * yx) / det, (bb * yx - by * bx) / det
        left = (x - scales[:, None] * b - adds[:, None] * y).flatten(1).norm(dim=1)
        both = (adds.abs().amax(1) > 1e-3) & (scales.abs().amin(1) > 1e-2)
        fits = (both & (left <= 1e-5 * (x - b).norm())).nonzero()
        if len(fits):
            return name, scales[int(fits[0])]
    return None


def _multiple(x: Tensor, given: Tensor) -> bool:
    """Whether x is a multiple, not nearly 0, of one of the rows."""
    x = x.flatten().double()
    given = given.flatten(1)
    c = (given @ x) / given.square().sum(1).clamp_min(1e-30)
    left = (x - c[:, None] * given).norm(dim=1)
    return bool(((c.abs() > 1e-3) & (left <= 1e-5 * x.norm())).any())
