"""Where a model's weights go and in which type: what fits, what waits elsewhere, and what the user should know.

Knows how large things are and what the device has free; reads nothing.
"""

from dataclasses import dataclass

import torch

from dct import compat
from dct.checkpoint import STRIDE, Checkpoint
from dct.errors import DctError, UsageError
from dct.memory import available, human_bytes

SMALL = 1_000_000_000
"""Parameters below which a CPU runs in float32 even where bfloat16 would be faster."""

ROOM = 0.75
"""Share of the free memory that weights may take, the rest being for what is computed with them."""

UNPACKING = 2
"""How often the weights of a GGUF file are in memory at once while they are unpacked (measured: 1.6 and 2.2)."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Placement:
    """How weights go into memory.

    Attributes:
        dtype: the type they are kept and computed in.
        spills: whether they do not fit, so that some must wait in host memory or on disk.
        free: bytes that they may take on the device.
        remarks: what the user should know.
    """

    dtype: torch.dtype
    spills: bool
    free: int
    remarks: tuple[str, ...]

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, blocks: range | None, dtype: str, place: torch.device, memory: int | None
    ) -> "Placement":
        """Decides from the checkpoint's sizes and what is free on the device.

        Args:
            blocks: those that are loaded; None for all of the model.
            dtype: `auto` or a name; `auto` is decided here.
            memory: bytes to stay within on the device; None for what is free.
        """
        whole = blocks is None
        # While prompts are run, what stands around the blocks and a few blocks below the slice are there as well.
        count = checkpoint.parameters if blocks is None else checkpoint.count(blocks, ends=True)
        size = {kind: _bytes(count, kind) + (0 if whole else STRIDE) for kind in DTYPES.values()}
        free = available(place, memory)
        room = int(ROOM * free)
        what = "the model" if blocks is None else f"the slice of {len(blocks)} blocks"
        chosen = DTYPES.get(dtype)
        remarks = []
        if chosen is None and place.type == "cuda":
            chosen = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        elif chosen is None:
            chosen = _cpu_dtype(checkpoint.parameters, place)
            if place.type == "cpu" and checkpoint.divisible and chosen == torch.float32 and size[chosen] > room:
                remarks.append(
                    f"bfloat16, since {what} takes {human_bytes(size[chosen])} in float32 and "
                    f'{human_bytes(free)} of memory are free; `dtype="float32"` insists'
                )
                chosen = torch.bfloat16
        needed, there = human_bytes(size[chosen]), f"{human_bytes(free)} of memory are free"
        spills = checkpoint.divisible and size[chosen] > (room if whole else free)
        if not checkpoint.divisible and not checkpoint.quantised and UNPACKING * size[chosen] > free:
            remarks.append(
                f"unpacking {what} takes about {human_bytes(int(UNPACKING * size[chosen]))} and {there}: expect to run "
                "out of it"
            )
        if spills and whole:
            remarks.append(
                f"{what} takes {needed} and {there}: its blocks wait in host memory or on disk and are brought in one "
                "after the other, which takes longer"
            )
        elif spills:
            cure = "a shorter slice" if chosen != torch.float32 else '`dtype="bfloat16"` or a shorter slice'
            remarks.append(f"{what} takes {needed} and {there}: expect to run out of it; try {cure}")
        return cls(chosen, spills, room, tuple(remarks))

    def limits(self, place: torch.device) -> dict[int | str, int]:
        """What accelerate may use: the device, then host memory, then the disk."""
        if place.type == "cpu":
            return {"cpu": self.free}
        name = (place.index or 0) if place.type == "cuda" else place.type
        return {name: self.free, "cpu": int(ROOM * available(torch.device("cpu")))}


def _bytes(parameters: int, dtype: torch.dtype) -> int:
    return parameters * torch.empty((), dtype=dtype).element_size()


def device_of(name: str) -> torch.device:
    """The device of that name; `auto` and `map` are the GPU of this process (the first one, unless it is one of
    several), Apple's, or the CPU.

    Raises:
        UsageError: no such name.
        DctError: this machine or this torch has none.
    """
    if name in ("auto", "map"):
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"unknown `device` {name!r}: try auto, cpu, cuda, cuda:1, mps or map", argument="device"
        ) from error
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, True):
        raise DctError(f'this machine or this torch has no {device.type}: try `device="cpu"`')
    return device


def _cpu_dtype(parameters: int, device: torch.device) -> torch.dtype:
    """bfloat16 where the CPU multiplies it fast and the model is large enough to care; float32 elsewhere."""
    if device.type == "cpu" and compat.multiplies_bfloat16() and parameters >= SMALL:
        return torch.bfloat16
    return torch.float32
