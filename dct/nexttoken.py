"""What a model takes to come next behind some prompts, under steering vectors.

The rest of the model is run from the steered layer on, its head at one place of each prompt.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dct.bandslice import sliced
from dct.batching import in_batches
from dct.blocks import readout
from dct.errors import NonFiniteError
from dct.model import LanguageModel
from dct.perturbation import Site
from dct.slice import Slice

T = TypeVar("T")


def logits_of(
    lm: LanguageModel, streams: Float[Tensor, "batch prompts width"], compared: Sequence[int] = ()
) -> Float[Tensor, "batch prompts vocabulary"]:
    """Logits of streams that have left the last block.

    Raises:
        NonFiniteError: one that is compared is NaN or infinite, or all of a row are.
    """
    logits = readout(lm, streams.flatten(0, 1)).unflatten(0, streams.shape[:2])
    # A head may rule tokens out (-inf), though not those that are compared. The largest logit of a row tells of
    # NaN, of +inf, and of a row in which nothing is possible.
    places = torch.tensor(list(compared), dtype=torch.long, device=logits.device)
    telling = torch.cat([logits[..., places], logits.amax(-1, keepdim=True)], -1)
    if not bool(torch.isfinite(telling).all()):
        raise NonFiniteError(
            f'the final norm or head of {lm.name} puts out NaN or infinity: try `dtype="float32"` or a lower `scale`'
        )
    return logits


class NextTokens:
    """log p of the token that follows each of some rows.

    Args:
        lm: the model.
        source: the steered layer, or the changes of a band.
        rows: token ids of each prompt.

    Attributes:
        slice: what is run.
        base: unsteered.
    """

    def __init__(self, lm: LanguageModel, source: Site, rows: Sequence[Sequence[int]]) -> None:
        self.lm = lm
        self.slice: Slice = sliced(lm, rows, source, lm.depth, positions=1)
        nothing = torch.zeros(1, self.slice.dim, device=lm.device)
        self.base: Float[Tensor, "prompts vocabulary"] = self.logs(nothing)[0]

    @torch.no_grad()
    def logs(self, theta: Float[Tensor, "batch width"]) -> Float[Tensor, "batch prompts vocabulary"]:
        """Under each vector, as it stands (pass R v)."""
        return torch.log_softmax(logits_of(self.lm, self.slice.streams(theta)), dim=-1)

    def under(self, vectors: Float[Tensor, "vectors width"], use: Callable[[Tensor], T]) -> list[T]:
        """Whatever is made of the logs of some vectors at a time, in order: all of them together would be too many."""
        vectors = vectors.to(self.lm.device, torch.float32)
        parts, _ = in_batches(
            lambda start, stop: use(self.logs(vectors[start:stop])),
            len(vectors),
            max(1, self.slice.value_batch),
            self.lm.device,
            "fewer prompts",
        )
        return parts
