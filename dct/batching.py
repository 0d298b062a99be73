"""Work in batches that fit memory: as many rows at a time as it holds, half as many when it runs out. Loses nothing."""

from collections.abc import Callable
from typing import TypeVar

import torch

from dct.errors import DctError

T = TypeVar("T")


def in_batches(
    run: Callable[[int, int], T],
    total: int,
    batch: int,
    device: torch.device,
    cure: str,
    on_rows: Callable[[int], None] | None = None,
) -> tuple[list[T], int]:
    """Calls run(start, stop) over 0..total, batch after batch, halving the batch whenever memory runs out.

    Args:
        run: does the rows start..stop-1; repeated with fewer of them when memory runs out.
        total: number of rows.
        batch: rows at a time to begin with.
        device: where the memory is.
        cure: what the user can do if a single row does not fit.
        on_rows: told how many rows have just been done.

    Returns:
        The results in order, and the batch that fitted in the end.

    Raises:
        DctError: a single row does not fit in memory.
    """
    results: list[T] = []
    start = 0
    while start < total:
        stop = min(start + batch, total)
        fitted = True
        try:
            results.append(run(start, stop))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if stop - start == 1:
                raise DctError(f"out of memory with a single row: {cure}") from error
            fitted = False
        if not fitted:  # outside the handler, which would keep the failed pass's tensors alive
            batch = (stop - start) // 2
            release_memory(device)
            continue
        if on_rows is not None:
            on_rows(stop - start)
        start = stop
    return results, batch


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )


def release_memory(device: torch.device) -> None:
    """Gives cached blocks back to the device, so that a smaller pass can have them."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
