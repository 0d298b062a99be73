"""Is a slice what the model does? Held against the model's own run, and its gradients against finite differences.

Cheap, done once for each model and pair of layers, so that an architecture that nobody tried is refused rather than
wrong. Every other check of a slice is made without a vector, where much that is wrong does not show.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.errors import DctError
from dct.model import LanguageModel
from dct.recording import own_run

DIRECTIONS = 4
"""Random directions that a gradient is compared along, beside its own."""

STEPS = (1e-2, 1e-3, 1e-4)
"""Steps of finite differences as shares of |theta|, tried until one agrees; those lost in rounding are left out."""

PLACES = (1.0, 0.5, 2.0, 0.2)
"""Where a gradient is looked at, as shares of the first place, until it agrees."""


def verify_streams(
    lm: LanguageModel,
    ids: list[int],
    source: int,
    target: int,
    theta: Float[Tensor, " width"],
    replayed: Callable[[], Float[Tensor, "tokens width"]],
    tolerance: float,
) -> None:
    """Holds a replay under a steering vector against the model's own run.

    Args:
        ids: the prompt of both.
        theta: the vector; as large as the residual stream.
        replayed: what the slice makes of prompt and vector at all tokens.
        tolerance: norm of the difference, over all tokens, that rounding may make.

    Raises:
        DctError: they differ, or the model is no chain of blocks.
    """
    what = ("streams", source, target)
    if what in lm.verified or lm.resident is not None:  # of a model loaded in part there is no run to hold it against
        return
    own = own_run(lm, ids, source, target, theta).to(theta.dtype)
    try:
        got = replayed()
    except RuntimeError as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise DctError(f"blocks {source} to {target - 1} of {lm.name} cannot be run again alone ({first})") from error
    off = float((got - own).norm())
    if not off <= tolerance:
        raise DctError(
            f"blocks {source} to {target - 1} of {lm.name}, run alone under a vector, are off the model's own run by "
            f"{off / float(own.norm()):.1e} of the stream: more than a stream passes between them, dct cannot slice it"
        )
    lm.verified.add(what)


def verify_gradient(
    lm: LanguageModel,
    f: Callable[[Tensor], Tensor],
    source: int,
    target: int,
    theta: Float[Tensor, " width"],
    size_of_stream: float,
    what: str = "gradient",
) -> None:
    """Holds the gradient of <u, f(theta)>, u unit f(theta), against central differences along its own and random
    directions.

    A mixture of experts jumps where a token changes its experts, and no difference across a jump is a derivative: the
    gradient may be taken at several places, and one where it agrees is enough. In half precision it is compared along
    its own direction alone and loosely: differences of rounded values say no more.

    Args:
        theta: where the gradient is taken first; then nearer to 0.
        size_of_stream: norm of what leaves the slice at a token; its rounding is what differences cannot see below.
        what: which gradient, of those between these layers: each is checked once.

    Raises:
        DctError: they differ everywhere, or there is no gradient.
    """
    key = (what, source, target)
    if key in lm.verified:
        return
    refused = f"gradients through blocks {source} to {target - 1} of {lm.name}"
    off = 0.0
    for nearer in PLACES:
        try:
            off = _off(f, nearer * theta, torch.finfo(lm.dtype).eps, size_of_stream)
        except RuntimeError as error:
            if "grad" not in str(error):
                raise
            first = str(error).strip().splitlines()[0]
            raise DctError(f"{refused} do not exist ({first}): dct cannot fit it, but can steer it") from error
        if off <= 1:
            lm.verified.add(key)
            return
    raise DctError(f"{refused} are not what finite differences give ({off:.1f} times what may be): dct cannot fit it")


def _off(f: Callable[[Tensor], Tensor], theta: Tensor, eps: float, size_of_stream: float) -> float:
    """How far the gradient at theta is off finite differences, as a multiple of what may be."""
    at = theta[None].clone().requires_grad_()
    value = f(at)
    u = normalize(value.detach(), dim=1)
    [gradient] = torch.autograd.grad(value, at, u)  # g = J(theta)^T u, u = f(theta) / |f(theta)|
    gradient, u = gradient[0].detach(), u[0]
    exact = eps < 1e-5
    size, length = float(gradient.norm()), float(theta.norm())
    drawn = torch.randn(DIRECTIONS if exact else 0, len(theta), generator=torch.Generator().manual_seed(1))
    along = normalize(torch.cat([gradient.cpu().float()[None], drawn]), dim=1).to(theta)
    wanted = (along @ gradient).cpu()  # <g, v> for every direction v
    # A direction drawn at random sees a share 1/sqrt(d) of what is missing from a gradient.
    slack = torch.full((len(along),), 0.1 * size / len(theta) ** 0.5)
    slack[0] = (0.05 if exact else 0.5) * size
    noise = 4 * torch.finfo(theta.dtype).eps * max(length, size_of_stream)
    least = torch.full((len(along),), torch.inf)
    for step in STEPS if exact else [30 * s for s in STEPS]:
        h = step * length
        if exact and noise / h > 3 * float(slack[-1]):
            continue  # rounding would hide what is looked for
        with torch.no_grad():
            there, back = (torch.cat([f((theta + sign * h * v)[None]) for v in along]) for sign in (1, -1))
        # <u, f(theta + h v) - f(theta - h v)> / 2h = <g, v> + O(h^2)
        slopes = ((there - back) @ u / (2 * h)).cpu()
        least = least.minimum((slopes - wanted).abs() / (slack + 0.05 * wanted.abs() + noise / h))
        if bool((least <= 1).all()):
            break
    return float(least.max())
