"""The one place that runs transformer blocks.

`record` lets the model run prompts and keeps what it handed to each block; `replay` runs those blocks again on
another stream, the last of them only where it is read (`ReadCall`); `readout` turns a stream that has left the last
block into logits by the model's own norm and head. The model is asked, never imitated: masks, rotary embeddings and
per-layer attention kinds are the ones it made.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from dct import compat
from dct.errors import DctError, NonFiniteError
from dct.model import LanguageModel

Call = dict[str, Any]
"""The arguments that the model passed to a block, by name, without the residual stream itself."""


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


def stream_of(output: Any) -> Tensor:
    """The residual stream in a block's output (some architectures return a tuple)."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a module's call, positional ones too, by their names."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def split_call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """Separates the residual stream from the other arguments of a block's call, and names them all."""
    call = by_name(block, args, kwargs)
    return call.pop(next(iter(call))) if args else call.pop("hidden_states"), call


def record(lm: LanguageModel, prompts: Sequence[Sequence[int]], source: int, target: int) -> list[Recording]:
    """Runs prompts, unpadded, up to block target-1 and keeps what entered and left the slice.

    Raises:
        DctError: the model was loaded for another slice.
        NonFiniteError: a block puts out NaN or infinity; the message names it.
    """
    if lm.resident is None:
        return [_recorded(lm, ids, source, target) for ids in prompts]
    lm.require(range(source, target))
    return _recorded_in_turn(lm, prompts, source, target)


@torch.no_grad()
def _recorded(lm: LanguageModel, ids: Sequence[int], source: int, target: int) -> Recording:
    """One prompt, run by the model itself."""
    entering: list[Tensor] = []
    calls: list[Call] = []
    leaving: list[Tensor] = []

    def before(index: int) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream, call = split_call(block, args, kwargs)
            if index == source:
                entering.append(stream[0].clone())
            calls.append(call)

        return hook

    def after(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            stream = stream_of(output)
            lm.tuples = isinstance(output, tuple)
            if not bool(torch.isfinite(stream).all()):
                raise NonFiniteError(_non_finite(lm, index, "without any steering"))
            if index == target - 1:
                leaving.append(stream[0].clone())
                raise _TargetReached

        return hook

    with ExitStack() as stack:
        for index, block in enumerate(lm.layers[:target]):
            if index >= source:
                stack.callback(block.register_forward_pre_hook(before(index), with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(after(index)).remove)
        with suppress(_TargetReached):
            lm.model(torch.tensor([list(ids)], device=lm.device), use_cache=False)
    if not leaving:
        raise DctError(f"{lm.name} did not run through its block list {lm.layers_path}: name another with --layers")
    return Recording(entering[0], leaving[0], calls)


@torch.no_grad()
def _recorded_in_turn(lm: LanguageModel, prompts: Sequence[Sequence[int]], source: int, target: int) -> list[Recording]:
    """All prompts, block after block: the weights below the slice are in memory only while their block runs."""
    assert lm.checkpoint is not None
    shell = lm.checkpoint.part(range(0), lm.dtype, lm.device, ends=True)
    below = lm.checkpoint.in_turn(range(source), lm.dtype, lm.device)
    blocks: Iterator[nn.Module] = itertools.chain(below, lm.layers[source:target])
    first = next(blocks)
    if lm.tuples is None:
        stream, [call] = _handed_over(lm, shell, prompts[0], 1)
        lm.tuples = isinstance(first(stream, **call), tuple)
    handed = [_handed_over(lm, shell, ids, target) for ids in prompts]
    del shell
    streams, calls = [stream for stream, _ in handed], [calls for _, calls in handed]
    entering = streams
    blocks = itertools.chain([first], blocks)
    del first  # a block that is named here would stay in memory
    for index, block in enumerate(blocks):
        if index == source:
            entering = streams
        streams = [run_block(block, own[index], stream) for stream, own in zip(streams, calls, strict=True)]
        del block
        if not all(bool(torch.isfinite(stream).all()) for stream in streams):
            raise NonFiniteError(_non_finite(lm, index, "without any steering"))
    return [
        Recording(before[0], after[0], own[source:])
        for before, after, own in zip(entering, streams, calls, strict=True)
    ]


def _handed_over(
    lm: LanguageModel, shell: PreTrainedModel, ids: Sequence[int], target: int
) -> tuple[Tensor, list[Call]]:
    """What a model hands to its blocks: the stream that enters block 0, and the other arguments of each block below
    `target`; the blocks themselves stand aside."""
    streams: list[Tensor] = []
    calls: list[Call] = []

    def stand_aside(block: nn.Module) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            stream, call = split_call(block, args, kwargs)
            streams.append(stream)
            calls.append(call)
            if len(calls) == target:
                raise _TargetReached
            return (stream,) if lm.tuples else stream

        return forward

    with ExitStack() as stack:
        for block in shell.get_submodule(lm.layers_path).children():
            stack.callback(_put_back, block, block.__dict__.get("forward"))
            block.forward = stand_aside(block)
        with suppress(_TargetReached):
            shell(torch.tensor([list(ids)], device=lm.device), use_cache=False)
    if len(calls) < target:
        raise DctError(f"{lm.name} did not run through its block list {lm.layers_path}: name another with --layers")
    return streams[0], calls


def run_block(block: nn.Module, call: Call, stream: Tensor) -> Tensor:
    """The stream that leaves a block."""
    return stream_of(block(stream, **call))


def replay(
    lm: LanguageModel,
    source: int,
    calls: Sequence["Call | ReadCall"],
    stream: Float[Tensor, "batch tokens width"],
    run: Callable[[nn.Module, Call, Tensor], Tensor] = run_block,
) -> Float[Tensor, "batch leaving width"]:
    """Runs the blocks from `source` on, one for each call, on a new stream.

    Every token leaves the last block, or only those that its `ReadCall` reads. `run` is `run_block` or a compiled form
    of it.
    """
    with _differentiable(lm):
        for block, call in zip(lm.layers[source : source + len(calls)], calls, strict=True):
            stream = call.run(block, stream) if isinstance(call, ReadCall) else run(block, call, stream)
    return stream


class ReadCall:
    """A block's call that leaves the stream at some of its tokens alone: of the others only keys and values are made.

    No architecture need be known for this: the block is run twice with a key-value cache of our own, as when it
    generates. On the other tokens it is left as soon as it hands keys and values to the cache; on the tokens that are
    read it gets those back in front of its own. Whether a block takes this is for the caller to check.

    Args:
        call: the block's own arguments for all tokens.
        read: the tokens that are read, ascending, each once.
        tokens: how many there are altogether.

    Raises:
        ValueError: the block takes no cache.
    """

    def __init__(self, call: Call, read: Int[Tensor, " read"], tokens: int) -> None:
        caches = compat.caches_of(call)
        if len(caches) != 1:
            raise ValueError("the block takes no key-value cache")
        [self._cache] = caches
        self.read = read
        others = torch.ones(tokens, dtype=torch.bool, device=read.device)
        others[read] = False
        self.others = others.nonzero()[:, 0]
        if call.get("attention_mask", 0) is None:  # it stands for plain causal attention
            causal = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=read.device).tril()
            call = {**call, "attention_mask": causal}
        everything = torch.cat([self.others, self.read])
        self._call_on_others = _at_tokens(call, tokens, self.others, self.others)
        self._call_on_read = _at_tokens(call, tokens, self.read, everything)

    def run(self, block: nn.Module, stream: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch read width"]:
        """What leaves the block at the tokens that are read.

        Raises:
            ValueError: the block did not use its cache.
        """
        cache = _KeysAndValues()
        try:
            block(stream[:, self.others], **self._call_on_others | {self._cache: cache})
        except _KeysAndValuesMade:
            return stream_of(block(stream[:, self.read], **self._call_on_read | {self._cache: cache}))
        raise ValueError("the block does not use its key-value cache")


class _KeysAndValuesMade(Exception):  # noqa: N818 (a way out, not an error)
    """Thrown out of a block that has handed over its keys and values: the rest of it is not needed."""


class _KeysAndValues:
    """A key-value cache for two runs of one block: keeps those of the first, puts them before those of the second."""

    def __init__(self) -> None:
        self.first: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by a block with its new keys and values, (batch, heads, tokens, head width) each."""
        if self.first is None:
            self.first = keys, values
            raise _KeysAndValuesMade
        return torch.cat([self.first[0], keys], dim=-2), torch.cat([self.first[1], values], dim=-2)


def _at_tokens(call: Call, tokens: int, queries: Tensor, keys: Tensor) -> Call:
    """A block's arguments for some of its tokens: whatever has a token axis, at `queries`; masks, at `keys` too."""

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        if value.ndim == 4 and value.shape[-2:] == (tokens, tokens):
            return value[..., queries, :][..., keys].contiguous()
        axis = token_axis(value)
        return value.index_select(axis, queries) if value.shape[axis] == tokens else value

    return dict(compat.tree_map(leaf, call))


def token_axis(value: Tensor) -> int:
    """Where tensors that transformers passes to its blocks have their tokens, if they have any (masks apart)."""
    return 0 if value.ndim == 1 else 1


@torch.no_grad()
def locate_non_finite(
    lm: LanguageModel, source: int, calls: Sequence[Call | ReadCall], stream: Float[Tensor, "batch tokens width"]
) -> str:
    """Which block of a replay first puts out NaN or infinity, as a message for the user."""
    for index, call in enumerate(calls, start=source):
        if not bool(torch.isfinite(stream).all()):
            break
        stream = replay(lm, index, [call], stream)
        if not bool(torch.isfinite(stream).all()):
            return _non_finite(lm, index, "under steering")
    return f"the steered stream entering block {source} of {lm.name} is not finite: lower --scale"


def _non_finite(lm: LanguageModel, index: int, when: str) -> str:
    dtype = str(lm.dtype).removeprefix("torch.")
    cure = "--dtype bfloat16 or float32" if lm.dtype == torch.float16 else "--dtype float32 or a smaller --scale"
    return f"block {index} of {lm.name} puts out NaN or infinity {when} (dtype {dtype}): try {cure}"


@torch.no_grad()
def readout(lm: LanguageModel, stream: Float[Tensor, "batch width"]) -> Float[Tensor, "batch vocabulary"]:
    """Logits of streams that have left the last block, by the model's own final norm, head and soft-capping.

    The model is run on one token a row with every block standing aside and the last one handing over `stream`, so
    nothing has to be known of what an architecture does after its blocks.
    """
    lm.require(range(0), ends=True)
    rows = stream.to(lm.dtype)[:, None]
    if lm.tuples is None:
        record(lm, [[0]], 0, 1)

    def stand_aside(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if lm.tuples else hidden_states

    def hand_over(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return stand_aside(rows.to(hidden_states.device))

    ids = torch.zeros(len(rows), 1, dtype=torch.long, device=lm.device)
    with ExitStack() as stack:
        for block in lm.layers:
            stack.callback(_put_back, block, block.__dict__.get("forward"))
            block.forward = hand_over if block is lm.layers[-1] else stand_aside
        logits = lm.model(ids, use_cache=False).logits
    return logits[:, -1].float()


def _put_back(block: nn.Module, forward: Any) -> None:
    """Restores a block's own `forward`: the class's, or the one that accelerate had set on the instance."""
    del block.forward
    if forward is not None:
        block.forward = forward


class _PlainLayerNorm(TorchFunctionMode):
    """Layer norm in elementary operations, wherever a model calls torch's.

    The forward-mode formula of torch's own takes the saved mean and deviation for constants, so that differentiating
    it again leaves terms out.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.layer_norm:
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,  # noqa: A002 (torch's own name)
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    centred = wide - wide.mean(axes, keepdim=True)
    normal = (centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)).to(input.dtype)
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


@contextmanager
def _differentiable(lm: LanguageModel) -> Iterator[None]:
    """Kernels that have forward-mode and second derivatives, while such a derivative is being taken.

    torch's fused attention and grouped expert products have none, and its layer norm has a wrong second derivative
    behind a forward-mode one. All of them stay on for values and gradients, where they are faster. Reverse mode twice
    (create_graph=True) cannot be seen from here: wrap such a call in
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    """
    if not compat.differentiating_forward():
        yield
        return
    with sdpa_kernel(SDPBackend.MATH), _PlainLayerNorm(), compat.plain_experts(lm.model):
        yield
