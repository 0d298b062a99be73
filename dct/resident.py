"""Models of which only the blocks of a slice are in memory: how prompts are recorded, and whether that can be done.

Weights below the slice are read block after block when prompts are run; the model itself runs without its blocks, which
stand aside. Knows nothing of where weights lie (`checkpoint` does).
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dct.calls import Call, Recording, behind, fresh, leaves, rebuilt, split_call, stream_of
from dct.chain import Chain, TargetReached, non_finite, not_run, standing_aside
from dct.errors import DctError, NonFiniteError
from dct.model import LanguageModel


@torch.no_grad()
def recorded_in_turn(lm: LanguageModel, prompts: Sequence[Sequence[int]], source: int, target: int) -> list[Recording]:
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
    watch = Chain(lm, ids)
    streams: list[Tensor] = []
    calls: list[Call] = []

    def stand_in(index: int, block: nn.Module) -> Any:
        """A forward for a block that is not run."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            """Keeps what the block is handed and passes the stream on."""
            stream, call = split_call(block, args, kwargs)
            watch.enters(index, stream)
            streams.append(stream)
            calls.append(call)
            if len(calls) == target:
                raise TargetReached
            passed = stream * (1 + noise)  # another tensor, so that it is known where it turns up
            watch.leaves(index, passed)
            return passed if lm.behind is None else (passed, *lm.behind)

        return forward

    with standing_aside(shell.get_submodule(lm.layers_path).children(), stand_in), suppress(TargetReached):
        shell(torch.tensor([list(ids)], device=lm.device), use_cache=False)
    if len(calls) < target:
        raise DctError(not_run(lm))
    return streams[0], calls


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
