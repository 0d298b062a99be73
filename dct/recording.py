"""What the model hands to its blocks, recorded for running them again.

`record` lets the model run prompts and keeps every block's arguments (`calls`); `own_run` is what a slice is held
against. A model that is no `chain` of blocks is refused. Knows nothing of vectors that are fitted, nor of packing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dct import compat
from dct.calls import Call, Made, Recording, behind, leaves, rebuilt, split_call, stream_of, with_stream
from dct.chain import Chain, TargetReached, non_finite, not_run
from dct.errors import DctError, NonFiniteError
from dct.model import LanguageModel
from dct.resident import recorded_in_turn

Hook = Callable[[int], Any]
"""A hook for the block of a number."""


def record(lm: LanguageModel, prompts: Sequence[Sequence[int]], source: int, target: int) -> list[Recording]:
    """Runs prompts, unpadded, up to block target-1 and keeps what entered and left the slice.

    Raises:
        DctError: the model was loaded for another slice, or is no chain of blocks.
        NonFiniteError: a block puts out NaN or infinity; the message names it.
    """
    if lm.resident is None:
        return [_recorded(lm, ids, source, target) for ids in prompts]
    lm.require(range(source, target))
    return recorded_in_turn(lm, prompts, source, target)


@torch.no_grad()
def _recorded(lm: LanguageModel, ids: Sequence[int], source: int, target: int) -> Recording:
    """One prompt, run by the model itself."""
    watch = Chain(lm, ids)
    entering: list[Tensor] = []
    leaving: list[Tensor] = []
    calls: list[Call] = []
    alive: list[Any] = []  # what is known by its identity must not make room for something else
    made: dict[int, Made] = {}
    memo: dict[int, Any] = {}
    versions: list[tuple[str, Tensor, int]] = []

    def before(index: int) -> Any:
        """A pre-hook for block `index`."""

        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            """Keeps the arguments of a block that is about to run, and below the source nothing."""
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
        """A forward hook for block `index`."""

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            """Keeps what a block put out, checks it, and leaves the model at the target."""
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
                raise TargetReached

        return hook

    with _hooked(lm.layers[:target], before, after), suppress(TargetReached):
        lm.model(torch.tensor([list(ids)], device=lm.device), use_cache=False)
    if not leaving:
        raise DctError(not_run(lm))
    return Recording(entering[0], leaving[0], calls)


@torch.no_grad()
def own_run(
    lm: LanguageModel, ids: Sequence[int], source: int, target: int, theta: Float[Tensor, " width"]
) -> Float[Tensor, "tokens width"]:
    """hidden_states[target] by the model's own whole run, with theta added to what enters block `source`.

    What a slice is held against. The model runs to its end, so that blocks that come round again are seen.

    Raises:
        DctError: the model is no chain of blocks.
    """
    watch = Chain(lm, ids)
    leaving: list[Tensor] = []

    def before(index: int) -> Any:
        """A pre-hook for block `index`."""

        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            """Adds theta to the stream that enters the source block."""
            stream, _ = split_call(block, args, kwargs)
            watch.enters(index, stream)
            if index != source:
                return None
            wide = torch.promote_types(stream.dtype, torch.float32)
            return with_stream(block, args, kwargs, (stream.to(wide) + theta.to(stream.device, wide)).to(stream.dtype))

        return hook

    def after(index: int) -> Any:
        """A forward hook for block `index`."""

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            """Keeps the stream that enters the target."""
            watch.leaves(index, stream_of(output))
            if index == target - 1:
                leaving.append(stream_of(output)[0].clone())

        return hook

    with _hooked(lm.layers, before, after):
        lm.model(torch.tensor([list(ids)], device=lm.device), use_cache=False)
    if watch.next != lm.depth:
        raise DctError(not_run(lm))
    return leaving[0]


@contextmanager
def _hooked(blocks: Iterable[nn.Module], before: Hook, after: Hook) -> Iterator[None]:
    """Has the hooks that two functions give for a block, by its number, called before and after it runs."""
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(before(index), with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(after(index)).remove)
        yield
