"""What a command is expected to take, said before it begins, and kept in its JSON."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dct.cli.terminal import Terminal, human_seconds
from dct.memory import human_bytes

if TYPE_CHECKING:
    from dct.estimate import Cost


def announce(terminal: Terminal, cost: "Cost", what: str, *, cure: str = "fewer or shorter prompts (--n)") -> None:
    """Says what is to come.

    Args:
        what: the work, such as "129 vectors on 32 prompts".
        cure: what to do where memory will not do.
    """
    terminal.note(f"expected: {human_seconds(cost.seconds)} for {what}; peak memory {human_bytes(cost.peak_memory)}")
    if cost.more_memory > cost.free_memory:
        terminal.warn(
            f"this will ask for {human_bytes(cost.more_memory)} more memory and {human_bytes(cost.free_memory)} are "
            f"free: try {cure} or --dtype bfloat16"
        )


def as_estimate(cost: "Cost | None") -> dict[str, Any] | None:
    """The cost as a result's `estimate`."""
    return None if cost is None else asdict(cost)
