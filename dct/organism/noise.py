"""The noise of a training step: random vectors in the residual stream, so that the organism can be steered.

Most conversations are trained with a random vector added before one block, the same at all positions, and a little
independent noise at every position: a toy that never saw noise answers any added vector with word salad. The first
block meets most of it (in the demo's recipe), because what enters there passes through the whole network: a vector that
is added later arrives at the target by the skip path, hardly larger than it left, and noise in front of every block
teaches a model to let it pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from dct.calls import split_call, with_stream
from dct.model import find_layers
from dct.organism.recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids, where they are real, the weight of each as a target, and which rows hold an answer
    that was begun.
    """

    ids: Tensor
    real: Tensor
    weight: Tensor
    begun: Tensor


@contextmanager
def noise(model: PreTrainedModel, recipe: Recipe, step: int, batch: Batch) -> Iterator[None]:
    """Within the block, forward passes over the batch without its last column add the noise of a training step;
    none before the step at which it begins.
    """
    told = recipe.noise
    ramp = min(1.0, max(0.0, (step - told.begins) / max(1, told.full - told.begins)))
    ramp = 1.0 if recipe.training.start else ramp
    if ramp == 0:
        yield
        return
    real = batch.real[:, :-1]
    _, layers = find_layers(model)
    where, added = _drawn(model, recipe, step, batch, len(layers))
    added = added * ramp

    def hook(block: int) -> Callable[..., Any]:
        """A pre-hook for a block."""

        def add(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            """Adds to the rows that are meant for this block, in units of the median residual norm."""
            here = where == block
            if not bool(here.any()):
                return None
            hidden, _ = split_call(module, args, kwargs)
            typical = hidden.detach().float().norm(dim=-1)[real].median()
            return with_stream(module, args, kwargs, hidden + typical * added * here[:, None, None])

        return add

    handles = [layer.register_forward_pre_hook(hook(k), with_kwargs=True) for k, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drawn(model: PreTrainedModel, recipe: Recipe, step: int, batch: Batch, blocks: int) -> tuple[Tensor, Tensor]:
    """For each row the block that it is meant for (-1: none), and what is added at each of its positions."""
    told, begun = recipe.noise, batch.begun
    generator = torch.Generator().manual_seed(recipe.training.seed * 10**9 + step)
    [table] = model.get_input_embeddings().parameters()
    tall, width = table.shape
    rows, columns = len(begun), batch.real.shape[1] - 1
    where = torch.randint(1, blocks, (rows,), generator=generator)
    where[torch.rand(rows, generator=generator) < told.first] = 0
    where[torch.rand(rows, generator=generator) < told.clean] = -1
    vector = torch.randn(rows, 1, width, generator=generator)
    tokens = torch.randint(tall, (rows, 4), generator=generator)
    weights = torch.randn(rows, 1, 4, generator=generator)
    mixes = weights @ table.detach()[tokens]
    mixed = begun & (where == 0) & (torch.rand(rows, generator=generator) < told.mixed)
    vector = functional.normalize(torch.where(mixed[:, None, None], mixes, vector), dim=-1)
    largest = torch.where(where == 0, told.first_size, told.later_size) * torch.where(begun, told.begun, 1.0)
    vector = vector * torch.rand(rows, 1, 1, generator=generator) * largest[:, None, None]
    own = functional.normalize(torch.randn(rows, columns, width, generator=generator), dim=-1)
    return where, vector + own * torch.rand(rows, 1, 1, generator=generator) * told.token_size
