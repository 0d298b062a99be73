"""The residual stream of a block, followed through its operations: what is added to it, wherever that is done.

No architecture need be known for this: while a block runs, every operation of torch passes by, and what is added to the
block's input, or to what came of it by additions, is what the block writes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dct.calls import split_call, stream_of
from dct.chain import standing_aside
from dct.errors import DctError

ADDS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
"""What torch calls an addition."""

SCALES = frozenset({"mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "__itruediv__"})
"""Products; one of the stream with a number, or with a number for each channel, is still the stream."""

KEEPS = frozenset(
    {
        *("to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone", "dropout"),
        *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"),
    }
)
"""Operations whose result is the stream again, as long as its last axis is."""

Change = Callable[[Tensor], Tensor]
"""What becomes of something that is about to be added to the stream."""


@dataclass(frozen=True)
class Addition:
    """Something that was added to the stream.

    Attributes:
        what: the tensor, (..., width).
        order: which of the block's additions it was.
    """

    what: Tensor
    order: int


@dataclass(frozen=True)
class _Point:
    """A tensor that is the stream: the block's input, and all additions that led from there."""

    tensor: Tensor  # kept alive, since it is known by its identity
    came: tuple[Addition, ...]


class StreamWatch(TorchFunctionMode):
    """Follows a stream through the operations of a block, and may change what is added to it.

    Args:
        stream: the block's input.
        change: applied to everything that is added.
    """

    def __init__(self, stream: Tensor, change: Change | None = None) -> None:
        super().__init__()
        self.width, self.size = stream.shape[-1], stream.numel()
        self.change = change
        self.points = {id(stream): _Point(stream, ())}
        self.added = 0

    def additions(self, output: Tensor) -> tuple[Addition, ...] | None:
        """What led from the block's input to its output; None where the output is no such sum."""
        point = self.points.get(id(output))
        return None if point is None or not point.came else point.came

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in ADDS and name not in SCALES and name not in KEEPS:
            return func(*args, **kwargs)
        known = [k for k, a in enumerate(args) if isinstance(a, Tensor) and id(a) in self.points]
        if not known:
            return func(*args, **kwargs)
        # Of two streams, the one that more has been added to is the later one.
        place = max(known, key=lambda k: len(self.points[id(args[k])].came))
        point = self.points[id(args[place])]
        others = [a for k, a in enumerate(args) if k != place]
        if name in ADDS:
            return self._add(func, args, kwargs, place, point)
        # A gain for each channel, behind additions, would turn what was taken out of them back into what was not.
        if name in SCALES and not all(_is_gain(a, self.width) and (_is_number(a) or not point.came) for a in others):
            return func(*args, **kwargs)
        return self._follow(func(*args, **kwargs), point.came)

    def _add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], place: int, point: _Point) -> Any:
        summand = kwargs.get("other") if len(args) == 1 else args[1 - place]
        if not isinstance(summand, Tensor) or summand.shape[-1:] != (self.width,) or len(args) > 2:
            return func(*args, **kwargs)
        if self.change is not None:
            summand = self.change(summand)
            if len(args) == 1:
                kwargs = {**kwargs, "other": summand}
            else:
                args = (args[0], summand) if place == 0 else (summand, args[1])
        addition = Addition(summand, self.added)
        self.added += 1
        return self._follow(func(*args, **kwargs), (*point.came, addition))

    def _follow(self, result: Any, came: tuple[Addition, ...]) -> Any:
        if isinstance(result, Tensor) and result.numel() == self.size and result.shape[-1] == self.width:
            self.points[id(result)] = _Point(result, came)
        return result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _is_gain(value: Any, width: int) -> bool:
    """Whether a factor is a number, or one for each channel."""
    return _is_number(value) or (isinstance(value, Tensor) and value.shape == (width,))


@contextmanager
def watched(
    blocks: Iterable[nn.Module],
    seen: Callable[[int, tuple[Addition, ...]], None] | None = None,
    change: Change | None = None,
) -> Iterator[None]:
    """Has blocks run under a watch, while the context lasts.

    Args:
        seen: told what a block, by its place in `blocks`, has added to its stream.
        change: applied to everything that is added.

    Raises:
        DctError: while the model runs, of a block whose output is not its input and additions to it.
    """

    def stand_in(index: int, block: nn.Module) -> Any:
        """A forward that runs the block under a watch."""
        own = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            """The block's own output; `seen` is told what was added."""
            watch = StreamWatch(split_call(block, args, kwargs)[0], change)
            with watch:
                output = own(*args, **kwargs)
            if seen is not None:
                additions = watch.additions(stream_of(output))
                if additions is None:
                    raise DctError(f"cannot tell what {type(block).__name__} adds to its stream")
                seen(index, additions)
            return output

        return forward

    with standing_aside(blocks, stand_in):
        yield
