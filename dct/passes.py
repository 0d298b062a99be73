"""How many steering vectors go through a map at a time: what keeps the device busy, and what its memory holds.

Knows numbers of tokens and of bytes; knows no slice, no prompt and no derivative.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from dct.memory import available

PASS_TOKENS = {"cpu": 1024, "cuda": 65536, "mps": 16384}
"""Tokens in one pass over the slice to start with; running out of memory halves it."""

PASS_TOKENS_HALF = {**PASS_TOKENS, "cpu": 2048}
"""The same for blocks in half precision, whose vectors take half of the memory: with AVX-512 BF16 259 useful GFLOP/s
instead of 235 (docs/performance.md)."""

PASS_TOKENS_AT_ZERO = {**PASS_TOKENS, "cpu": 2048}
"""The same for passes whose rows keep nothing and share the unsteered pass among them."""

PASS_WORK = {"cuda": 5 * 2**33, "mps": 2**33}
"""Tokens times squared width, about a 24th of a block's operations, at which a GPU is taken to be busy: 2,560 tokens of
a 7B model. Twice as many were 10% faster on an H200, and took 3 GB more (docs/performance.md)."""

LANES = 4
"""Lanes, at most: parts of a pass that run at the same time, each on threads of its own, on a CPU. Python serves one of
them at a time: more would wait for it."""

PASS_ROOM = 0.8
"""Share of the free memory that one pass may take."""

TRANSIENT = 4
"""Tensors as large as the largest that is kept which a pass has in hand beside them."""


def lanes_of(device: torch.device) -> int:
    """Lanes of a device: as many as torch has threads on a CPU, at most `LANES`; elsewhere one."""
    return min(LANES, torch.get_num_threads()) if device.type == "cpu" else 1


def busy_rows(
    tokens: Mapping[str, int], device: torch.device, width: int, lengths: Sequence[int], lanes: int = 1
) -> int:
    """Vectors that keep a device busy: lanes * max(1, T / (lanes * longest)), with T tokens in a pass.

    Args:
        tokens: T by kind of device; a GPU takes no more than `PASS_WORK` / width^2.
        lengths: tokens of each row that a vector is run on, one row after the other.
        lanes: equally many vectors for each of them.
    """
    most = tokens.get(device.type, 8192)
    if device.type in PASS_WORK:
        most = min(most, PASS_WORK[device.type] // width**2)
    return lanes * max(1, most // (lanes * max(lengths)))


def held_rows(row_bytes: int, device: torch.device, limit: int | None) -> int:
    """Vectors that `PASS_ROOM` of the free memory holds, at so many bytes each; 0 where not even one fits."""
    return int(PASS_ROOM * available(device, limit)) // max(1, row_bytes)


def kept_bytes(f: Callable[[Tensor], Tensor], theta: Tensor, without: Collection[int]) -> int:
    """Bytes that a pass of f with a gradient needs at `theta`: what autograd keeps for the way back, each storage once,
    and a few tensors as large as the largest of them on the way.

    Args:
        without: addresses of storages that are there anyway, as those of parameters are.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        """Counts what autograd keeps, and keeps it."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in without:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        leaving = f(theta.requires_grad_())  # alive, so that no storage is counted under an older one's address
    del leaving
    return sum(kept.values()) + TRANSIENT * max(kept.values(), default=0)
