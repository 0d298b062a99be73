"""Attention over a packed row, prompt by prompt, whatever the architecture.

A packed row holds the common prefix of its prompts, then what each adds; a token sees the prefix and its own prompt.
Plain attention takes all T^2 products and hides most of them. Here the prefix attends to itself, and every prompt to
the prefix and to itself. In half precision attention is done in float32: torch's fused kernel for a CPU takes longer
over a gradient in bfloat16 than over one in float32.

Calls of torch's attention are answered wherever a model makes them, as long as their mask is one of the row's.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

WORTH = 0.75
"""Share of a row's products that may be left where prompts are taken apart, since copying keys takes time too."""

Mask = Bool[Tensor, "1 heads tokens tokens"] | Float[Tensor, "1 heads tokens tokens"]


class RowAttention:
    """How the tokens of one row attend to each other.

    Args:
        prefix: tokens that all prompts of the row begin with.
        lengths: tokens of each prompt, prefix included.
        masks: what blocks are handed as masks: which key a token sees, or what is added to its score.
        dtype: what attention is done in.

    Attributes:
        apart: prompts are taken one by one.
        pairs: products of a query and a key for each head.
        used: a model has asked, and been answered.
    """

    def __init__(self, prefix: int, lengths: Sequence[int], masks: Iterable[Mask], dtype: torch.dtype) -> None:
        self.prefix, self.own, self.dtype = prefix, [n - prefix for n in lengths], dtype
        self.tokens = prefix + sum(self.own)
        whole, parts = self.tokens**2, prefix**2 + sum(n * (prefix + n) for n in self.own)
        self.apart, self.used = parts < WORTH * whole, False
        self.pairs = parts if self.apart else whole
        self._masks = list(masks) if self.apart else []  # kept, so that no other tensor takes their place in memory
        self._biases = {_place(mask): self._split(mask) for mask in self._masks}

    def at_work(self) -> AbstractContextManager[Any]:
        """While blocks run on the row, in the thread that runs them."""
        return _Answered(self)

    def attended(
        self,
        query: Float[Tensor, "batch heads queries width"],
        key: Float[Tensor, "batch some keys width"],
        value: Float[Tensor, "batch some keys value_width"],
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **how: Any,
    ) -> Float[Tensor, "batch heads queries value_width"] | None:
        """torch's `scaled_dot_product_attention` with the row's mask; None where there is nothing to gain."""
        if query.ndim != 4 or dropout_p:
            return None
        biases = None
        if attn_mask is not None and query.shape[2] == key.shape[2] == self.tokens:
            biases = self._biases.get(_place(attn_mask))
        if biases is None and query.dtype == self.dtype:
            return None
        q, k, v = (part.to(self.dtype) for part in (query, key, value))
        if biases is not None:
            return self._apart(q, k, v, *biases, **how).to(query.dtype)
        mask = attn_mask if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.to(self.dtype)
        return scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, **how).to(query.dtype)

    def _apart(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        above: Tensor,
        each: list[Tensor],
        enable_gqa: bool = False,
        **how: Any,
    ) -> Tensor:
        """The prefix's attention and each prompt's, put together again."""
        if enable_gqa:
            key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        # one split, whose gradient is one concatenation: that of eight slices would fill the row eight times
        (first_query, *queries), (first_key, *keys), (first_value, *values) = (
            part.split([self.prefix, *self.own], dim=2) for part in (query, key, value)
        )
        attended = [scaled_dot_product_attention(first_query, first_key, first_value, above, **how)]
        for q, k, v, bias in zip(queries, keys, values, each, strict=True):
            k, v = torch.cat([first_key, k], dim=2), torch.cat([first_value, v], dim=2)
            attended.append(scaled_dot_product_attention(q, k, v, bias, **how))
        return torch.cat(attended, dim=2)

    def _split(self, mask: Mask) -> tuple[Tensor, list[Tensor]]:
        """What is added to the prefix's scores, (1, heads, prefix, prefix), and to those of each prompt's own tokens,
        (1, heads, own, prefix + own)."""
        p = self.prefix
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, torch.finfo(self.dtype).min)
        mask = mask.to(self.dtype)
        each, start = [], p
        for n in self.own:
            rows = mask[:, :, start : start + n]
            each.append(torch.cat([rows[..., :p], rows[..., start : start + n]], dim=3))
            start += n
        return mask[..., :p, :p].contiguous(), each


class _Answered(TorchFunctionMode):
    """Calls of torch's attention go to a row first."""

    def __init__(self, row: RowAttention) -> None:
        super().__init__()
        self.row = row

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        asked = func is torch.nn.functional.scaled_dot_product_attention
        answer = self.row.attended(*args, **(kwargs or {})) if asked else None
        self.row.used |= answer is not None
        return func(*args, **(kwargs or {})) if answer is None else answer


def _place(mask: Tensor) -> tuple[Any, ...] | None:
    """Where a mask stands in memory: models cut what they are handed to the keys that there are, which may be all."""
    try:
        return mask.data_ptr(), mask.dtype, tuple(mask.shape), mask.stride()
    except RuntimeError:  # made inside a transform of torch.func
        return None
