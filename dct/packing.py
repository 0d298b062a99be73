"""Several prompts as one row of tokens: their common prefix once, then what each adds, under a mask in which each sees
only itself.

Knows nothing of what a row is used for; whether a packed row does what its prompts do one by one is for the caller to
check.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dct.attention import RowAttention
from dct.calls import CONSTANTS, Call, Made, Recording, leaves
from dct.narrowing import ReadCall, token_axis


@dataclass(frozen=True)
class Row:
    """Prompts that go through the slice as one row of tokens, each seeing only itself.

    Attributes:
        entering: hidden_states[source] of the row's tokens.
        calls: the arguments of each block for this row.
        targets: where in the row the target tokens of its prompts stand, prompt after prompt.
        leaving: where they stand in what leaves the last block; left out, in the row itself.
        prefix: tokens that the prompts of the row share.
        lengths: tokens of each prompt, those included.
        attention: how its tokens attend to each other; left out, as the model has it.
    """

    entering: Float[Tensor, "tokens width"]
    calls: Sequence[Call | ReadCall]
    targets: Int[Tensor, " targets"]
    leaving: Int[Tensor, " targets"] | None = None
    prefix: int = 0
    lengths: Sequence[int] = ()
    attention: RowAttention | None = None

    @property
    def pairs(self) -> int:
        """Products of a query and a key that a head takes."""
        return len(self.entering) ** 2 if self.attention is None else self.attention.pairs

    def attending(self) -> AbstractContextManager[Any]:
        """While its blocks run, in the thread that runs them."""
        return nullcontext() if self.attention is None else self.attention.at_work()

    def grouped(self, inside: torch.dtype, dtype: torch.dtype) -> "Row":
        """The same row with attention done prompt by prompt, and in this type, where that saves time.

        Args:
            inside: what the blocks compute in.
        """
        count = len(self.entering)
        calls = [call for call in self.calls if isinstance(call, dict)]
        every = [leaf for call in calls for leaf in leaves(call) if isinstance(leaf, Tensor)]
        masks = [leaf for leaf in every if leaf.ndim == 4 and leaf.shape[0] == 1 and leaf.shape[2:] == (count, count)]
        attention = RowAttention(self.prefix, self.lengths, masks, dtype)
        return replace(self, attention=attention) if attention.apart or inside != dtype else self

    def narrowed(self) -> "Row":
        """The same row with the last block run at its target tokens alone, where that saves half of them or more.

        Raises:
            ValueError: the block takes no cache, or what an earlier block made.
        """
        read, leaving = self.targets.unique(return_inverse=True)
        last = self.calls[-1]
        if 2 * len(read) > len(self.entering) or isinstance(last, ReadCall):
            return self
        last = ReadCall(last, read, len(self.entering))
        return replace(self, calls=[*self.calls[:-1], last], leaving=leaving)


def unpacked_rows(recordings: Sequence[Recording], target_counts: Sequence[int]) -> list[Row]:
    """Each prompt in a row of its own, the last `target_counts` tokens of it being read."""
    return [_single(recording, read) for recording, read in zip(recordings, target_counts, strict=True)]


def packed_rows(
    recordings: Sequence[Recording], ids: Sequence[Sequence[int]], target_counts: Sequence[int], limit: int
) -> list[Row]:
    """Prompts in rows of at most `limit` tokens; a longer prompt has a row of its own.

    Raises:
        UnpackableError: the model passes its blocks something that cannot be put together from several prompts.
    """
    return [_packed(recordings, ids, target_counts, group) for group in groups(ids, limit)]


class UnpackableError(Exception):
    """The model passes its blocks something that cannot be put together from several prompts."""


def shared_prefix(ids: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with."""
    shortest, longest = min(ids), max(ids)  # type: ignore[type-var]  # lexicographic: what these two share, all share
    for k, (a, b) in enumerate(zip(shortest, longest, strict=False)):
        if a != b:
            return k
    return min(len(shortest), len(longest))


def groups(ids: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """Consecutive prompts that share a row of at most `limit` tokens, their common prefix counted once."""
    found: list[list[int]] = [[]]
    for k in range(len(ids)):
        joined = [ids[j] for j in (*found[-1], k)]
        prefix = shared_prefix(joined)
        if found[-1] and prefix + sum(len(row) - prefix for row in joined) > limit:
            found.append([])
        found[-1].append(k)
    return found


def _single(recording: Recording, read: int) -> Row:
    length = len(recording.entering)
    where = torch.arange(length - read, length, device=recording.entering.device)
    return Row(recording.entering, recording.calls, where, lengths=[length])


def _packed(
    recordings: Sequence[Recording], ids: Sequence[Sequence[int]], target_counts: Sequence[int], group: list[int]
) -> Row:
    """One row for several prompts."""
    if len(group) == 1:
        return _single(recordings[group[0]], target_counts[group[0]])
    prefix = shared_prefix([ids[k] for k in group])
    lengths = [len(ids[k]) for k in group]
    entering = torch.cat([recordings[group[0]].entering[:prefix]] + [recordings[k].entering[prefix:] for k in group])
    targets, offset = [], prefix
    for k, length in zip(group, lengths, strict=True):
        place = torch.arange(length)
        place[prefix:] += offset - prefix
        offset += length - prefix
        targets.append(place[length - target_counts[k] :])
    merge = _Merger(prefix, lengths, entering.device)
    calls = [merge.calls(per_prompt) for per_prompt in zip(*(recordings[k].calls for k in group), strict=True)]
    return Row(entering, calls, torch.cat(targets).to(entering.device), prefix=prefix, lengths=lengths)


class _Merger:
    """Puts the arguments that the model made for single prompts together for the packed row.

    Tensors with a token axis are laid end to end, masks become block masks, everything else must be the same for all
    prompts. An absent mask stands for plain causal attention. What blocks share they share in the packed row too.
    """

    def __init__(self, prefix: int, lengths: list[int], device: torch.device) -> None:
        self.prefix, self.lengths, self.device = prefix, lengths, device
        self.memo: dict[tuple[int, ...], Any] = {}
        self.causal: dict[int, Tensor] = {}

    def calls(self, calls: Sequence[Call]) -> Call:
        """One block's arguments for all prompts together."""
        if any(call.keys() != calls[0].keys() for call in calls):
            raise UnpackableError
        return {name: self._argument(name, [call[name] for call in calls]) for name in calls[0]}

    def _argument(self, name: str, values: Sequence[Any]) -> Any:
        if name == "attention_mask" and any(v is None for v in values):
            values = [self._causal(n) if v is None else v for v, n in zip(values, self.lengths, strict=True)]
        return self._merged(values)

    def _merged(self, values: Sequence[Any]) -> Any:
        first = values[0]
        if any(type(v) is not type(first) for v in values):
            raise UnpackableError
        if isinstance(first, Tensor):
            return self._memoised(values, self._tensor)
        if isinstance(first, dict | list):
            return self._memoised(values, self._container)
        if isinstance(first, tuple):
            if any(len(v) != len(first) for v in values):
                raise UnpackableError
            parts = [self._merged(parts) for parts in zip(*values, strict=True)]
            return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
        if all(v is first or (isinstance(v, (Made, *CONSTANTS)) and v == first) for v in values):
            return first
        raise UnpackableError

    def _container(self, values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, dict):
            if any(v.keys() != first.keys() for v in values):
                raise UnpackableError
            return {name: self._merged([v[name] for v in values]) for name in first}
        if any(len(v) != len(first) for v in values):
            raise UnpackableError
        return [self._merged(parts) for parts in zip(*values, strict=True)]

    def _memoised(self, values: Sequence[Any], make: Callable[[Sequence[Any]], Any]) -> Any:
        # Blocks share their masks and rotary tables: make each once. The recordings (and `causal`) keep the objects
        # behind the keys alive.
        key = tuple(id(v) for v in values)
        if key not in self.memo:
            self.memo[key] = make(values)
        return self.memo[key]

    def _tensor(self, values: Sequence[Tensor]) -> Tensor:
        first = values[0]
        if first.ndim == 4 and all(v.shape[-2:] == (n, n) for v, n in zip(values, self.lengths, strict=True)):
            return self._block_mask(values)
        axis = token_axis(first)
        if first.ndim and all(
            v.ndim == first.ndim and v.shape[axis] == n for v, n in zip(values, self.lengths, strict=True)
        ):
            own = [v.narrow(axis, self.prefix, n - self.prefix) for v, n in zip(values, self.lengths, strict=True)]
            return torch.cat([first.narrow(axis, 0, self.prefix), *own], dim=axis)
        if all(v.shape == first.shape and torch.equal(v, first) for v in values):
            return first
        raise UnpackableError

    def _causal(self, length: int) -> Tensor:
        if length not in self.causal:
            full = torch.ones(1, 1, length, length, dtype=torch.bool, device=self.device)
            self.causal[length] = full.tril()
        return self.causal[length]

    def _block_mask(self, masks: Sequence[Tensor]) -> Tensor:
        first, prefix = masks[0], self.prefix
        if any(mask.dtype != first.dtype or mask.shape[:-2] != first.shape[:-2] for mask in masks):
            raise UnpackableError
        total = prefix + sum(n - prefix for n in self.lengths)
        hidden = False if first.dtype == torch.bool else torch.finfo(first.dtype).min
        packed = torch.full((*first.shape[:-2], total, total), hidden, dtype=first.dtype, device=first.device)
        packed[..., :prefix, :prefix] = first[..., :prefix, :prefix]
        offset = prefix
        for mask, n in zip(masks, self.lengths, strict=True):
            end = offset + n - prefix
            packed[..., offset:end, :prefix] = mask[..., prefix:, :prefix]
            packed[..., offset:end, offset:end] = mask[..., prefix:, prefix:]
            offset = end
        return packed
