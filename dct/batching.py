"""Work in batches that fit memory: as many rows at a time as it holds, half as many when it runs out. Loses nothing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
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
    lanes: int = 1,
) -> tuple[list[T], int]:
    """Calls run(start, stop) over 0..total, batch after batch, halving the batch whenever memory runs out.

    Args:
        run: does the rows start..stop-1; repeated with fewer of them when memory runs out.
        total: number of rows.
        batch: rows at a time to begin with.
        device: where the memory is.
        cure: what the user can do if a single row does not fit.
        on_rows: told how many rows have just been done.
        lanes: equal parts that a batch is split into, to be run at the same time (see `side_by_side`).

    Returns:
        The results in order, one for each call of `run` that counts, and the batch that fitted in the end.

    Raises:
        DctError: a single row does not fit in memory.
    """
    results: list[T] = []
    start = 0
    while start < total:
        stop = min(start + batch, total)
        fitted = True
        try:
            results += side_by_side(run, start, stop, lanes)
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


def side_by_side(run: Callable[[int, int], T], start: int, stop: int, lanes: int) -> list[T]:
    """Calls run on equal parts of start..stop at the same time, in threads that share torch's threads among them.

    For work on a CPU: there the threads of one pass wait for each other after every operation, and those of passes side
    by side do not.
    """
    lanes = min(lanes, stop - start)
    if lanes <= 1:
        return [run(start, stop)]
    threads = torch.get_num_threads()
    ends = [start + (stop - start) * k // lanes for k in range(lanes + 1)]
    share = max(1, threads // lanes)
    try:
        with ThreadPoolExecutor(lanes - 1, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            others = [pool.submit(run, *part) for part in pairwise(ends[1:])]
            torch.set_num_threads(share)
            first = run(start, ends[1])
            return [first, *(other.result() for other in others)]
    finally:
        torch.set_num_threads(threads)


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
