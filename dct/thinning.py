"""Greedy completions of a batch that gets thinner as its rows end.

transformers' `generate` computes every row until the last one has ended, and replies differ in length: a refusal has a
dozen tokens where an answer fills the room it has. Here `generate` is left as soon as a part of its rows has ended, and
goes on with the others and with their keys and values. Only where the model's own logits say that this changes nothing.
"""

import copy
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from dct import compat

STAYS = 0.75
"""Rows that are still at work, as a share of those in hand, at which the others are dropped."""


@dataclass
class Rows:
    """Rows of a batch in the middle of their completions.

    Attributes:
        ids: their tokens so far, padded on the left.
        mask: which of those are no padding.
        places: where they stand among the rows of the beginning.
        cache: keys and values of all tokens but the last; None before the first call.
    """

    ids: Int[Tensor, "rows tokens"]
    mask: Int[Tensor, "rows tokens"]
    places: Int[Tensor, " rows"]
    cache: Any = None

    def after(self, out: Any) -> "Rows":
        """The same rows after a call of `generate`."""
        new = torch.ones_like(out.sequences[:, self.ids.shape[1] :])
        return Rows(out.sequences, torch.cat([self.mask, new], dim=1), self.places, compat.cache_of(out))

    def only(self, kept: Int[Tensor, " kept"]) -> "Rows":
        """Some of the rows. The cache goes with them."""
        if self.cache is not None and len(kept) < len(self.ids):
            self.cache.batch_select_indices(kept)
        return Rows(self.ids[kept], self.mask[kept], self.places[kept], self.cache)


class _Left(StoppingCriteria):
    """Ends a call of `generate` once a share of its rows has ended.

    Attributes:
        ended: which of them.
    """

    def __init__(self, rows: int, ends: Set[int], device: torch.device, share: float) -> None:
        self.ends = torch.tensor(sorted(ends), device=device, dtype=torch.long)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.enough = share * rows

    def __call__(self, input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        """Called by `generate` after every token; True for rows that are to go no further."""
        self.ended |= torch.isin(input_ids[:, -1], self.ends)
        if int((~self.ended).sum()) <= self.enough:
            return torch.ones_like(self.ended)
        return self.ended


Call = Callable[[Rows, GenerationConfig, StoppingCriteriaList], Any]
"""`generate` with its dictionary of results, on the rows in hand and from their cache."""


def thinned(call: Call, rows: Rows, settings: GenerationConfig, ends: Set[int], stays: float = STAYS) -> Tensor:
    """What `generate` puts behind each row, padded where a row ended before others.

    Args:
        call: see `Call`.
        rows: all of them, nothing read yet.
        settings: greedy ones; each call is given what is left of their `max_new_tokens`.
        ends: tokens that end a row.
        stays: see `STAYS`; 0 drops none before all have ended.
    """
    most = int(settings.max_new_tokens)
    said = torch.full((len(rows.ids), most), int(settings.pad_token_id), device=rows.ids.device)
    done = 0
    while done < most and len(rows.ids):
        left = _Left(len(rows.ids), ends, rows.ids.device, stays)
        out = call(rows, shortened(settings, most - done), StoppingCriteriaList([left]))
        new = out.sequences[:, rows.ids.shape[1] :]
        said[rows.places, done : done + new.shape[1]] = new
        done += new.shape[1]
        rows = rows.after(out).only((~left.ended).nonzero().flatten())
    return said[:, :done]


def thins(call: Call, settings: GenerationConfig, ids: Int[Tensor, "2 tokens"], mask: Int[Tensor, "2 tokens"]) -> bool:
    """Whether a model says of a row that stays what it says of it among all, as far as its logits tell: two tokens
    of both rows and two more of the second alone, against four of both.

    Args:
        call: see `Call`.
        settings: greedy ones, of four tokens, that ask for logits.
        ids: two rows; mask: which of their tokens are no padding.
    """
    none = StoppingCriteriaList()
    both = Rows(ids, mask, torch.arange(2, device=ids.device))
    whole = call(both, settings, none)
    begun = call(both, shortened(settings, 2), none)
    try:
        rows = both.after(begun).only(torch.tensor([1], device=ids.device))
        ended = call(rows, shortened(settings, 2), none)
    except (AttributeError, TypeError, ValueError, IndexError, KeyError, RuntimeError):  # a cache that cannot
        return False
    seen = torch.stack([step[1] for step in whole.logits])
    parts = torch.stack([step[-1] for step in (*begun.logits, *ended.logits)])
    if seen.shape != parts.shape:
        return False
    wide = seen.float().nan_to_num(0.0, 0.0, 0.0)
    bound = max(1e-3, 16 * torch.finfo(seen.dtype).eps) * float(wide.abs().max())
    return bool(((wide - parts.float().nan_to_num(0.0, 0.0, 0.0)).abs() <= bound).all())


def shortened(settings: GenerationConfig, tokens: int) -> GenerationConfig:
    """The same settings for so many new tokens."""
    some = copy.deepcopy(settings)
    some.max_new_tokens = tokens
    if some.min_new_tokens is not None:
        some.min_new_tokens = tokens
    return some
