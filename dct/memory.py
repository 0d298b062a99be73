"""How much memory there is, how much is used, how to say so, and how threads share it. Knows nothing of models."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dct.errors import UsageError
from dct.team import current

if TYPE_CHECKING:
    import torch

CGROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
"""A container's limit, its use, and the part of its use that the kernel gives back when asked (versions 2 and 1)."""

CGROUP_ROOT = Path("/sys/fs/cgroup")

UNITS = {
    "": 10**9,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


M_ARENA_MAX = -8
"""glibc's number for the limit on its heaps (malloc.h)."""


def one_heap() -> None:
    """Has the threads of this process share one heap, where the C library would give each its own (glibc).

    Heaps of several threads are filled unevenly, and what one has free another cannot use. For a process that is the
    program's own, before threads begin; MALLOC_ARENA_MAX in the environment is left to rule.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        import ctypes

        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def available(device: "torch.device", limit: int | None = None) -> int:
    """Bytes that can still be had on a device: what is free, or what is left of `limit` where that is less.

    On a GPU the blocks that torch holds in reserve count as free; on a CPU the page cache does, and the limit of a
    container counts like the end of memory. There the processes of a team have equal parts of it.

    Args:
        device: where.
        limit: bytes that this process may use there in all.
    """
    import torch

    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        import psutil  # type: ignore[import-untyped]

        free = min([int(psutil.virtual_memory().available), *_containers()]) // current().local_size
    if limit is not None:
        free = min(free, limit - used(device))
    return max(0, int(free))


def used(device: "torch.device") -> int:
    """Bytes that this process has on a device now: of tensors on a GPU, its resident set on a CPU."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.current_allocated_memory())
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak(device: "torch.device") -> int:
    """Bytes: the device's peak where it keeps one, the process's peak resident set elsewhere."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # getrusage would count what the process was forked from; the kernel's own record begins with the program.
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) if sys.platform == "darwin" else int(most) * 1024


def _containers() -> list[int]:
    """What is left of the limits of the container that this runs in, if it runs in one."""
    left = []
    for limit, usage, idle in CGROUPS:
        with suppress(OSError, ValueError, KeyError):
            most = int((CGROUP_ROOT / limit).read_text())  # "max" stands for none
            folder = (CGROUP_ROOT / limit).parent
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            left.append(most - int((CGROUP_ROOT / usage).read_text()) + int(statistics[idle]))
    return left


def human_bytes(n: int) -> str:
    """Bytes as people say them: "4.1 GB"."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def parse_bytes(text: str | None) -> int | None:
    """`memory` in bytes: "8GB", "7.5 GiB", "900MB"; a bare number is in gigabytes.

    Raises:
        UsageError: none of these.
    """
    if text is None:
        return None
    # accelerate's `convert_file_size_to_int` takes 8gb for gigabits, knows no TB and no bare number, and imports torch.
    digits = text.strip().rstrip("BbGgKkMmTtIi ")
    unit = text.strip()[len(digits) :].strip().lower()
    try:
        size = float(digits) * UNITS[unit]
    except (ValueError, KeyError):
        raise UsageError(f"`memory` must be a size such as 8GB or 900MB: got {text!r}", argument="memory") from None
    if not 0 < size < float("inf"):
        raise UsageError(f"`memory` must be positive: got {text!r}", argument="memory")
    return int(size)
