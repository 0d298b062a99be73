"""Which tensor on disk is which parameter in memory: transformers renames, fuses and splits while it reads.

Names on disk are what transformers itself would write, looked up among those that the files have. Nothing is trusted
by its name alone: what is not found to the letter must agree in its values.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dct import compat
from dct.saving.weight_files import Weights

Layout = Mapping[str, tuple[int, ...]]
"""Shapes of tensors on disk, by name."""


@dataclass(frozen=True)
class Piece:
    """A tensor as it lies on disk.

    Attributes:
        name: its name there.
        values: the model's values for it, in the layout that it has there.
        owner: the parameter in memory that it comes from; None where it comes from several.
        literal: the files have it under the very name that transformers would write.
    """

    name: str
    values: Tensor
    owner: str | None
    literal: bool


class Names:
    """Names and shapes on disk, and how those that transformers would write are found among them."""

    def __init__(self, shapes: Layout) -> None:
        self.shapes = shapes
        self.tails: dict[str, list[str]] = {}
        for name in shapes:
            parts = name.split(".")
            for start in range(len(parts)):
                self.tails.setdefault(".".join(parts[start:]), []).append(name)

    def known(self, name: str) -> bool:
        """Whether there is one of that name, whatever its shape."""
        return name in self.tails

    def find(self, name: str, shape: tuple[int, ...]) -> str | None:
        """The name itself, or the only one of that shape that has the longest ending in common with it.

        Nothing but a prefix may differ: the list of blocks, its number and all that follows belong to the ending.
        """
        if self.shapes.get(name) == shape:
            return name
        parts = name.split(".")
        numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
        last = max(0, min([len(parts) - 2, *(place - 1 for place in numbers)]))
        for start in range(last + 1):
            hits = [hit for hit in self.tails.get(".".join(parts[start:]), []) if self.shapes[hit] == shape]
            if hits:
                return hits[0] if len(hits) == 1 else None
        return None


def held(model: Any) -> dict[str, Tensor]:
    """What a model holds in memory: parameters and the buffers that are saved, by name."""
    return {name: values for name, values in model.state_dict().items() if not values.is_meta}


def expected(model: Any) -> dict[str, Tensor]:
    """What transformers would write for a model, as tensors without data."""
    tied = compat.tied_weights(model)
    there = {n: t for n, t in held(model).items() if n not in tied or tied[n] not in model.state_dict()}
    return compat.disk_tensors(model, {name: values.to("meta") for name, values in there.items()})


def pieces(model: Any, shapes: Layout, tensors: Mapping[str, Tensor]) -> Iterator[Piece | str]:
    """Tensors of a model in the layout of its files, one parameter or block in memory at a time.

    Args:
        model: the model in memory.
        shapes: names and shapes on disk.
        tensors: some of what it holds, by name.

    Yields:
        Pieces; and the names of tensors that the files do not have.
    """
    names = Names(shapes)
    together: dict[str, dict[str, Tensor]] = {}
    for name, values in tensors.items():
        written = _written(model, {name: values})
        found = _found(names, written, name)
        if found is not None:
            yield from found
        elif written is not None and len(written) == 1 and not names.known(next(iter(written))):
            yield name  # a plain renaming, and the files do not have it
        else:
            together.setdefault(_block(name), {})[name] = values
    for group in together.values():
        found = _found(names, _written(model, group), None)
        yield from group if found is None else found


def _written(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """What transformers would write for some tensors; None where it needs others to go with them."""
    try:
        return compat.disk_tensors(model, tensors)
    except compat.CompatError:
        raise
    except Exception:  # whatever a conversion raises that lacks the others of its group
        return None


def _found(names: Names, written: dict[str, Tensor] | None, owner: str | None) -> list[Piece] | None:
    """The pieces of what would be written; None unless the files have all of it, in the same shapes."""
    if not written:
        return None
    there = {name: names.find(name, tuple(values.shape)) for name, values in written.items()}
    if None in there.values():
        return None
    return [Piece(str(there[name]), values, owner, there[name] == name) for name, values in written.items()]


def _block(name: str) -> str:
    """What a tensor may be written together with: its block, up to and with its first number."""
    parts = name.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdecimal()), 0)
    return ".".join(parts[: first + 1])


def shapes_of(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors on disk by name."""
    return {name: weights.entry(name).shape for name in weights.home}


def same_values(values: Tensor, stored: Tensor) -> bool:
    """Whether a tensor in memory is what its file holds, brought to the type that it has in memory."""
    return torch.equal(values.cpu(), stored.to(values.dtype))


def near(values: Tensor, stored: Tensor) -> bool:
    """Whether two tensors are the same one but for an edit: unrelated ones differ by more than their size."""
    a, b = values.detach().cpu().double(), stored.double()
    return float((a - b).norm()) <= 0.9 * max(float(b.norm()), math.ulp(0.0))
