"""The supervised baseline: the difference of means at many layers, as a search for it would try it.

Knows no factors: labels are all it has. Its layer and its length are searched for, as those of other vectors are.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dct.calls import split_call
from dct.candidates import Aim
from dct.logits import own_difference
from dct.model import LanguageModel
from dct.perturbation import layer_of
from dct.replies import Push
from dct.scoring import direction_between
from dct.wordpair import Words

MOST = 48
"""Layers that are searched, at most."""


@dataclass(frozen=True)
class Streams:
    """What enters the blocks when some prompts are read, unsteered.

    Attributes:
        last: hidden_states[l] at the last token of each prompt.
        mean: its mean over the tokens of each prompt.
        norm: median |hidden_states[l]| over all tokens.
    """

    last: Float[Tensor, "layers prompts width"]
    mean: Float[Tensor, "layers prompts width"]
    norm: Float[Tensor, " layers"]


@torch.no_grad()
def entering(lm: LanguageModel, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> Streams:
    """What enters some blocks, from the model's own run of each row."""
    seen: dict[int, Tensor] = {}

    def watch(layer: int) -> Any:
        """A pre-hook for the block of this number."""

        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            """Keeps the stream that the block is handed."""
            seen[layer] = split_call(block, args, kwargs)[0][0].float().cpu()

        return hook

    last, mean, norms = [], [], []
    with ExitStack() as stack:
        for layer in layers:
            handle = lm.layers[layer].register_forward_pre_hook(watch(layer), with_kwargs=True)
            stack.callback(handle.remove)
        for row in rows:
            lm.model(torch.tensor([list(row)], device=lm.device), use_cache=False)
            streams = torch.stack([seen[layer] for layer in layers])
            last.append(streams[:, -1])
            mean.append(streams.mean(1))
            norms.append(streams.norm(dim=-1))
    return Streams(torch.stack(last, 1), torch.stack(mean, 1), torch.cat(norms, 1).median(1).values)


def spread(depth: int, count: int, source: int) -> list[int]:
    """So many layers of a model (all of them where it has no more), evenly spaced, the source among them."""
    count = min(count, depth)
    if count == 1:
        return [source]
    layers = {round(k * (depth - 1) / (count - 1)) for k in range(count)}
    nearest = min(layers, key=lambda layer: abs(layer - source))
    return sorted(layers - {nearest} | {source})


def lengths(scales: Sequence[float], count: int) -> list[float]:
    """So many multiples: those there are or, where that is too few, evenly spaced on a logarithmic axis between the
    least and the largest (a factor of two around a single one)."""
    if count <= len(scales):
        return list(scales)
    low, high = (min(scales), max(scales)) if len(set(scales)) > 1 else (scales[0] / 2, scales[0] * 2)
    return [low * (high / low) ** (k / (count - 1)) for k in range(count)]


def supervised(
    lm: LanguageModel,
    compared: Words,
    prompts: Sequence[str],
    harmless: Sequence[str],
    aim: Aim,
    scales: Sequence[float],
    count: int,
    screened: int,
) -> list[list[Push]]:
    """Difference-of-means vectors at every layer (`MOST` of them), each at every length, best of the screen first.

    At layer l it is c R |h_l| / |h_s| long, with |h_l| the median length of the stream there, so that a multiple c
    means as much at every layer.

    Args:
        prompts: away from these; the first `screened` of them order the layers by the score.
        harmless: towards these.
        count: pushes there are to be, at least: more lengths than `scales` where there are too few layers.
    """
    source = layer_of(aim.layer)
    layers = spread(lm.depth, MOST, source)
    away = entering(lm, lm.encode(prompts, aim.system), layers)
    towards = entering(lm, lm.encode(harmless, aim.system), layers)
    here = float(away.norm[layers.index(source)])
    multiples = lengths(scales, -(-count // len(layers)))
    few = lm.encode(prompts[:screened], aim.system)
    scored: list[tuple[float, list[Push]]] = []
    for k, layer in enumerate(layers):
        direction = direction_between(
            (towards.last[k], away.last[k]), (towards.mean[k], away.mean[k]), float(away.norm[k])
        )
        R = aim.scale * float(away.norm[k]) / here
        moved = own_difference(lm, compared, few, R * direction, layer)
        pushes = [Push(layer, c * R * direction, f"layer {layer}", c * R) for c in sorted(multiples)]
        scored.append((sum(moved), pushes))
    return [pushes for _, pushes in sorted(scored, key=lambda one: -one[0])]
