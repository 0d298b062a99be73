"""When compiling the blocks of a slice pays, and how it is done. Knows nothing of what the slice is used for.

Compilation fuses what stands between the matrix products; it cannot make those faster. On the machines measured
(docs/performance.md) it saves a small share of a fit and costs minutes at worst, so that only long fits gain.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dct import compat
from dct.errors import UsageError

CHOICES = ("auto", "on", "off")

PAYS_AFTER = {"cpu": 3600.0, "cuda": 180.0}
"""Seconds that a fit must be expected to take for `auto` to compile, by kind of device. On a CPU compilation took up to
three minutes and saved 7% of a pass; on an H200 it took 21 seconds and saved 16 to 19%. So a fit of that length gains
at least what it spends."""


def check_choice(choice: str) -> None:
    """Refuses what is neither auto, on nor off.

    Raises:
        UsageError: that.
    """
    if choice not in CHOICES:
        raise UsageError(f"unknown `compile` {choice!r}: choose {', '.join(CHOICES)}", argument="compile")


def pays(choice: str, expected_seconds: float, device: torch.device) -> bool:
    """Whether to compile: `on` and `off` say so themselves, `auto` asks how long the work is expected to take."""
    check_choice(choice)
    enough = PAYS_AFTER.get(device.type, PAYS_AFTER["cpu"])
    return choice == "on" or (choice == "auto" and expected_seconds > enough)


class Compiled:
    """A function of (block, call, stream), compiled for every number of rows above one.

    One graph serves all blocks of the same kind. Forward-mode derivatives and torch.func transforms cannot go through
    compiled code, and a single row would be compiled anew: both take the function as it is. Reverse mode twice cannot
    go through it either, and cannot be seen from here.
    """

    def __init__(self, function: Callable[[nn.Module, Any, Tensor], Tensor]) -> None:
        self.plain = function
        self.fused = torch.compile(function, dynamic=True)

    def __call__(self, block: nn.Module, call: Any, stream: Tensor) -> Tensor:
        transformed = compat.transformed() or compat.differentiating_forward()
        run = self.plain if transformed or len(stream) == 1 else self.fused
        return run(block, call, stream)
