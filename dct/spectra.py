"""Interaction spectra: which input directions act together on one output direction, and how few of them suffice.

    Q = u' T2     Q_jk = sum_i u_i d^2 f_i / d theta_j d theta_k at 0     Q = sum_i lambda_i q_i q_i'

    <u, f(theta)> = <u, J theta> + 1/2 sum_i lambda_i <q_i, theta>^2 + ...

Section 3.2 of M. Pearce, T. Dooms et al., "Bilinear MLPs enable weight-based mechanistic interpretability" (2024), for
any map that can be differentiated twice: Q is only ever multiplied with vectors, Q v = T2(u, v, .). Knows nothing of
language models.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.derivatives import Derivatives
from dct.errors import DctError

EXACT = 256
"""The largest width of which the whole of Q is computed, unless told otherwise: Lanczos takes about half as many
products, and tells less."""

CORRELATION = 0.75
"""At which the rank of a spectrum is read off."""

PROBES = 32
"""Random vectors by which what Lanczos leaves out of |Q| is estimated."""

TOLERANCE = 1e-5
"""Relative accuracy of the eigenvalues that Lanczos is asked for; float32 products bear no more."""

ROUNDS = 20
"""Times the number of eigenvectors: restarts that Lanczos may take."""

NOTHING = 1e-9
"""|Q v| of a unit vector against |u'J|, below which nothing interacts: that is rounding."""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and eigenvectors of Q, the largest |lambda| first.

    Attributes:
        values: signed; all of them where Q was computed, else as many as there are vectors.
        vectors: unit eigenvectors of the first, one a row.
        residuals: |Q q_i - lambda_i q_i| / |lambda_1| of each vector, with products of their own.
        linear: <u, J q_i> of each; the senses of q_i are chosen so that it is not negative.
        slope: |u'J|, the length of the linear part.
        total: |Q|_F; estimated where only the first were found.
        error: relative standard error of its square.
        products: Hessian-vector products that were taken.
        matrix: all of Q; None where it was never computed.
    """

    values: Float[np.ndarray, " known"]
    vectors: Float[Tensor, "count dim"]
    residuals: Float[np.ndarray, " count"]
    linear: Float[np.ndarray, " count"]
    slope: float
    total: float
    error: float
    products: int
    matrix: Float[np.ndarray, "dim dim"] | None = field(default=None, repr=False)

    @property
    def exact(self) -> bool:
        """All of Q was computed, rather than found by Lanczos."""
        return self.matrix is not None

    @property
    def dim(self) -> int:
        """Width of the inputs."""
        return self.vectors.shape[1]

    @property
    def captured(self) -> Float[np.ndarray, " known"]:
        """Correlation, over normal inputs theta, of the form of the first r eigenvectors with the whole form:

            corr(sum_{i<=r} lambda_i <q_i, theta>^2, theta' Q theta) = sqrt(sum_{i<=r} lambda_i^2 / |Q|_F^2)

        since the squares of independent normal variables all have the same variance.
        """
        known = np.cumsum(np.square(self.values))
        return np.sqrt(np.minimum(known / max(self.total, 1e-300) ** 2, 1.0))

    def rank(self, correlation: float = CORRELATION) -> int | None:
        """How many eigenvectors give such a correlation; None where more than are known are needed."""
        return first_above(self.captured.tolist(), correlation)


def first_above(values: list[float], bound: float) -> int | None:
    """The place, counted from 1, of the first value that reaches a bound; None where none does."""
    return next((k for k, value in enumerate(values, start=1) if value >= bound - 1e-12), None)


class Form:
    """Q = u'T2 of a map, as what multiplies vectors.

    Args:
        d: the map's derivatives.
        u: output direction; made a unit vector.

    Attributes:
        products: Hessian-vector products that have been taken.
        slope: u'J, one product in reverse.

    Raises:
        DctError: u is zero.
    """

    def __init__(self, d: Derivatives, u: Float[Tensor, " dim_out"]) -> None:
        if float(u.norm()) == 0:
            raise DctError("the output direction is zero: nothing is caused there; choose another vector")
        self.d, self.u = d, normalize(u.to(d.device, d.dtype), dim=0)
        self.products = 0
        self.slope: Float[Tensor, " dim"] = d.vjp(self.u[None])[0]

    def times(self, v: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        """Q v for every row."""
        self.products += len(v)
        return self.d.second_transposed(self.u.expand(len(v), -1), v.to(self.d.device, self.d.dtype))

    def dense(self) -> Float[Tensor, "dim dim"]:
        """All of Q, row by row."""
        return self.times(torch.eye(self.d.dim, dtype=self.d.dtype, device=self.d.device))


def spectrum(
    d: Derivatives, u: Float[Tensor, " dim_out"], count: int = 16, *, exact: bool | None = None, seed: int = 0
) -> Spectrum:
    """The eigenvalues and eigenvectors of Q = u'T2.

    Args:
        d: the map's derivatives.
        u: output direction.
        count: eigenvectors.
        exact: take as many products as there are dimensions and compute everything, or find the first by Lanczos; left
            out, everything up to a width of `EXACT`.
        seed: of the vector that Lanczos begins with, and of the probes.

    Raises:
        DctError: u is zero, or nothing interacts: the map is linear along u.
    """
    form, count = Form(d, u), min(count, d.dim)
    whole = exact if exact is not None else d.dim <= EXACT
    # ARPACK finds fewer eigenvectors than there are dimensions
    whole = whole or count >= d.dim - 1
    return _whole(form, count) if whole else _leading(form, count, seed)


def _whole(form: Form, count: int) -> Spectrum:
    """From all of Q, in float64."""
    raw = form.dense().cpu().double().numpy()
    _check_interacting(form, float(np.abs(raw).max()))
    values, vectors = np.linalg.eigh((raw + raw.T) / 2)
    order = np.argsort(-np.abs(values), kind="stable")
    values, vectors = values[order], vectors[:, order[:count]].T
    # what the symmetric part leaves out shows in the residuals
    rest = vectors @ raw - values[:count, None] * vectors
    total = float(np.sqrt(np.square(values).sum()))
    return _told(form, values, vectors, rest, (total, 0.0), (raw + raw.T) / 2)


def _leading(form: Form, count: int, seed: int) -> Spectrum:
    """By Lanczos (ARPACK): products one at a time, then one batch for the residuals and one for what is left of |Q|."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    d = form.d
    random = torch.randn(PROBES + 1, d.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    begin, probes = random[0], random[1:]
    _check_interacting(form, float(form.times(begin[None]).norm() / begin.norm()))

    def times(v: np.ndarray) -> np.ndarray:
        """Q v, in float64."""
        row = torch.from_numpy(np.ascontiguousarray(v.reshape(1, -1), dtype=np.float64))
        return form.times(row)[0].cpu().double().numpy()

    operator = LinearOperator((d.dim, d.dim), matvec=times, dtype=np.float64)
    room = min(d.dim, max(2 * count + 1, 20))
    try:
        values, vectors = eigsh(
            operator, count, which="LM", v0=begin.numpy(), ncv=room, tol=TOLERANCE, maxiter=ROUNDS * count
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
        if not len(values):
            raise DctError(f"Lanczos found no eigenvector in {form.products} products: use `exact=True`") from error
    order = np.argsort(-np.abs(values), kind="stable")
    found = torch.from_numpy(np.ascontiguousarray(vectors[:, order].T))
    images = form.times(found).cpu().double()
    values = (found * images).sum(1).numpy()
    rest = images.numpy() - values[:, None] * found.numpy()
    # |Q|^2 = sum_i lambda_i^2 + |P Q P|^2, P the projection onto what is left; E |P Q P z|^2 = |P Q P|^2 for normal z
    left = probes - probes @ found.T @ found
    moved = form.times(left).cpu().double()
    squares = (moved - moved @ found.T @ found).square().sum(1).numpy()
    square = float(np.square(values).sum() + squares.mean())
    spread = float(squares.std(ddof=1) / math.sqrt(PROBES) / square)
    return _told(form, values, found.numpy(), rest, (math.sqrt(square), spread))


def _check_interacting(form: Form, size: float) -> None:
    """Refuses a map of which Q is nothing but rounding."""
    if size <= NOTHING * max(float(form.slope.norm()), 1e-30):
        raise DctError(
            "nothing interacts: the map is linear along this output direction (its second derivatives are zero)"
        )


def _told(
    form: Form,
    values: np.ndarray,
    vectors: np.ndarray,
    rest: np.ndarray,
    total: tuple[float, float],
    matrix: np.ndarray | None = None,
) -> Spectrum:
    """A spectrum, its vectors turned so that none has a negative linear part."""
    slope = form.slope.cpu().double()
    turned = torch.from_numpy(np.ascontiguousarray(vectors))
    linear = turned @ slope
    sense = torch.where(linear < 0, -1.0, 1.0).double()
    return Spectrum(
        values=values,
        vectors=(turned * sense[:, None]).to(form.d.dtype),
        residuals=np.linalg.norm(rest, axis=1) / max(float(np.abs(values).max()), 1e-300),
        linear=(linear * sense).numpy(),
        slope=float(slope.norm()),
        total=total[0],
        error=total[1],
        products=form.products,
        matrix=matrix,
    )


# --- what chance gives ------------------------------------------------------------------------------------------------


def chance_edge(total: float, dim: int) -> float:
    """The largest |eigenvalue| of a random symmetric matrix of the same norm: 2 |Q|_F / sqrt(d) (semicircle law)."""
    return 2 * total / math.sqrt(dim)


def chance_rank(dim: int, correlation: float = CORRELATION) -> int:
    """How many of its d eigenvectors a random symmetric matrix needs for such a correlation.

    On the semicircle of radius 2, the share (2/pi) (a + sin(2a)/2) of the eigenvalues has |lambda| < 2 sin a, and the
    share (2/pi) a - sin(4a)/(2 pi) of the sum of squares.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        a = (low + high) / 2
        below = 2 * a / math.pi - math.sin(4 * a) / (2 * math.pi)
        low, high = (a, high) if below < 1 - correlation**2 else (low, a)
    return max(1, math.ceil(dim * (1 - 2 / math.pi * (low + math.sin(2 * low) / 2)) - 1e-9))


# --- beside the true response -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How well forms of growing rank tell the u-activation of some inputs, as Pearson correlations over them.

    Attributes:
        inputs: how many.
        form: with the whole form theta'Q theta, by rank from 1 on.
        even: with the part of the true response that does not change with the sign of theta,
            (<u, f(theta)> + <u, f(-theta)>) / 2, which is what forms can tell.
        whole: of the whole form with that part.
        linear: of <u, J theta> with the true response <u, f(theta)>.
        second: of <u, J theta> + 1/2 theta'Q theta with it.
        share: of the true response's variance, that of its even part.
    """

    inputs: int
    form: list[float]
    even: list[float]
    whole: float
    linear: float
    second: float
    share: float


def agreement(
    d: Derivatives, u: Float[Tensor, " dim_out"], found: Spectrum, theta: Float[Tensor, "n dim"]
) -> Agreement:
    """The truncated forms of a spectrum beside the whole one and beside the map itself.

    Args:
        theta: inputs as they stand, two at least: their length is that of the vectors that are meant.
    """
    form = Form(d, u)
    theta = theta.to(d.device, d.dtype)
    if found.matrix is None:
        moved = form.times(theta).cpu().double()
    else:
        moved = theta.cpu().double() @ torch.from_numpy(found.matrix)
    whole = 0.5 * (theta.cpu().double() * moved).sum(1)
    linear = (theta @ form.slope).cpu().double()
    there, back = (d.value(sense * theta).to(form.u) @ form.u for sense in (1, -1))
    response, even = there.cpu().double(), ((there + back) / 2).cpu().double()
    along = theta.cpu().double() @ found.vectors.cpu().double().T
    ranks = 0.5 * torch.from_numpy(found.values[: len(found.vectors)]) * along.square()
    truncated = ranks.cumsum(1)
    return Agreement(
        inputs=len(theta),
        form=[correlated(one, whole) for one in truncated.T],
        even=[correlated(one, even) for one in truncated.T],
        whole=correlated(whole, even),
        linear=correlated(linear, response),
        second=correlated(linear + whole, response),
        share=float(even.var() / response.var().clamp_min(1e-300)),
    )


def correlated(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Pearson correlation; 0 where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else 0.0


def normal_inputs(count: int, dim: int, scale: float, seed: int) -> Float[Tensor, "count dim"]:
    """Normal vectors whose root mean square length is `scale`; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return scale / math.sqrt(dim) * torch.randn(count, dim, generator=generator)
