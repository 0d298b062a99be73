"""What the model hands to its blocks, kept for running them again.

`record` lets the model run prompts and keeps every block's arguments: masks, rotary embeddings, per-layer attention
kinds, whatever an architecture passes along. Three things are more than constants, and are kept as what they are:

- what an earlier block put out (`Made`): on another stream it must be that block's new output;
- containers that blocks may write into, such as a dictionary of shared keys and values: every run gets copies of its
  own, and blocks that shared one share its copy (`fresh`);
- the residual stream itself, which is left out.

Whatever does not fit this picture (blocks run twice or in another order, a stream of another shape, a stream that the
model changes between blocks) is refused: such a model is not a chain of blocks.
"""

import copy
import enum
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from dct import compat
from dct.errors import DctError, NonFiniteError
from dct.model import LanguageModel

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


class _TargetReached(Exception):  # noqa: N818 (a way out, not an error)
    """Thrown out of the model once the target layer has been reached: what lies above is not needed."""


# --- calls ------------------------------------------------------------------------------------------------------------


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


# --- recording --------------------------------------------------------------------------------------------------------


def record(lm: LanguageModel, prompts: Sequence[Sequence[int]], source: int, target: int) -> list[Recording]:
    """Runs prompts, unpadded, up to block target-1 and keeps what entered and left the slice.

    Raises:
        DctError: the model was loaded for another slice, or is no chain of blocks.
        NonFiniteError: a block puts out NaN or infinity; the message names it.
    """
    if lm.resident is None:
        return [_recorded(lm, ids, source, target) for ids in prompts]
    lm.require(range(source, target))
    return _recorded_in_turn(lm, prompts, source, target)


class _Watch:
    """Sees to it that the model is a chain of blocks: each once, in order, on the stream that left the one before."""

    def __init__(self, lm: LanguageModel, ids: Sequence[int]) -> None:
        self.lm, self.tokens = lm, len(ids)
        self.next = 0
        self.stream: Tensor | None = None

    def enters(self, index: int, stream: Tensor) -> None:
        """Block `index` is about to run on `stream`.

        Raises:
            DctError: the model is no chain of blocks.
        """
        if index != self.next:
            raise DctError(
                f"{self.lm.name} runs its blocks more than once or in another order than {self.lm.layers_path} lists "
                "them: dct cannot slice it"
            )
        if stream.shape != (1, self.tokens, self.lm.width):
            raise DctError(
                f"block {index} of {self.lm.name} is handed a stream of shape {tuple(stream.shape)}, not "
                f"(1, {self.tokens}, {self.lm.width}) for {self.tokens} tokens: dct cannot slice it"
            )
        before = self.stream
        if before is not None and before is not stream and not torch.equal(before.to(stream.device), stream):
            raise DctError(
                f"{self.lm.name} changes the stream between blocks {index - 1} and {index}: dct cannot slice it"
            )

    def leaves(self, index: int, stream: Tensor) -> None:
        """Block `index` has put out `stream`."""
        self.next, self.stream = index + 1, stream


@torch.no_grad()
def _recorded(lm: LanguageModel, ids: Sequence[int], source: int, target: int) -> Recording:
    """One prompt, run by the model itself."""
    watch = _Watch(lm, ids)
    entering: list[Tensor] = []
    leaving: list[Tensor] = []
    calls: list[Call] = []
    alive: list[Any] = []  # what is known by its identity must not make room for something else
    made: dict[int, Made] = {}
    memo: dict[int, Any] = {}
    versions: list[tuple[str, Tensor, int]] = []

    def before(index: int) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream, call = split_call(block, args, kwargs)
            watch.enters(index, stream)
            if index < source:
                return
            if index == source:
                entering.append(stream[0].clone())
            alive.append(call)
            calls.append({name: rebuilt(value, lambda v: made.get(id(v), v), memo) for name, value in call.items()})
            tensors = [(n, v) for n, value in call.items() for v in leaves(value) if isinstance(v, Tensor)]
            versions[:] = [(n, v, compat.version_of(v)) for n, v in tensors]

        return hook

    def after(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            stream = stream_of(output)
            watch.leaves(index, stream)
            lm.behind = behind(output)
            if not bool(torch.isfinite(stream).all()):
                raise NonFiniteError(non_finite(lm, index, "without any steering"))
            for name, value, version in versions:
                if compat.version_of(value) != version:
                    raise DctError(f"block {index} of {lm.name} writes into its {name}: dct cannot slice it")
            if index >= source:
                alive.append(output)
                for number, leaf in enumerate(leaves(output)):
                    if isinstance(leaf, Tensor):
                        made[id(leaf)] = Made(index - source, number)
            if index == target - 1:
                leaving.append(stream[0].clone())
                raise _TargetReached

        return hook

    with ExitStack() as stack:
        for index, block in enumerate(lm.layers[:target]):
            stack.callback(block.register_forward_pre_hook(before(index), with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(after(index)).remove)
        with suppress(_TargetReached):
            lm.model(torch.tensor([list(ids)], device=lm.device), use_cache=False)
    if not leaving:
        raise DctError(_not_run(lm))
    return Recording(entering[0], leaving[0], calls)


def _not_run(lm: LanguageModel) -> str:
    return f"{lm.name} did not run through its block list {lm.layers_path}: name another with `layers`"


def non_finite(lm: LanguageModel, index: int, when: str) -> str:
    """That a block breaks down, as a message for the user."""
    dtype = str(lm.dtype).removeprefix("torch.")
    cure = '`dtype="bfloat16"` or float32' if lm.dtype == torch.float16 else '`dtype="float32"` or a smaller `scale`'
    return f"block {index} of {lm.name} puts out NaN or infinity {when} (dtype {dtype}): try {cure}"


@torch.no_grad()
def own_run(
    lm: LanguageModel, ids: Sequence[int], source: int, target: int, theta: Float[Tensor, " width"]
) -> Float[Tensor, "tokens width"]:
    """hidden_states[target] by the model's own whole run, with theta added to what enters block `source`.

    What a slice is held against. The model runs to its end, so that blocks that come round again are seen.

    Raises:
        DctError: the model is no chain of blocks.
    """
    watch = _Watch(lm, ids)
    leaving: list[Tensor] = []

    def before(index: int) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            stream, _ = split_call(block, args, kwargs)
            watch.enters(index, stream)
            if index != source:
                return None
            wide = torch.promote_types(stream.dtype, torch.float32)
            return with_stream(block, args, kwargs, (stream.to(wide) + theta.to(stream.device, wide)).to(stream.dtype))

        return hook

    def after(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            watch.leaves(index, stream_of(output))
            if index == target - 1:
                leaving.append(stream_of(output)[0].clone())

        return hook

    with ExitStack() as stack:
        for index, block in enumerate(lm.layers):
            stack.callback(block.register_forward_pre_hook(before(index), with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(after(index)).remove)
        lm.model(torch.tensor([list(ids)], device=lm.device), use_cache=False)
    if watch.next != lm.depth:
        raise DctError(_not_run(lm))
    return leaving[0]


# --- models loaded in part --------------------------------------------------------------------------------------------


@torch.no_grad()
def _recorded_in_turn(lm: LanguageModel, prompts: Sequence[Sequence[int]], source: int, target: int) -> list[Recording]:
    """All prompts, block after block: the weights below the slice are in memory only while their block runs."""
    assert lm.checkpoint is not None
    shell = lm.checkpoint.part(range(0), lm.dtype, lm.device, ends=True)
    below = lm.checkpoint.in_turn(range(source), lm.dtype, lm.device)
    handed = [_handed_over(lm, shell, ids, target) for ids in prompts]
    del shell
    streams, calls = [stream for stream, _ in handed], [calls for _, calls in handed]
    entering = streams
    memos: list[dict[int, Any]] = [{} for _ in prompts]
    kept: list[list[Call]] = [[] for _ in prompts]
    for index, block in enumerate(chain(below, lm.layers[source:target])):
        if index == source:
            entering = streams
        if index >= source:
            for own, memo, recorded in zip(calls, memos, kept, strict=True):
                recorded.append({n: rebuilt(value, lambda v: v, memo) for n, value in own[index].items()})
        streams = [stream_of(block(stream, **own[index])) for stream, own in zip(streams, calls, strict=True)]
        del block  # a block that is named here would stay in memory
        if not all(bool(torch.isfinite(stream).all()) for stream in streams):
            raise NonFiniteError(non_finite(lm, index, "without any steering"))
    return [Recording(*parts) for parts in zip((e[0] for e in entering), (s[0] for s in streams), kept, strict=True)]


def _handed_over(
    lm: LanguageModel, shell: PreTrainedModel, ids: Sequence[int], target: int, noise: float = 0.0
) -> tuple[Tensor, list[Call]]:
    """What a model hands to its blocks: the stream that enters block 0, and the other arguments of each block below
    `target`; the blocks themselves stand aside (and with `noise`, put out something else)."""
    watch = _Watch(lm, ids)
    streams: list[Tensor] = []
    calls: list[Call] = []

    def stand_in(index: int, block: nn.Module) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            stream, call = split_call(block, args, kwargs)
            watch.enters(index, stream)
            streams.append(stream)
            calls.append(call)
            if len(calls) == target:
                raise _TargetReached
            passed = stream * (1 + noise)  # another tensor, so that it is known where it turns up
            watch.leaves(index, passed)
            return passed if lm.behind is None else (passed, *lm.behind)

        return forward

    with standing_aside(shell.get_submodule(lm.layers_path).children(), stand_in), suppress(_TargetReached):
        shell(torch.tensor([list(ids)], device=lm.device), use_cache=False)
    if len(calls) < target:
        raise DctError(_not_run(lm))
    return streams[0], calls


@contextmanager
def standing_aside(blocks: Any, stand_in: Callable[[int, nn.Module], Any]) -> Iterator[None]:
    """Has something else run in place of blocks, while the context lasts."""
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            stack.callback(_put_back, block, block.__dict__.get("forward"))
            block.forward = stand_in(index, block)
        yield


def _put_back(block: nn.Module, forward: Any) -> None:
    """Restores a block's own `forward`: the class's, or the one that accelerate had set on the instance."""
    del block.forward
    if forward is not None:
        block.forward = forward


@torch.no_grad()
def runs_in_part(lm: LanguageModel) -> bool:
    """Whether a model that was loaded for a slice can do without the rest: what its blocks are handed does not come
    from other blocks.

    Found by letting blocks stand aside, twice with different outputs, and by running one for real. A model of which
    this is not true must be loaded whole.
    """
    assert lm.checkpoint is not None
    assert lm.resident is not None
    shell = lm.checkpoint.part(range(0), lm.dtype, lm.device, ends=True)
    first = lm.resident.start
    ids = list(range(1, 6))
    try:
        for lm.behind in (None, ()):  # until a block has run, nobody knows whether blocks return tuples
            with suppress(Exception):
                stream, calls = _handed_over(lm, shell, ids, first + 1)
                break
        output = lm.layers[first](stream, **fresh(calls[first], {}, {}))
        lm.behind = behind(output)
        if any(isinstance(leaf, Tensor) for leaf in leaves(lm.behind)):
            return False  # the model may hand it on
        (_, quiet), (_, loud) = (_handed_over(lm, shell, ids, lm.depth, noise) for noise in (0.0, 0.5))
    except Exception:  # a model of any architecture may object in its own way
        return False
    return all(_same(a, b) for a, b in zip(quiet, loud, strict=True))


def _same(a: Call, b: Call) -> bool:
    """Whether the tensors of two calls are equal."""
    ours, theirs = (list(leaves(list(call.values()))) for call in (a, b))
    return len(ours) == len(theirs) and all(
        x.shape == y.shape and torch.equal(x, y)
        for x, y in zip(ours, theirs, strict=True)
        if isinstance(x, Tensor) and isinstance(y, Tensor)
    )
