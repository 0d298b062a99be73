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

    Some blocks scale their stream channel by channel before they add to it; that gain is known then. What is made in
    the same way and does not go into what leaves the block is no stream.
    """
    found: list[Point] = []
    for index, block in enumerate(own.blocks):
        seen = _watched(own, block)
        entering = seen[0].tensor
        bases = {"": entering}
        given: list[Tensor] = []
        here: list[Point] = []
        for moment in seen[1:]:
            x = moment.tensor
            if moment.gives:
                given.append(x.double())
                continue
            known = moment.name in bases if moment.name else False
            if not given or known or any(torch.equal(x, base) for base in bases.values()):
                continue
            step = _added(x, bases, torch.stack(given))
            if step is not None:
                here.append(Point(index, moment.name, *step))
                bases[moment.name] = x
        if not here or here[-1].name:  # what leaves the block cannot be made out
            here.append(Point(index, "", "", torch.ones(entering.shape[-1], dtype=torch.float64)))
        else:
            way, base = [here[-1]], here[-1].base
            while base:
                way.append(next(point for point in here if point.name == base))
                base = way[-1].base
            here = way[::-1]
        found += here
    return found


@dataclass(frozen=True)
class _Moment:
    """What a module takes or gives, in the order in which that happens."""

    name: str
    gives: bool
    tensor: Tensor


def _watched(own: Own, block: nn.Module) -> list[_Moment]:
    """What enters a block; what its modules take and give, where it has the stream's shape; and last, as if it were
    taken, what leaves the block."""
    seen: list[_Moment] = []

    def note(name: str, gives: bool, value: Any) -> None:
        if not isinstance(value, Tensor) or (seen and value.numel() != seen[0].tensor.numel()):
            return
        shape = seen[0].tensor.shape if seen else value.shape
        if value.shape[-1] == shape[-1]:
            seen.append(_Moment(name, gives, value.reshape(shape).clone()))

    with ExitStack() as stack:
        for name, module in block.named_modules():

            def before(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                note(name, False, given_to(args, kwargs))

            def after(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                note(name, bool(name), first_of(output))

            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        run(own.model, IDS[0])
    return seen


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
    """The latest base that x is, as it is or scaled channel by channel, with something given added, scaled in the same
    way; and that gain. None where there is no such."""
    latest = list(reversed(bases.items()))
    ones = torch.ones(x.shape[-1], dtype=torch.float64)
    for name, base in latest:
        if _multiple(x - base, given):
            return name, ones
    for name, base in latest:
        gain = _scaled(x, base, given)
        if gain is not None:
            return name, gain
    for name, base in latest:
        if _of_two(x - base, base, given):
            return name, ones
    return None


def _scaled(x: Tensor, base: Tensor, given: Tensor) -> Tensor | None:
    """The gain of the base where x is the base and one of the rows, both scaled channel by channel, and a constant."""
    x, b, y = (z - z.mean(-2, keepdim=True) for z in (x.double()[0], base.double()[0], given[:, 0]))
    # Three unknowns for each channel, as many equations as tokens: x = scale * b + add * y + constant.
    bb, by, yy = b.square().sum(0), (b * y).sum(1), y.square().sum(1)
    bx, yx = (b * x).sum(0), (y * x).sum(1)
    det = bb * yy - by.square()
    scales, adds = (yy * bx - by * yx) / det, (bb * yx - by * bx) / det
    left = (x - scales[:, None] * b - adds[:, None] * y).flatten(1).norm(dim=1)
    both = (adds.abs().amax(1) > 1e-3) & (scales.abs().amin(1) > 1e-2)
    fits = (both & (left <= 1e-5 * (x - b).norm())).nonzero()
    return scales[int(fits[0])] if len(fits) else None


def _multiple(x: Tensor, given: Tensor) -> bool:
    """Whether x is a multiple, not nearly 0, of one of the rows."""
    x = x.flatten().double()
    given = given.flatten(1)
    c = (given @ x) / given.square().sum(1).clamp_min(1e-30)
    left = (x - c[:, None] * given).norm(dim=1)
    return bool(((c.abs() > 1e-3) & (left <= 1e-5 * x.norm())).any())


def _of_two(x: Tensor, base: Tensor, given: Tensor) -> bool:
    """Whether x is made of two of the rows, neither of which is the base again: parts that run side by side."""
    x, given = x.flatten().double(), given.flatten(1)
    given = given[[not _multiple(y, base.double()) for y in given]]
    along, gram = given @ x, given @ given.T
    size = gram.diagonal()
    det = size[:, None] * size[None, :] - gram.square()
    first = (size[None, :] * along[:, None] - gram * along[None, :]) / det
    apart = det > 1e-6 * size[:, None] * size[None, :]
    for i, j in (apart & (first.abs() > 1e-3) & (first.T.abs() > 1e-3)).triu(1).nonzero().tolist():
        if bool((x - first[i, j] * given[i] - first[j, i] * given[j]).norm() <= 1e-5 * x.norm()):
            return True
    return False
