"""Work in batches that fit memory: as many rows at a time as it holds, half as many when it runs out; on a CPU, several
parts side by side; of several processes, each does its share (`dct.team`). Loses nothing."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from typing import TypeVar

import torch

from dct import compat
from dct.errors import DctError
from dct.team import current

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
    """Calls run(start, stop) over 0..total, part after part, halving the parts whenever memory runs out. In a team each
    process calls it over its share, and all have all the results.

    Args:
        run: does the rows start..stop-1; repeated with fewer of them when memory runs out.
        total: number of rows.
        batch: rows in hand at a time to begin with, in all lanes together.
        device: where the memory is.
        cure: what the user can do if a single row does not fit.
        on_rows: told how many rows have just been done, those that other processes will have done by then included.
        lanes: parts that run at the same time (see `side_by_side`).

    Returns:
        The results in order, one for each call of `run` that counts, and the batch that fitted in the end.

    Raises:
        DctError: a single row does not fit in memory.
    """
    team = current()
    share = team.share(total)
    told = 0

    def tell(done: int) -> None:
        """So many rows of the share are done."""
        nonlocal told
        if on_rows is not None:
            rows = total * done // len(share) if share else total
            on_rows(rows - told)
            told = rows

    def own() -> list[T]:
        """The results of the share."""
        nonlocal batch
        results, batch = _own(run, share, batch, device, cure, tell, lanes)
        return results

    results = team.gathered(own, device)
    if total and not share:
        tell(0)
    return results, batch


def _own(
    run: Callable[[int, int], T],
    share: range,
    batch: int,
    device: torch.device,
    cure: str,
    tell: Callable[[int], None],
    lanes: int,
) -> tuple[list[T], int]:
    """The same of one process; `tell` is told how many of its rows are done."""
    results: list[T] = []
    done = share.start
    while done < share.stop:
        lanes = max(1, min(lanes, batch))
        ends = _ends(done, share.stop, max(1, batch // lanes), lanes)
        try:
            with closing(side_by_side(run, ends, lanes)) as parts:
                for stop, part in zip(ends[1:], parts, strict=True):
                    results.append(part)
                    tell(stop - share.start)
                    done = stop
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            batch = min(batch, lanes * max(stop - start for start, stop in pairwise(ends))) // 2
            if batch == 0:
                raise DctError(f"out of memory with a single row: {cure}") from error
        if done < share.stop:  # outside the handler, which would keep the failed pass's tensors alive
            release_memory(device)
    return results, batch


def side_by_side(run: Callable[[int, int], T], ends: list[int], lanes: int) -> Generator[T, None, None]:
    """Yields run(start, stop) for the parts between neighbouring ends, in order, as many at work as there are lanes.

    For work on a CPU: there the threads of one pass wait for each other after every operation, and those of passes side
    by side do not. Lanes are threads that share torch's threads among them; each takes the next part when it is done
    with one. What is left when one fails, or the caller closes, is not begun.
    """
    lanes = min(lanes, len(ends) - 1)
    if lanes <= 1:
        for start, stop in pairwise(ends):
            yield run(start, stop)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(max(1, threads // lanes),))
    try:
        for part in [pool.submit(run, start, stop) for start, stop in pairwise(ends)]:
            yield part.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _ends(start: int, stop: int, size: int, lanes: int) -> list[int]:
    """Where parts of at most `size` rows begin and end: nearly equal, and as many for each lane."""
    parts = lanes * -(-(stop - start) // (lanes * size))
    parts = min(parts, stop - start)
    return [start + (stop - start) * k // parts for k in range(parts + 1)]


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    # accelerate's `should_reduce_batch_size` of 1.0 knows neither Apple's devices nor Windows, and no MemoryError.
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )


def release_memory(device: torch.device) -> None:
    """Gives cached blocks back to the device, so that a smaller pass can have them."""
    if device.type != "cpu":
        compat.clear_device_cache()
