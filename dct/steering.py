"""Steering: a model under a perturbation, for as long as a context lasts. A vector is added to the residual stream
entering a block, or the attention outputs of a band of blocks are changed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dct import compat
from dct.calls import by_name, split_call, with_stream
from dct.errors import DctError, UsageError
from dct.model import LanguageModel
from dct.perturbation import RankOne, Site
from dct.projections import changed

TOKENS = ("all", "prompt", "generated")


@contextmanager
def steer(
    lm: LanguageModel,
    vector: Float[Tensor, " width"] | Float[Tensor, "batch width"] | Float[Tensor, "batch positions width"],
    layer: Site,
    tokens: str = "all",
) -> Iterator["Steering"]:
    """Adds `vector` to hidden_states[layer] at every token, prompt and generated alike, but not at padding.

    Args:
        lm: the model; restored when the context ends, whatever happens inside.
        vector: one vector for all rows of a batch, or one for each row. Its norm is the strength: pass R v. With a
            third axis, one for each position of each row (or of all rows, where there is one): a row's first token that
            is no padding has position 0, and generated ones are counted on.
        layer: s, the block whose input is steered, 0 <= s < L: the site where slices are fitted. Or the rank-1 changes
            of a band, of which `vector` then is one for all rows or one for each (see `RankOne`).
        tokens: `all`, or only those of the `prompt`, or only the `generated` ones. Generated are tokens that are read
            with a cache of earlier ones, or, without a cache, what a call has beyond the tokens of the call before.

    Yields:
        A count of what has been read.

    Raises:
        UsageError: the layer is not a block of the model, or unknown tokens.
        DctError: the vector does not have the model's width or is not finite; the model runs the block more than once,
            or on tokens of its own; more tokens than positions.
    """
    if tokens not in TOKENS:
        raise UsageError(f"unknown `tokens` {tokens!r}: choose {', '.join(TOKENS)}", argument="tokens")
    _check(lm, vector, layer)
    added = vector.detach()
    rows = added if added.ndim == 3 else added.reshape(-1, 1, added.shape[-1])
    steering = Steering(lm, rows, tokens, added.ndim == 3)
    handles = [
        lm.model.register_forward_pre_hook(steering.begins, with_kwargs=True),
        lm.model.register_forward_hook(steering.ends, always_call=True),
    ]
    try:
        with ExitStack() as stack:
            if isinstance(layer, RankOne):
                stack.enter_context(changed(lm, layer, rows[:, 0].to(lm.device), steering.where))
            else:
                handles.append(lm.layers[layer].register_forward_pre_hook(steering.adds, with_kwargs=True))
            yield steering
    finally:
        for handle in handles:
            handle.remove()


def _check(lm: LanguageModel, vector: Tensor, site: Site) -> None:
    """Refuses what is no perturbation of this model at this site.

    Raises:
        UsageError, DctError: why.
    """
    if isinstance(site, RankOne):
        if site.blocks.stop > lm.depth or site.width != lm.width:
            raise DctError(
                f"these are changes of {site} of a model of width {site.width}, and {lm.name} has {lm.depth} blocks of "
                f"width {lm.width}: pass the right `model`"
            )
        if vector.ndim not in (1, 2) or vector.shape[-1] != site.dim:
            raise DctError(f"a change of {site} has {site.dim} entries, got shape {tuple(vector.shape)}")
    else:
        if not 0 <= site < lm.depth:
            raise UsageError(f"layer {site} is not a block of {lm.name}: choose 0 to {lm.depth - 1}", argument="layer")
        if vector.ndim not in (1, 2, 3) or vector.shape[-1] != lm.width:
            raise DctError(f"a steering vector for {lm.name} has {lm.width} entries, got shape {tuple(vector.shape)}")
    if not bool(torch.isfinite(vector).all()):
        raise DctError("the steering vector is not finite")


class Steering:
    """The running call of a steered model: which of its tokens are prompt, which were generated, which are padding.

    Attributes:
        added: what is added to each row, at all its positions alike or, where it is `placed`, at each.
        generated: columns that have been read as generated tokens.
    """

    def __init__(
        self, lm: LanguageModel, added: Float[Tensor, "rows positions width"], tokens: str, placed: bool = False
    ) -> None:
        self.lm, self.added, self.tokens, self.placed = lm, added, tokens, placed
        self.generated = 0
        self._mask: Tensor | None = None
        self._columns: int | None = None  # of the running call; None between calls
        self._prompt = 0  # columns of it that belong to the prompt
        self._ran = False
        self._ids: Tensor | None = None
        self._cache: Any = None
        self._read = 0  # columns that went through the cache that is in use

    def begins(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is called: what are its tokens?"""
        call = by_name(model, args, kwargs)
        read = call.get("input_ids")
        read = call.get("inputs_embeds") if read is None else read
        mask = call.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self._columns = read.shape[1] if isinstance(read, Tensor) else None
        self._ran = False
        columns = self._columns or 0
        cache = next((call[name] for name in compat.caches_of(call) if call[name] is not None), None)
        if compat.tokens_in(cache) if cache is not None else 0:
            self._prompt = 0
        elif not self._repeats(read, columns):
            self._prompt = 0 if self._goes_on(cache) else columns
        self._read = columns if self._prompt else self._read + columns
        self._cache, self._ids = cache, read
        self.generated = columns - self._prompt if self._prompt else self.generated + columns

    def _repeats(self, read: Any, columns: int) -> bool:
        """Whether the call has the tokens of the call before, and more: no cache is in use, given or not."""
        before = self._ids
        if not (isinstance(before, Tensor) and isinstance(read, Tensor) and before.ndim == read.ndim):
            return False
        seen = before.shape[1]
        return seen < columns and len(before) == len(read) and torch.equal(before, read[:, :seen])

    def _goes_on(self, cache: Any) -> bool:
        """Whether the call reads on from a cache that tells of no tokens: a recurrent state, that was there in the call
        before or keeps no count."""
        if cache is None or (compat.tokens_in(cache) == 0 and cache is not self._cache):
            return False
        return self._read > 0

    def ends(self, *_: Any) -> None:
        """The model's call is over."""
        self._columns = None

    def adds(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The steered block is called: adds the vector to its stream.

        Raises:
            DctError: not one vector for each row; a block that runs twice, or on tokens of the model's own.
        """
        stream, _ = split_call(block, args, kwargs)
        if self._columns is not None and self._ran:
            raise DctError(f"{self.lm.name} runs the steered block more than once: hidden_states are no single place")
        where = self.where(stream)
        self._ran = True
        if where is not None and not bool(where.any()):
            return args, kwargs
        if len(self.added) not in (1, len(stream)):
            raise DctError(
                f"{len(self.added)} steering vectors for a batch of {len(stream)}: give one, or one for each row"
            )
        wide = torch.promote_types(stream.dtype, torch.float32)
        change = (self._placed(stream) if self.placed else self.added).to(stream.device, wide)
        if where is not None:
            change = change * where[..., None].to(stream.device, wide)
        return with_stream(block, args, kwargs, (stream.to(wide) + change).to(stream.dtype))

    def _placed(self, stream: Tensor) -> Float[Tensor, "rows tokens width"]:
        """What is added to each token of the running call, by its position in its row.

        Raises:
            DctError: a token lies beyond the positions there are.
        """
        columns = stream.shape[1]
        if self._mask is not None and self._columns is not None:
            positions = (self._mask.long().cumsum(1) - 1).clamp_min(0)[:, -columns:]
        else:
            before = 0 if self._columns is None else self._read - columns
            positions = torch.arange(before, before + columns, device=stream.device)[None]
        added = self.added.to(stream.device)
        if int(positions.max()) >= added.shape[1]:
            raise DctError(
                f"there are steering vectors for {added.shape[1]} positions and {self.lm.name} reads token "
                f"{int(positions.max()) + 1}: give as many as there are tokens"
            )
        rows = torch.arange(len(added), device=stream.device)[:, None]
        return added[rows, positions.to(stream.device)]

    def where(self, stream: Tensor) -> Tensor | None:
        """Which tokens of a stream are steered, (batch or 1, tokens); None for all of them.

        Raises:
            DctError: the stream is not of the running call's tokens.
        """
        if self._columns is None:  # the block is run by itself
            return None
        if stream.ndim != 3 or stream.shape[1] != self._columns:
            raise DctError(
                f"the stream of {self.lm.name} has shape {tuple(stream.shape)} for {self._columns} tokens: dct cannot "
                "tell which to steer"
            )
        if self.tokens == "all" and self._mask is None:
            return None
        where = torch.ones(1, self._columns, dtype=torch.bool, device=stream.device)
        if self.tokens != "all":
            where[:, : self._prompt] = self.tokens == "prompt"
            where[:, self._prompt :] = self.tokens == "generated"
        if self._mask is None:
            return where
        if self._mask.shape[1] < self._columns:
            raise DctError(f"the attention mask has fewer columns than the {self._columns} tokens that it is for")
        return where & self._mask[:, -self._columns :].bool().to(stream.device)
