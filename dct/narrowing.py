"""A block run only where it is read: of the other tokens, only keys and values are made.

No architecture need be known for this: the block is run twice with a key-value cache of our own, as when it generates.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dct import compat
from dct.calls import Call, Made, fresh, rebuilt, stream_of


class ReadCall:
    """A block's call that leaves the stream at some of its tokens alone.

    On the other tokens the block is left as soon as it hands keys and values to the cache; on the tokens that are read
    it gets those back in front of its own. Whether a block takes this is for the caller to check.

    Args:
        call: the block's own arguments for all tokens.
        read: the tokens that are read, ascending, each once.
        tokens: how many there are altogether.

    Raises:
        ValueError: the block takes no cache, or what an earlier block made.
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
        own = {self._cache: _KeysAndValues()}
        try:
            block(stream[:, self.others], **fresh(self._call_on_others, {}, {}) | own)
        except _KeysAndValuesMade:
            return stream_of(block(stream[:, self.read], **fresh(self._call_on_read, {}, {}) | own))
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
        """One argument for the chosen tokens.

        Raises:
            ValueError: it is what an earlier block made, at all tokens.
        """
        if isinstance(value, Made):
            raise ValueError("the block takes what an earlier block made")
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        if value.ndim == 4 and value.shape[-2:] == (tokens, tokens):
            return value[..., queries, :][..., keys].contiguous()
        axis = token_axis(value)
        return value.index_select(axis, queries) if value.shape[axis] == tokens else value

    return {name: rebuilt(value, leaf, {}) for name, value in call.items()}


def token_axis(value: Tensor) -> int:
    """Where tensors that transformers passes to its blocks have their tokens, if they have any (masks apart)."""
    return 0 if value.ndim == 1 else 1
