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

PAYS_AFTER = 3600.0
"""Seconds that a fit must be expected to take for `auto` to compile: compilation took up to three minutes on a busy
machine and saved 7% of a pass, so that an hour's fit gains at least what it spends."""


def check_choice(choice: str) -> None:
    """Refuses what is neither auto, on nor off.

    Raises:
        UsageError: that.
    """
    if choice not in CHOICES:
        raise UsageError(f"unknown `compile` {choice!r}: choose {', '.join(CHOICES)}", argument="compile")


def pays(choice: str, expected_seconds: float) -> bool:
    """Whether to compile: `on` and `off` say so themselves, `auto` asks how long the work is expected to take."""
    check_choice(choice)
    return choice == "on" or (choice == "auto" and expected_seconds > PAYS_AFTER)


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
