"""Steering: a vector is added to the residual stream entering a block, for as long as a context lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dct import compat
from dct.blocks import by_name
from dct.errors import DctError, UsageError
from dct.model import LanguageModel

TOKENS = ("all", "prompt", "generated")


@dataclass
class _Call:
    """What the running call of the model reads: which columns are tokens, where anyone says so, and of what kind."""

    mask: Tensor | None = None
    prompt: bool = True


@contextmanager
def steer(
    lm: LanguageModel,
    vector: Float[Tensor, " width"] | Float[Tensor, "batch width"],
    layer: int,
    tokens: str = "all",
) -> Iterator[None]:
    """Adds `vector` to hidden_states[layer] at every token, prompt and generated alike, but not at padding.

    Args:
        lm: the model; restored when the context ends, whatever happens inside.
        vector: one vector for all rows of a batch, or one for each row. Its norm is the strength: pass R v.
        layer: s, the block whose input is steered, 0 <= s < L: the site where slices are fitted.
        tokens: `all`, or only those of the `prompt`, or only the `generated` ones (those read with a filled cache).

    Raises:
        UsageError: the layer is not a block of the model, or unknown tokens.
        DctError: the vector does not have the model's width or is not finite.
    """
    if not 0 <= layer < lm.depth:
        raise UsageError(f"layer {layer} is not a block of {lm.name}: choose 0 to {lm.depth - 1}")
    if tokens not in TOKENS:
        raise UsageError(f"unknown --tokens {tokens!r}: choose {', '.join(TOKENS)}")
    if vector.ndim not in (1, 2) or vector.shape[-1] != lm.width:
        raise DctError(f"a steering vector for {lm.name} has {lm.width} entries, got shape {tuple(vector.shape)}")
    if not bool(torch.isfinite(vector).all()):
        raise DctError("the steering vector is not finite")
    added = vector.detach().reshape(-1, 1, lm.width)
    now = _Call()

    def remember(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = by_name(model, args, kwargs)
        mask = call.get("attention_mask")
        cache = next((call[name] for name in compat.caches_of(call) if call[name] is not None), None)
        now.mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        now.prompt = cache is None or int(cache.get_seq_length()) == 0

    def add(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if tokens != "all" and now.prompt != (tokens == "prompt"):
            return args, kwargs
        stream = args[0] if args else kwargs["hidden_states"]
        if len(added) not in (1, len(stream)):
            raise DctError(f"{len(added)} steering vectors for a batch of {len(stream)}: give one, or one for each row")
        wide = torch.promote_types(stream.dtype, torch.float32)
        change = added.to(stream.device, wide)
        if now.mask is not None:
            change = change * now.mask[:, -stream.shape[1] :, None].to(stream.device, wide)
        steered = (stream.to(wide) + change).to(stream.dtype)
        if args:
            return (steered, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": steered}

    handles = [
        lm.model.register_forward_pre_hook(remember, with_kwargs=True),
        lm.layers[layer].register_forward_pre_hook(add, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
