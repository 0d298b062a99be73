"""The six fits of a deep causal transcoder: pure functions of a map (batch, dim) -> (batch, dim_out) with f(0) = 0.

Notation follows A. Mack and A. Turner, "Deep causal transcoding" (2024): J and T2 are the first and second derivative
of f at 0, R_S(theta) = f(R theta), and m factors (v_l, u_l, alpha_l) model R_S by a shallow network

    sum_l alpha_l sigma(<v_l, theta>) u_l      sigma(x) = x (linear), x^2 (quadratic), exp(x) - 1 (exponential).

Rows of V and U are unit vectors. Nothing here knows about transformers.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dct.calibration import calibrate, random_directions
from dct.contents import SCALES
from dct.derivatives import Derivatives, Map
from dct.errors import DctError, NonFiniteError, UsageError
from dct.factors import Factors
from dct.melbo import STEPS, norm_maximising, pooled

METHODS = ("exponential", "quadratic", "linear", "linear-projected", "linear-randomized", "melbo")
ORTHOGONALIZE = ("qr", "soft", "none")
STARTS = ("projected", "random")
ITERATIVE = ("exponential", "quadratic")

ITERATIONS = 10
"""Of the iterative fits, unless told otherwise."""

POWER_ITERATIONS = 8
"""Power iterations of the randomized SVD at most."""

SETTLED = 2e-3
"""Relative growth of the captured share of |J|^2 below which the power iterations end."""

RANDOM_RESPONSES = 30
"""Random directions, at most, whose response is measured beside the factors' own."""

Matrix = Float[Tensor, "m d"]
Progress = Callable[[str, int, int], None]
"""Called with the stage, the rows that have gone through the map so far, and all the rows that the fit will take."""


@dataclass
class State:
    """Where an iterative fit stands: enough to go on from, whatever happened to the process."""

    V: Matrix
    U: Float[Tensor, "known d_out"]
    """One for each row of V; none before the first iteration, which finds them as it goes."""
    objective: list[list[float]] = field(default_factory=list)
    unprotected: bool = False
    """It was read from a file of format version 1, whose numbers nothing vouches for."""

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return len(self.objective)


def default_iterations(method: str) -> int:
    """Iterations of a fit when they are left out."""
    return STEPS if method == "melbo" else ITERATIONS


def default_orthogonalize(method: str) -> str:
    """How the rows of V are pushed apart when nothing is said of it."""
    return "qr" if method == "quadratic" else "soft"


def random_responses(factors: int) -> int:
    """How many random directions the responses of so many factors are compared with: no more than there are of them."""
    return min(factors, RANDOM_RESPONSES)


def check_options(
    method: str = "exponential",
    orthogonalize: str | None = None,
    start: str = "projected",
    beta: float = 1.0,
    tolerance: float = 0.0,
) -> None:
    """Refuses what no map can be fitted with, before a model is loaded for it.

    Raises:
        UsageError: an argument that cannot be.
    """
    for name, value, allowed in (
        ("--method", method, METHODS),
        ("--orthogonalize", orthogonalize or default_orthogonalize(method), ORTHOGONALIZE),
        ("--start", start, STARTS),
    ):
        if value not in allowed:
            raise UsageError(f"unknown {name} {value!r}: choose {', '.join(allowed)}")
    if not 0 < beta <= 1:
        raise UsageError(f"--beta must lie in (0, 1], got {beta}")
    if not math.isfinite(tolerance):
        raise UsageError(f"--tolerance must be a finite number, got {tolerance}")


def check_scale(scale: float, f: Map | None = None) -> None:
    """Refuses a scale that no map can be fitted at, and one at which `f` would see nothing but rounding.

    A map that knows its `residual_norm` (what the vector is added to) and `resolution` (the relative rounding of its
    numbers) loses all of a vector that is shorter than their product, and all of what it is added to beside a vector
    that is longer than their quotient.

    Raises:
        UsageError: it is not positive.
        DctError: it is beyond what the map can tell apart.
    """
    if not 0 < scale < math.inf:
        raise UsageError(f"--scale must be positive, got {scale}")
    low, high = SCALES
    norm, resolution = getattr(f, "residual_norm", None), getattr(f, "resolution", None)
    why = "numbers of 32 bits cannot hold its square"
    if norm is not None and resolution is not None and norm > 0:
        low, high = max(low, norm * resolution), min(high, norm / resolution)
        why = f"rounding leaves nothing of {'the vector' if scale < low else 'what it is added to'}, of norm {norm:.3g}"
    if not low <= scale <= high:
        raise DctError(
            f"--scale {scale:.3g} is too {'small' if scale < low else 'large'}: {why}; choose one from {low:.2g} to "
            f"{high:.2g}, or leave it out"
        )


def work(
    method: str = "exponential",
    *,
    factors: int,
    dim: int,
    dim_out: int | None = None,
    iterations: int = 10,
    d_proj: int = 32,
    start: str = "projected",
    resumed: bool = False,
) -> dict[str, int]:
    """Rows that a fit sends through its map, by the `Derivatives` method that they go through.

    Exact for all but `linear-randomized`, whose power iterations end when they have settled: three are assumed.

    Args:
        iterations: those that are left (of melbo, steps of each of the `factors` that are left).
        resumed: the fit goes on from a state, so that it needs no start.
    """
    m, least = factors, min(dim, dim if dim_out is None else dim_out)
    if method == "linear":
        return {"vjp" if least == dim_out or dim_out is None else "jvp": least}
    if method == "linear-projected":
        return {"vjp": d_proj, "jvp": min(m, d_proj, dim)}
    if method == "linear-randomized":
        width = min(m + max(10, m // 4), least)
        return {"vjp": least} if 4 * width >= least else {"vjp": 4 * width, "jvp": 4 * width}
    if method == "melbo":
        return {"value_and_gradient": m * iterations, "value": m + random_responses(m)}
    rows = {"vjp": 0 if resumed or start != "projected" else d_proj}
    ends = m + random_responses(m)
    if method == "quadratic":
        return rows | {"second": m * iterations + ends, "second_transposed": m * iterations}
    return rows | {"value": ends, "value_and_gradient": m * iterations}


def fit(
    f: Map,
    dim: int,
    *,
    method: str = "exponential",
    factors: int | None = None,
    scale: float | None = None,
    iterations: int | None = None,
    seed: int = 0,
    orthogonalize: str | None = None,
    beta: float = 1.0,
    d_proj: int = 32,
    start: str = "projected",
    tolerance: float = 0.0,
    p: float = 2.0,
    q: float = 2.0,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    resume: State | None = None,
    checkpoint: Callable[[State], None] | None = None,
    progress: Progress | None = None,
) -> Factors:
    """Fits a deep causal transcoder to a map.

    Args:
        f: (batch, dim) -> (batch, dim_out), f(0) = 0, differentiable; rows are independent.
        dim: input dimension d.
        method: `exponential` (orthogonalised gradient iteration), `quadratic` (symmetric orthogonalised ALS on T2),
            `linear` (SVD of J), `linear-projected` (SVD of W J), `linear-randomized` (randomized SVD of J), `melbo`
            (vectors that maximise the norm of the response, one after another; see `dct.melbo`).
        factors: m; left out, the smaller of 512 and d. A linear fit returns no more than J has directions.
        scale: R; left out, calibrated at lambda = 0.5, but not above the map's `residual_norm` where it has one.
        iterations: of the iterative fits (default 10), or gradient steps of each melbo vector (default 60).
        orthogonalize: `qr` (m <= d), `soft` (m may exceed d) or `none`, before each iteration; left out, `soft` for the
            exponential fit and `qr` for the quadratic one.
        beta: share of the new factor in each update; 1 replaces the old one.
        d_proj: random output directions of the projected start.
        start: `projected` (right singular vectors of W J, then random directions) or `random`.
        tolerance: stop early once V changes by less than this (1 - mean |<v_new, v_old>|).
        p, q: exponents of melbo's objective.
        batch, dtype, device: as in `Derivatives`.
        resume: state of an interrupted iterative fit, as handed to `checkpoint`.
        checkpoint: called after every iteration, or melbo vector.
        progress: called after every pass.

    Returns:
        The factors, on the CPU. `info` holds what the map says of itself in an `info` of its own, and how the factors
        were found; where m exceeds the directions that the start knew, it says how many were random. Exponential
        factors are refreshed at the end, u_l <- unit R_S(v_l), so that U is what V causes. melbo's vectors are given
        outputs and strengths in the same way; its `objective` has a row for each vector: h at its end, how many vectors
        were found before, and the relative change of the last step.

    Raises:
        UsageError: an argument that cannot be.
        CalibrationError, DctError, NonFiniteError: as in `calibrate` and `Derivatives`.
    """
    check_options(method, orthogonalize, start, beta, tolerance)
    m = min(512, dim) if factors is None else factors
    iterations = default_iterations(method) if iterations is None else iterations
    orthogonalize = default_orthogonalize(method) if orthogonalize is None else orthogonalize
    for name, number in (("--factors", m), ("--iterations", iterations), ("--d-proj", d_proj)):
        if number < 1:
            raise UsageError(f"{name} must be at least 1, got {number}")
    if m > dim and method in ITERATIVE and orthogonalize == "qr":
        raise UsageError(f"qr orthogonalises at most {dim} factors, asked for {m}: pass --orthogonalize soft")
    if m > dim and method == "melbo":
        raise UsageError(f"melbo's vectors are orthogonal, so at most {dim} of them: asked for {m}")
    if not (p > 0 and q > 0):
        raise UsageError(f"the exponents p and q must be positive, got {p} and {q}")
    if scale is None:
        limit = getattr(f, "residual_norm", None)
        scale = calibrate(f, dim, limit=limit, seed=seed, batch=batch, dtype=dtype, device=device).scale
    check_scale(scale, f)

    began = time.monotonic()
    d = Derivatives(f, dim, batch=batch, dtype=dtype, device=device)
    stages = _Stages(d, progress)
    left = iterations - (resume.iteration if resume and method in ITERATIVE else 0)
    sizes = {"factors": m, "dim": dim, "iterations": left, "d_proj": d_proj}
    stages.total = sum(work(method, **sizes, start=start, resumed=resume is not None).values())
    info: dict[str, Any] = {**getattr(f, "info", {}), "method": method, "factors": m, "seed": seed}
    if method == "linear":
        V, U, alpha, objective = _linear(d, m, info, stages)
    elif method == "linear-projected":
        V, U, alpha, objective = _linear_projected(d, m, d_proj, seed, info, stages)
    elif method == "linear-randomized":
        V, U, alpha, objective = _linear_randomized(d, m, seed, info, stages)
    elif method == "melbo":
        info |= {"iterations": iterations, "p": p, "q": q}
        V, U, alpha, objective = _melbo(d, scale, m, iterations, (p, q), seed, resume, info, stages, checkpoint)
    else:
        info |= {"iterations": iterations, "orthogonalize": orthogonalize, "beta": beta, "start": start}
        step = _Quadratic(d) if method == "quadratic" else _Exponential(d, scale)
        informative = min(m, d_proj, dim) if start == "projected" else 0
        if resume is not None:
            _check_state(resume, d, m)
        state = resume or _start(d, m, d_proj, start, seed, stages)
        info |= {"d_proj": d_proj, "random_start": m - informative}
        V, U, alpha, objective = _iterate(
            d, step, state, iterations, orthogonalize, beta, tolerance, seed, info, stages, checkpoint
        )
    info |= {"batch": d.batch, "fit_seconds": round(time.monotonic() - began, 3)}
    return Factors(V.cpu(), U.cpu(), alpha.cpu(), objective.to(V.dtype).cpu(), float(scale), info)


# --- linear -----------------------------------------------------------------------------------------------------------

Fit = tuple[Tensor, Tensor, Tensor, Tensor]


def _linear(d: Derivatives, m: int, info: dict[str, Any], stages: "_Stages") -> Fit:
    """SVD of the full Jacobian, by as many passes as the smaller side of J asks for."""
    stages.begin("Jacobian", rows=min(d.dim, d.dim_out))
    if d.dim_out <= d.dim:
        jacobian = d.vjp(torch.eye(d.dim_out, device=d.device, dtype=d.dtype))
    else:
        jacobian = d.jvp(torch.eye(d.dim, device=d.device, dtype=d.dtype)).T
    U, S, Vh = torch.linalg.svd(jacobian, full_matrices=False)
    return _linear_factors(Vh, U.T, S, m, info)


def _linear_projected(d: Derivatives, m: int, d_proj: int, seed: int, info: dict[str, Any], stages: "_Stages") -> Fit:
    """SVD of W J for d_proj random unit output directions; u_l = unit J v_l, alpha from the normal equations."""
    Vh, S = _projected_directions(d, d_proj, seed, stages)
    kept = _informative(S, d.dim, m)
    info |= {"d_proj": d_proj, "informative": kept}
    V = Vh[:kept]
    stages.begin("responses", rows=kept)
    pushed = d.jvp(V)
    U = normalize(pushed, dim=1)
    return _solved("linear", V, U, (U * pushed).sum(1))


def _linear_randomized(d: Derivatives, m: int, seed: int, info: dict[str, Any], stages: "_Stages") -> Fit:
    """Randomized SVD of J (Halko, Martinsson and Tropp 2011): a range finder with power iterations on JVPs and VJPs.

    The range of J' is found first, from random output directions. Each power iteration brings it closer; they end when
    the share of |J|^2 that the leading m directions hold has settled, however slowly the spectrum falls. Where that
    takes as many passes as the whole Jacobian, the whole Jacobian it is.
    """
    width = min(m + max(10, m // 4), d.dim, d.dim_out)
    if 4 * width >= min(d.dim, d.dim_out):
        info["exact"] = True
        return _linear(d, m, info, stages)
    stages.begin("range of the Jacobian", rows=4 * width)
    Q = _rows_basis(d.vjp(random_directions(width, d.dim_out, seed).to(d.device, d.dtype)))
    pushed = d.jvp(Q)  # rows J q_k, so J is close to pushed' Q
    held = float(torch.linalg.svdvals(pushed)[:m].square().sum())
    for iteration in range(1, POWER_ITERATIONS + 1):
        if stages.done + 2 * width > min(d.dim, d.dim_out):
            info["exact"] = True
            return _linear(d, m, info, stages)
        stages.begin(f"power iteration {iteration}", rows=2 * width)
        Q = _rows_basis(d.vjp(_rows_basis(pushed)))
        pushed = d.jvp(Q)
        before, held = held, float(torch.linalg.svdvals(pushed)[:m].square().sum())
        info["power_iterations"] = iteration
        if held - before <= SETTLED * held:
            break
    U, S, Wh = torch.linalg.svd(pushed.T, full_matrices=False)
    return _linear_factors(Wh @ Q, U.T, S, m, info)


def _linear_factors(V: Tensor, U: Tensor, S: Tensor, m: int, info: dict[str, Any]) -> Fit:
    """The first m singular triplets; directions that J does not see at all are no factors."""
    kept = _informative(S, V.shape[1], m)
    info["informative"] = kept
    # U and V are orthonormal, so K is the identity and alpha the singular values.
    return V[:kept], U[:kept], S[:kept], torch.zeros(0, 3)


def _informative(S: Tensor, dim: int, m: int) -> int:
    """How many of the first m singular values stand above rounding; one at least."""
    return max(1, min(m, int((S[0] * dim * torch.finfo(S.dtype).eps < S).sum())))


def _rows_basis(rows: Tensor) -> Tensor:
    """An orthonormal basis of the row space."""
    return torch.linalg.qr(rows.T).Q.T


def _projected_directions(d: Derivatives, d_proj: int, seed: int, stages: "_Stages") -> tuple[Tensor, Tensor]:
    """Right singular vectors (rows) and singular values of W J, W random unit output directions."""
    stages.begin("projected Jacobian")
    W = random_directions(d_proj, d.dim_out, seed).to(d.device, d.dtype)
    _, S, Vh = torch.linalg.svd(d.vjp(W), full_matrices=False)
    return Vh, S


# --- quadratic and exponential ----------------------------------------------------------------------------------------


class _Quadratic:
    """One step of symmetric orthogonalised ALS on T2 (Sharan and Valiant 2017, in the post's symmetric form)."""

    kernel = "quadratic"

    def __init__(self, d: Derivatives) -> None:
        self.d = d

    def caused(self, V: Tensor) -> Tensor:
        """T2(., v, v), unnormalised; b_l is its norm once u_l is its direction."""
        return self.d.second(V)

    def step(self, V: Tensor, U: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """u <- T2(., v, v), then v <- T2(u, v, .) with the new u. Returns new V, new U and b at the old V."""
        seconds = self.d.second(V)
        U = normalize(seconds, dim=1)
        return self.d.second_transposed(U, V), U, (U * seconds).sum(1)


class _Exponential:
    """One step of orthogonalised gradient iteration on R_S."""

    kernel = "exponential"

    def __init__(self, d: Derivatives, scale: float) -> None:
        self.d, self.scale = d, scale

    def caused(self, V: Tensor) -> Tensor:
        """R_S(v), unnormalised; b_l is its norm once u_l is its direction."""
        return self.d.value(self.scale * V)

    def step(self, V: Tensor, U: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """In one pass: u <- R_S(v), and v <- gradient of <u, R_S(v)> with the old u; at first, with that u itself."""
        value, gradient = self.d.value_and_gradient(self.scale * V, U)
        if not bool(value.norm(dim=1).isfinite().all()):
            raise NonFiniteError("the responses are too large for their norms: lower --scale")
        U = normalize(value, dim=1)
        return gradient, U, (U * value).sum(1)


def _check_state(state: State, d: Derivatives, m: int) -> None:
    """Refuses a state of another fit.

    Raises:
        UsageError: its factors have other shapes.
    """
    if tuple(state.V.shape) != (m, d.dim):
        raise UsageError(f"the state to resume from holds {tuple(state.V.shape)} factors, not {(m, d.dim)}")
    if tuple(state.U.shape) not in ((0, d.dim_out), (m, d.dim_out)):
        raise UsageError(f"the state to resume from holds {tuple(state.U.shape)} outputs, not {(m, d.dim_out)}")


def _start(d: Derivatives, m: int, d_proj: int, start: str, seed: int, stages: "_Stages") -> State:
    """Before the first iteration: informative directions, then random ones. What they cause, that iteration sees."""
    V = random_directions(m, d.dim, seed + 1).to(d.device, d.dtype)
    if start == "projected":
        informative = _projected_directions(d, d_proj, seed, stages)[0][:m]
        V[: len(informative)] = informative
    return State(V, V.new_zeros(0, d.dim_out))


def _iterate(
    d: Derivatives,
    step: _Quadratic | _Exponential,
    state: State,
    iterations: int,
    orthogonalize: str,
    beta: float,
    tolerance: float,
    seed: int,
    info: dict[str, Any],
    stages: "_Stages",
    checkpoint: Callable[[State], None] | None,
) -> Fit:
    V, U = state.V.to(d.device, d.dtype), state.U.to(d.device, d.dtype)
    objective = [list(row) for row in state.objective]
    while len(objective) < iterations:
        stages.begin(f"iteration {len(objective) + 1}/{iterations}")
        Q = orthogonalized(V, orthogonalize)
        pulled, caused, b = step.step(Q, U if len(U) else None)
        causal, penalty = _objective(step.kernel, Q, caused, b)
        new_V, U = _mixed(Q, pulled, beta), _mixed(U, caused, beta) if len(U) else caused
        change = max(0.0, 1 - float((new_V * V).sum(1).abs().mean()))
        V = new_V
        objective.append([causal, penalty, change])
        if checkpoint is not None:
            checkpoint(State(V.cpu(), U.cpu(), [list(row) for row in objective]))
        if change < tolerance:
            break
    return _measured(d, step, V, objective, seed, info, stages)


def _melbo(
    d: Derivatives,
    scale: float,
    m: int,
    steps: int,
    exponents: tuple[float, float],
    seed: int,
    resume: State | None,
    info: dict[str, Any],
    stages: "_Stages",
    checkpoint: Callable[[State], None] | None,
) -> Fit:
    """Norm-maximising vectors, one after the other; outputs and strengths as of an exponential fit."""
    step = _Exponential(d, scale)
    objective_map = pooled(d.f, *exponents)
    norms = Derivatives(objective_map, d.dim, batch=1, dtype=d.dtype, device=d.map_device, on_rows=stages.advance)
    V = torch.zeros(0, d.dim) if resume is None else resume.V
    if V.shape[1] != d.dim or len(V) > m:
        raise UsageError(f"the state to resume from holds {tuple(V.shape)} vectors, not {(m, d.dim)}")
    V = V.to(d.device, d.dtype)
    objective = [list(row) for row in resume.objective] if resume else []
    stages.done = len(V) * steps
    while len(V) < m:
        stages.begin(f"vector {len(V) + 1}/{m}")
        v, height, change = norm_maximising(norms, scale, V, steps, seed + 1 + len(V))
        objective.append([height, float(len(V)), change])
        V = torch.cat([V, v[None]])
        if checkpoint is not None:
            checkpoint(State(V.cpu(), torch.zeros(len(V), d.dim_out), [list(row) for row in objective]))
    return _measured(d, step, V, objective, seed, info, stages)


def _measured(
    d: Derivatives,
    step: _Quadratic | _Exponential,
    V: Tensor,
    objective: list[list[float]],
    seed: int,
    info: dict[str, Any],
    stages: "_Stages",
) -> Fit:
    """What the finished input directions cause, and how strongly, beside random directions."""
    stages.begin("strengths")
    caused = step.caused(V)
    responses = caused.norm(dim=1)
    random = random_directions(random_responses(len(V)), d.dim, seed + 3).to(d.device, d.dtype)
    null = step.caused(random).norm(dim=1)
    info |= {
        "response": [float(responses.median()), float(responses.max())],
        "random_response": [float(null.median()), float(null.max())],
        "above_random": int((responses > null.max()).sum()),
    }
    V, U, alpha, _ = _solved(step.kernel, V, normalize(caused, dim=1), responses)
    return V, U, alpha, torch.tensor(objective, dtype=torch.float64).reshape(-1, 3)


def _mixed(old: Tensor, new: Tensor, beta: float) -> Tensor:
    """The unit vector along the update; a row whose update vanishes keeps its old direction."""
    update = normalize(new, dim=1)
    update = torch.where(update.norm(dim=1, keepdim=True) > 0.5, update, old)
    return update if beta == 1 else normalize(beta * update + (1 - beta) * old, dim=1)


# --- pieces of the mathematics ----------------------------------------------------------------------------------------


def orthogonalized(V: Matrix, how: str = "qr", *, eta: float = 0.5, tau: float = 0.05, times: int = 3) -> Matrix:
    """Pushes the rows of V apart.

    Args:
        V: unit rows, shape (m, d).
        how: `qr`: Gram-Schmidt in row order (m <= d), each row keeping its sense; `soft`: `times` steps of
            V <- rows normalised of V - eta * softmax(V V' / tau, diagonal excluded) V; `none`: V itself.
    """
    if how == "qr":
        Q, R = torch.linalg.qr(V.T)
        # LAPACK leaves the signs of R's diagonal open; an exponential factor and its negative are different factors.
        return (Q * torch.where(R.diagonal() < 0, -1.0, 1.0)).T
    if how == "soft":
        for _ in range(times):
            affinity = V @ V.T / tau
            affinity.fill_diagonal_(-torch.inf)
            V = normalize(V - eta * torch.softmax(affinity, dim=1) @ V, dim=1) if len(V) > 1 else V
        return V
    return V


def gram(kernel: str, V: Matrix, U: Float[Tensor, "m d_out"]) -> Float[Tensor, "m m"]:
    """K[l, k]: the inner product of factors l and k as tensors, summed over all orders of derivative.

    linear: (UU') * (VV'); quadratic: (UU') * (VV')^2; exponential: (UU') * (exp(VV') - 1); products elementwise.
    In float64.
    """
    V, U = V.double(), U.double()
    similarity = V @ V.T
    if kernel == "quadratic":
        similarity = similarity.square()
    elif kernel == "exponential":
        similarity = similarity.expm1()
    return (U @ U.T) * similarity


def strengths(kernel: str, V: Matrix, U: Float[Tensor, "m d_out"], b: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """alpha of least tensor loss: K alpha = b, in float64; of least norm where factors coincide."""
    values, vectors = torch.linalg.eigh(gram(kernel, V, U))
    # K is positive semidefinite (Schur product); directions below rounding carry no information.
    kept = values > values[-1] * len(values) * torch.finfo(torch.float32).eps
    inverse = torch.where(kept, 1 / values.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return vectors @ (inverse * (vectors.T @ b.double()))


def _solved(kernel: str, V: Tensor, U: Tensor, b: Tensor) -> Fit:
    """Factors with their strengths, the sign of a strength moved into u."""
    alpha = strengths(kernel, V, U, b)
    sign = torch.where(alpha < 0, -1.0, 1.0)
    return V, U * sign[:, None].to(U.dtype), (alpha * sign).to(V.dtype), torch.zeros(0, 3)


def _objective(kernel: str, V: Tensor, U: Tensor, b: Tensor) -> tuple[float, float]:
    """Causal importance sum_l alpha_l b_l and similarity penalty 1/2 sum_{l != k} alpha_l alpha_k K[l, k].

    The post's maximisation problem (10), and (8) for the quadratic fit, with the alpha of least loss.
    """
    K = gram(kernel, V, U)
    alpha = strengths(kernel, V, U, b)
    own = (alpha.square() * K.diagonal()).sum()
    return float(alpha @ b.double()), float((alpha @ K @ alpha - own) / 2)


class _Stages:
    """Tells `progress` what is being done and how far the whole fit is."""

    def __init__(self, d: Derivatives, progress: Progress | None) -> None:
        self.progress = progress
        self.stage, self.done, self.total = "", 0, 0
        d.on_rows = self.advance

    def begin(self, stage: str, rows: int | None = None) -> None:
        self.stage = stage
        if rows is not None:
            self.total = self.done + rows
        self.advance(0)

    def advance(self, rows: int) -> None:
        self.done += rows
        if self.progress is not None:
            self.progress(self.stage, self.done, self.total)
