"""That a model is a chain of blocks: each run once, in order, on the stream that left the one before.

Whatever does not fit this picture (blocks run twice or in another order, a stream of another shape, a stream that the
model changes between blocks) is refused here, while the model runs. Starts no run itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dct.errors import DctError
from dct.model import LanguageModel


class TargetReached(Exception):  # noqa: N818 (a way out, not an error)
    """Thrown out of the model once the target layer has been reached: what lies above is not needed."""


class Chain:
    """Sees to it that the model is a chain of blocks: each once, in order, on the stream that left the one before."""

    def __init__(self, lm: LanguageModel, ids: Sequence[int]) -> None:
        self.lm, self.tokens = lm, len(ids)
        self.next = 0
        self.stream: Tensor | None = None

    def enters(self, index: int, stream: Tensor) -> None:
        """Block `index` is about to run on `stream`.

        Raises:
            DctError: the model is no chain of blocks.
        """
        if index != self.next:
            raise DctError(
                f"{self.lm.name} runs its blocks more than once or in another order than {self.lm.layers_path} lists "
                "them: dct cannot slice it"
            )
        if stream.shape != (1, self.tokens, self.lm.width):
            raise DctError(
                f"block {index} of {self.lm.name} is handed a stream of shape {tuple(stream.shape)}, not "
                f"(1, {self.tokens}, {self.lm.width}) for {self.tokens} tokens: dct cannot slice it"
            )
        before = self.stream
        if before is not None and before is not stream and not torch.equal(before.to(stream.device), stream):
            raise DctError(
                f"{self.lm.name} changes the stream between blocks {index - 1} and {index}: dct cannot slice it"
            )

    def leaves(self, index: int, stream: Tensor) -> None:
        """Block `index` has put out `stream`."""
        self.next, self.stream = index + 1, stream


def not_run(lm: LanguageModel) -> str:
    """That a run went past the block list, as a message for the user."""
    return f"{lm.name} did not run through its block list {lm.layers_path}: name another with `layers`"


def non_finite(lm: LanguageModel, index: int, when: str) -> str:
    """That a block breaks down, as a message for the user."""
    dtype = str(lm.dtype).removeprefix("torch.")
    cure = '`dtype="bfloat16"` or float32' if lm.dtype == torch.float16 else '`dtype="float32"` or a smaller `scale`'
    return f"block {index} of {lm.name} puts out NaN or infinity {when} (dtype {dtype}): try {cure}"


@contextmanager
def standing_aside(blocks: Any, stand_in: Callable[[int, nn.Module], Any]) -> Iterator[None]:
    """Has something else run in place of blocks, while the context lasts."""
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            stack.callback(_put_back, block, block.__dict__.get("forward"))
            block.forward = stand_in(index, block)
        yield


def _put_back(block: nn.Module, forward: Any) -> None:
    """Restores a block's own `forward`: the class's, or the one that accelerate had set on the instance."""
    del block.forward
    if forward is not None:
        block.forward = forward
