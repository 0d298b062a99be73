"""What a model hands to its blocks beside the residual stream, and how it is handed to them again.

A block's arguments are masks, rotary embeddings, per-layer attention kinds, whatever an architecture passes along.
Three things are more than constants, and are kept as what they are:

- what an earlier block put out (`Made`): on another stream it must be that block's new output;
- containers that blocks may write into, such as a dictionary of shared keys and values: every run gets copies of its
  own, and blocks that shared one share its copy (`fresh`);
- the residual stream itself, which is left out.

Runs nothing, and knows no prompt.
"""

import copy
import enum
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from dct.errors import DctError

Call = dict[str, Any]
"""The arguments that the model passed to a block, by name, without the residual stream itself."""

CONSTANTS = (bool, int, float, complex, str, bytes, type, enum.Enum, torch.dtype, torch.device, nn.Module)
"""Arguments that no block writes into, beside None, functions and configurations."""


@dataclass(frozen=True)
class Made:
    """Stands in a call for what an earlier block of the slice put out.

    Attributes:
        block: which block, counted from the first of the slice.
        leaf: which of its outputs, as `leaves` counts them.
    """

    block: int
    leaf: int


@dataclass(frozen=True)
class Recording:
    """One prompt's way through the blocks source..target-1, unsteered.

    Attributes:
        entering: hidden_states[source], shape (tokens, width).
        leaving: hidden_states[target], shape (tokens, width).
        calls: the arguments of each block of the slice.
    """

    entering: Float[Tensor, "tokens width"]
    leaving: Float[Tensor, "tokens width"]
    calls: list[Call]


def stream_of(output: Any) -> Tensor:
    """The residual stream in a block's output (some architectures return a tuple)."""
    stream: Tensor = output[0] if isinstance(output, tuple | list) else output
    return stream


def behind(output: Any) -> tuple[Any, ...] | None:
    """What a block puts out behind the stream; None where it puts out the stream alone."""
    return tuple(output[1:]) if isinstance(output, tuple | list) else None


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a module's call, positional ones too, by their names."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def stream_name(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What a block calls its residual stream: its first argument, wherever a call puts it."""
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    return "hidden_states" if not args and "hidden_states" in kwargs else names[0]


def split_call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """Separates the residual stream from the other arguments of a block's call, and names them all.

    Raises:
        DctError: the first argument is no tensor.
    """
    call = by_name(block, args, kwargs)
    stream = call.pop(stream_name(block, args, kwargs), None)
    if not isinstance(stream, Tensor):
        raise DctError(
            f"{type(block).__name__} is handed no residual stream as its first argument: dct cannot slice it"
        )
    return stream, call


def with_stream(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], stream: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's call with another residual stream."""
    if args:
        return (stream, *args[1:]), kwargs
    return args, {**kwargs, stream_name(block, args, kwargs): stream}


def leaves(value: Any) -> Iterator[Any]:
    """What nested containers hold, in order."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        yield value
        return
    for part in value:
        yield from leaves(part)


def rebuilt(value: Any, leaf: Callable[[Any], Any], memo: dict[int, Any]) -> Any:
    """A copy of nested containers, with `leaf` applied to what they hold.

    Args:
        memo: copies by the identity of what they are copies of: what is shared stays shared. Keep the originals alive.
    """
    if value is None or isinstance(value, (Tensor, Made, *CONSTANTS)):
        return leaf(value)
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, dict | list):
        copied = memo[id(value)] = copy.copy(value)
        for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
            copied[key] = rebuilt(part, leaf, memo)
        return copied
    if isinstance(value, tuple):
        parts = [rebuilt(part, leaf, memo) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if callable(value) or isinstance(value, PreTrainedConfig):
        return value
    memo[id(value)] = copy.deepcopy(value)  # a state of some kind, which blocks may write into
    return memo[id(value)]


def fresh(call: Call, made: dict[Made, Tensor], memo: dict[int, Any]) -> Call:
    """A block's arguments for one run: containers are copies, and what earlier blocks made is what they made now."""
    return {
        name: rebuilt(value, lambda leaf: made[leaf] if isinstance(leaf, Made) else leaf, memo)
        for name, value in call.items()
    }
