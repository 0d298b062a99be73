"""What finished vectors cause, beside random directions: every fit that starts from chance is measured against it."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.fits.shared.strengths import solved
from dct.job import Job, Learned

RANDOM_RESPONSES = 30
"""Random directions, at most, whose response is measured beside the factors' own."""


EXPLODED = 5.0
"""A factor whose response is longer than so many times the stream that it changes has exploded."""


def random_responses(factors: int) -> int:
    """How many random directions the responses of so many factors are compared with: no more than there are of them."""
    return min(factors, RANDOM_RESPONSES)


def measured(
    job: Job,
    kernel: str,
    caused: Callable[[Tensor], Tensor],
    V: Float[Tensor, "m d"],
    objective: Sequence[Sequence[float]],
) -> Learned:
    """Outputs and strengths of finished input directions: u_l = unit caused(v_l), b_l = |caused(v_l)|, K alpha = b.

    The factor of the greatest response |caused(v_l)| comes first: strong ones are those that a fit from other random
    starts finds again (docs/experiments.md), so that a factor's number says something.

    `info` is told the median and the greatest response, those of random unit directions, and how many vectors are above
    all of these; where the map knows its `target_norm`, also both responses as shares of it, and how many exploded.

    Args:
        kernel: as in `gram`.
        caused: (rows, d) -> (rows, d_out), what each direction causes, such as `job.response`.
        V: unit rows, shape (m, d).
        objective: three numbers for every step.
    """
    job.begin("strengths")
    outputs = caused(V)
    order = outputs.norm(dim=1).argsort(descending=True, stable=True)
    V, outputs = V[order], outputs[order]
    responses = outputs.norm(dim=1)
    random = job.space.random(random_responses(len(V)), job.seed + 3).to(job.d.device, job.d.dtype)
    null = caused(random).norm(dim=1)
    job.info |= {
        "response": [float(responses.median()), float(responses.max())],
        "random_response": [float(null.median()), float(null.max())],
        "above_random": int((responses > null.max()).sum()),
    }
    target = getattr(job.d.f, "target_norm", None)
    if target:
        job.info |= {
            "of_target": [float(responses.median()) / target, float(responses.max()) / target],
            "exploded": int((responses > EXPLODED * target).sum()),
        }
    rows = torch.tensor(objective, dtype=torch.float64).reshape(-1, 3)
    # <unit c, c> = |c|
    found = solved(kernel, job.space.stand_ins(V), normalize(outputs, dim=1), responses, rows)
    return found._replace(V=V)
