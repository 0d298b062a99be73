"""The six fits and their strengths, against planted maps and dense float64 algebra."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import dct
from dct.calibration import random_directions
from dct.fits.shared.iteration import damped
from dct.fits.shared.orthogonalisation import orthogonalized
from dct.fits.shared.strengths import gram, strengths
from dct.job import State
from dct.method import built_in

F64 = torch.float64


def unit(rows: int, columns: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, columns, generator=g, dtype=F64), dim=1)


def orthogonal(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(unit(rows, columns, seed).T).Q.T


class PlantedQuadratic:
    """f(x) = A x + sum_l c_l <v_l, x>^2 u_l with orthogonal factors and |A| = |T2|."""

    def __init__(self, width: int, factors: int, seed: int = 0) -> None:
        self.V, self.U = orthogonal(factors, width, seed), orthogonal(factors, width, seed + 1)
        self.c = torch.linspace(1, 2, factors, dtype=F64)
        A = torch.randn(width, width, generator=torch.Generator().manual_seed(seed + 2), dtype=F64)
        # T2 = 2 sum_l c_l u v v, whose norm for orthonormal factors is 2 |c|.
        self.A = A * 2 * self.c.norm() / A.norm()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        A, V, U, c = (t.to(x.dtype) for t in (self.A, self.V, self.U, self.c))
        return x @ A.T + ((x @ V.T).square() * c) @ U


class PlantedExponential:
    """The post's synthetic test: f(x) = sum_l (exp <v_l, x> - 1) u_l, rows uniform on the sphere."""

    def __init__(self, width: int, factors: int, seed: int = 0) -> None:
        self.V, self.U = unit(factors, width, seed).float(), unit(factors, width, seed + 1).float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.expm1(x @ self.V.T.to(x.dtype)) @ self.U.to(x.dtype)

    def recovery(self, V: torch.Tensor) -> tuple[float, float]:
        """Mean of the largest cosine with a learned vector, and the share of true ones above 0.99; signs count."""
        best = (self.V @ V.T).max(dim=1).values
        return float(best.mean()), float((best > 0.99).float().mean())


# --- recovery ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [16, 32])
@pytest.mark.parametrize("seed", [0, 1])
def test_quadratic_recovers_all_planted_factors(m, seed):
    planted = PlantedQuadratic(64, 16, seed)
    found = dct.fit(planted, 64, method="quadratic", factors=m, scale=1.0, seed=seed)
    cosines = (planted.V.float() @ found.V.T).abs()
    assert float(cosines.max(dim=1).values.min()) > 0.999
    # ... with the outputs and the strengths that belong to them (T2 is twice the coefficient).
    best = cosines.argmax(dim=1)
    assert float((planted.U.float() * found.U[best]).sum(1).min()) > 0.999
    if m == 16:  # spare factors, which fit rounding errors, take a little of the strengths
        torch.testing.assert_close(found.alpha[best], 2 * planted.c.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("orthogonalize", "iterations"), [("qr", 30), ("soft", 10)])
def test_exponential_recovers_the_post_s_network(orthogonalize, iterations):
    """Width 4096, 32 true factors, 512 learned, scale 4, from the default start."""
    planted = PlantedExponential(4096, 32)
    found = dct.fit(planted, 4096, factors=512, scale=4.0, iterations=iterations, orthogonalize=orthogonalize)
    mean, recovered = planted.recovery(found.V)
    assert mean > 0.99
    assert recovered >= 0.95


def test_each_iterative_fit_orthogonalises_in_its_own_way_unless_told_otherwise():
    def how(**options):
        return dct.fit(PlantedExponential(8, 3), 8, factors=3, scale=1.0, iterations=1, **options).info["orthogonalize"]

    assert how() == "soft"
    assert how(method="quadratic") == "qr"
    assert how(orthogonalize="none") == how(method="quadratic", orthogonalize="none") == "none"


def test_soft_orthogonalisation_recovers_more_factors_than_dimensions():
    planted = PlantedExponential(256, 512)
    found = dct.fit(planted, 256, factors=1024, scale=10.0, iterations=20, orthogonalize="soft", start="random")
    assert planted.recovery(found.V)[1] >= 0.95


# --- linear -----------------------------------------------------------------------------------------------------------


def falling(shape: tuple[int, int], power: float, seed: int = 5) -> torch.Tensor:
    """A matrix whose spectrum falls like k^-power."""
    n = min(shape)
    spectrum = torch.arange(1, n + 1, dtype=F64) ** -power
    return orthogonal(n, shape[0], seed).T @ torch.diag(spectrum) @ orthogonal(n, shape[1], seed + 1)


@pytest.fixture(scope="module")
def jacobian() -> torch.Tensor:
    return falling((48, 64), 0.5)


def captured(J: torch.Tensor, V: torch.Tensor) -> float:
    """Share of |J|^2 in the span of the rows of V, over what the best subspace of that dimension holds."""
    Q = torch.linalg.qr(V.double().T).Q
    best = torch.linalg.svdvals(J)[: len(V)].square().sum()
    return float((J @ Q).square().sum() / best)


@pytest.mark.parametrize(("method", "share"), [("linear", 0.9999), ("linear-randomized", 0.99)])
@pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
@pytest.mark.parametrize(("shape", "m"), [((300, 400), 8), ((400, 300), 40), ((48, 64), 16)])
def test_linear_captures_what_the_exact_svd_does(shape, m, power, method, share):
    """Of a nonlinear map; a spectrum that falls slowly is the hard case for a randomized SVD."""
    J = falling(shape, power)
    f = lambda x: x @ J.T.to(x.dtype) + x.square() @ J.T.to(x.dtype)  # noqa: E731
    found = dct.fit(f, shape[1], method=method, factors=m, scale=1.0)
    assert len(found) == m
    assert captured(J, found.V) >= share
    torch.testing.assert_close(found.V @ found.V.T, torch.eye(m), atol=1e-4, rtol=0)


def test_the_randomized_svd_takes_fewer_passes_than_the_jacobian():
    rows = {"linear": 0, "linear-randomized": 0}
    J = falling((600, 600), 1.0)
    for method in rows:

        def count(stage: str, done: int, total: int, method: str = method) -> None:
            rows[method] = done

        dct.fit(lambda x: x @ J.T.to(x.dtype), 600, method=method, factors=8, scale=1.0, progress=count)
    assert rows["linear"] == 600
    assert rows["linear-randomized"] < 600 / 4


def test_linear_strengths_are_the_singular_values(jacobian):
    found = dct.fit(lambda x: x @ jacobian.T, 64, method="linear", factors=10, scale=1.0, dtype=F64)
    torch.testing.assert_close(found.alpha, torch.linalg.svdvals(jacobian)[:10])
    torch.testing.assert_close(found.U.T @ torch.diag(found.alpha) @ found.V, _truncated(jacobian, 10))


def _truncated(J: torch.Tensor, m: int) -> torch.Tensor:
    U, S, Vh = torch.linalg.svd(J)
    return U[:, :m] @ torch.diag(S[:m]) @ Vh[:m]


@pytest.mark.parametrize("shape", [(3, 9), (9, 3)])
@pytest.mark.parametrize("method", ["linear", "linear-randomized", "linear-projected"])
def test_a_linear_fit_returns_no_null_space_as_factors(shape, method):
    """Asked for more directions than the map has, it returns those that there are and says so."""
    A = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = dct.fit(lambda x: x @ A.T.to(x.dtype), shape[1], method=method, factors=9, scale=1.0)
    assert len(found) == found.info["informative"] == 3
    assert captured(A, found.V) == pytest.approx(1, abs=1e-6)


def test_projected_is_the_svd_of_the_projected_jacobian(jacobian):
    """V: right singular vectors of W J, W the d_proj random unit directions that the seed gives; u_l: unit J v_l."""
    found = dct.fit(
        lambda x: x @ jacobian.T, 64, method="linear-projected", factors=64, d_proj=12, scale=1.0, seed=4, dtype=F64
    )
    W = dct.calibration.random_directions(12, 48, 4).double()
    _, _, Vh = torch.linalg.svd(W @ jacobian)
    assert len(found) == 12
    torch.testing.assert_close((found.V * Vh[:12]).sum(1).abs(), torch.ones(12, dtype=F64))
    pushed = normalize(found.V @ jacobian.T, dim=1)
    torch.testing.assert_close((found.U * pushed).sum(1).abs(), torch.ones(12, dtype=F64))


# --- strengths against the dense loss ---------------------------------------------------------------------------------

ORDERS = {"linear": [1], "quadratic": [2], "exponential": list(range(1, 11))}


def dense_columns(kernel: str, V: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
    """Each factor as one long vector: u (x) v^(x k) / sqrt(k!) for every order k that the loss sums."""
    columns = []
    for v, u in zip(V, U, strict=True):
        parts, power = [], torch.ones((), dtype=F64)
        for k in range(1, max(ORDERS[kernel]) + 1):
            power = torch.outer(power.flatten(), v).flatten()
            if k in ORDERS[kernel]:
                weight = 1 if len(ORDERS[kernel]) == 1 else 1 / math.sqrt(math.factorial(k))
                parts.append(weight * torch.outer(u, power).flatten())
        columns.append(torch.cat(parts))
    return torch.stack(columns, dim=1)


@settings(max_examples=20, deadline=None)
@given(kernel=st.sampled_from(sorted(ORDERS)), m=st.integers(1, 4), seed=st.integers(0, 1000))
def test_strengths_solve_the_dense_least_squares_problem(kernel, m, seed):
    """alpha = argmin sum_k 1/k! |T(k) - sum_l alpha_l u_l v_l^k|^2, T planted, by an explicit dense solve."""
    V, U = unit(m, 3, seed), unit(m, 3, seed + 1)
    V_true, U_true, c = unit(3, 3, seed + 2), unit(3, 3, seed + 3), torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    design, target = dense_columns(kernel, V, U), dense_columns(kernel, V_true, U_true) @ c
    expected = torch.linalg.lstsq(design, target).solution
    # b_l is the inner product of factor l with the map's tensors, which is how the fits get it:
    # <u, J v>, T2(u, v, v) and <u, f(v)>.
    similarity = V @ V_true.T
    nonlinear = {"linear": similarity, "quadratic": similarity.square(), "exponential": similarity.expm1()}[kernel]
    b = ((U @ U_true.T) * nonlinear) @ c
    torch.testing.assert_close(gram(kernel, V, U), design.T @ design, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(strengths(kernel, V, U, b), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "kernel"),
    [("linear-projected", "linear"), ("quadratic", "quadratic"), ("exponential", "exponential")],
)
def test_fitted_strengths_minimise_the_loss_of_the_map(method, kernel):
    """End to end: the alpha that a fit returns, for the V and U that it returns, solves the dense problem."""
    V_true, U_true = unit(4, 3, 0), unit(4, 3, 1)
    f = {
        "linear": lambda x: (x @ V_true.T) @ U_true,
        "quadratic": lambda x: ((x @ V_true.T).square() / 2) @ U_true,  # T2 = sum u v v
        "exponential": lambda x: torch.expm1(x @ V_true.T) @ U_true,
    }[kernel]
    found = dct.fit(f, 3, method=method, factors=3, scale=1.0, iterations=3, dtype=F64)
    design = dense_columns(kernel, found.V, found.U)
    target = dense_columns(kernel, V_true, U_true).sum(1)
    expected = torch.linalg.lstsq(design, target).solution
    torch.testing.assert_close(found.alpha, expected, atol=1e-4, rtol=1e-4)
    assert float(found.alpha.min()) >= 0


def test_coinciding_factors_share_their_strength():
    v, u = unit(1, 5, 0), unit(1, 5, 1)
    alpha = strengths("exponential", v.repeat(2, 1), u.repeat(2, 1), torch.full((2,), math.e - 1, dtype=F64))
    torch.testing.assert_close(alpha, torch.tensor([0.5, 0.5], dtype=F64))


# --- one step, by hand ------------------------------------------------------------------------------------------------


def test_one_exponential_iteration_by_hand():
    """V <- QR(V); u <- unit R_S(v); v <- unit gradient of <u_old, R_S(v)>, all in plain dense algebra."""
    planted = PlantedExponential(10, 4, 3)
    V, U, R = unit(5, 10, 7), unit(5, 10, 8), 2.5
    kept: list[State] = []
    dct.fit(
        planted,
        10,
        factors=5,
        scale=R,
        iterations=1,
        orthogonalize="qr",
        resume=State(V, U),
        checkpoint=kept.append,
        dtype=F64,
    )
    Q, T = torch.linalg.qr(V.T)
    Q = (Q * T.diagonal().sign()).T
    Vp, Up = planted.V.double(), planted.U.double()
    gate = torch.exp(R * Q @ Vp.T)
    torch.testing.assert_close(kept[0].U, normalize((gate - 1) @ Up, dim=1))
    torch.testing.assert_close(kept[0].V, normalize((gate * (U @ Up.T)) @ Vp, dim=1))


def test_the_first_exponential_iteration_climbs_the_norm_of_the_response():
    """No output is known yet: v <- unit gradient of |R_S(v)|, which is that of <u, R_S(v)> for u = unit R_S(v)."""
    planted = PlantedExponential(10, 4, 3)
    kept: list[State] = []
    dct.fit(
        planted,
        10,
        factors=5,
        scale=2.5,
        iterations=1,
        start="random",
        orthogonalize="qr",
        seed=3,
        checkpoint=kept.append,
        dtype=F64,
    )
    Q = orthogonalized(random_directions(5, 10, 4).double()).requires_grad_()
    norms = planted(2.5 * Q).norm(dim=1)
    [gradient] = torch.autograd.grad(norms.sum(), Q)
    torch.testing.assert_close(kept[0].U, normalize(planted(2.5 * Q), dim=1).detach())
    torch.testing.assert_close(kept[0].V, normalize(gradient, dim=1))


@pytest.mark.parametrize("beta", [1.0, 0.4, None])
def test_iterations_one_by_one_are_those_of_one_fit(beta):
    planted = PlantedExponential(10, 4, 3)
    options = {"factors": 5, "scale": 2.0, "beta": beta, "dtype": F64}
    whole, part = [], []
    dct.fit(planted, 10, iterations=3, checkpoint=whole.append, **options)
    dct.fit(planted, 10, iterations=1, checkpoint=part.append, **options)
    dct.fit(planted, 10, iterations=3, resume=part[0], checkpoint=part.append, **options)
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a.V, b.V)
        torch.testing.assert_close(a.U, b.U)


def test_beta_mixes_in_the_old_factor():
    planted = PlantedExponential(10, 4, 3)
    V, U = orthogonal(5, 10, 7), unit(5, 10, 8)
    whole, part = [], []
    for beta, kept in ((1.0, whole), (0.3, part)):
        dct.fit(
            planted, 10, factors=5, scale=2.0, iterations=1, beta=beta, orthogonalize="qr", resume=State(V, U),
            checkpoint=kept.append, dtype=F64,
        )  # fmt: skip
    torch.testing.assert_close(part[0].V, normalize(0.3 * whole[0].V + 0.7 * V, dim=1))
    torch.testing.assert_close(part[0].U, normalize(0.3 * whole[0].U + 0.7 * U, dim=1))


def bounded(width: int, gain: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Three residual blocks that read their stream through a norm: what the length of a vector does is bounded, so the
    gradient at R v is nearly orthogonal to v."""
    g = torch.Generator().manual_seed(0)
    A, B, C = (torch.randn(width, width, generator=g, dtype=F64) / width**0.5 for _ in range(3))
    h = torch.randn(width, generator=g, dtype=F64)

    def stream(x: torch.Tensor) -> torch.Tensor:
        for M, N in ((A, B), (B, C), (C, A)):
            x = x + gain * torch.tanh(3 * width**0.5 * normalize(x, dim=-1) @ M.T) @ N.T
        return x

    def f(theta: torch.Tensor) -> torch.Tensor:
        return stream(h + theta) - stream(h)

    f.target_norm = float(stream(h).norm())
    return f


@pytest.mark.parametrize(("gain", "scale"), [(1.0, 8.0), (2.0, 2.0), (4.0, 4.0)])
def test_damping_settles_what_wanders_and_gains_by_it(gain, scale):
    f = bounded(24, gain)
    options = {"factors": 8, "scale": scale, "iterations": 20, "dtype": F64}
    wandering, settled = dct.fit(f, 24, beta=1.0, **options), dct.fit(f, 24, **options)
    assert wandering.objective[-1, 2] > 0.7
    assert wandering.info["settled"] is False
    assert settled.objective[-1, 2] < 0.1
    assert settled.info["settled"] is True
    assert settled.objective[-1, 0] > 1.3 * wandering.objective[-1, 0]


def test_a_share_is_halved_where_nothing_is_gained_and_only_there():
    assert damped([]) == damped([[1.0, 0.0, 0.9]]) == 1
    assert damped([[1.0, 0.0, 0.5], [1.2, 0.0, 0.6]]) == 1  # moves further, and gains
    assert damped([[1.0, 0.0, 0.5], [1.0, 0.0, 0.4]]) == 1  # comes to rest
    assert damped([[1.0, 0.0, 0.5], [1.0, 0.0, 0.5]]) == 0.5
    assert damped([[1.0, 0.0, 0.5], [1.0, 0.0, 0.5], [0.9, 0.0, 0.6]]) == 0.25
    assert damped([[1.0, 0.0, 1e-3], [1.0, 0.0, 5e-3]]) == 1  # next to nothing


def test_responses_are_told_as_shares_of_the_target():
    f = bounded(24, 2.0)
    found = dct.fit(f, 24, factors=8, scale=4.0, iterations=3, dtype=F64)
    sizes = f(4.0 * found.V.double()).norm(dim=1) / f.target_norm
    assert found.info["of_target"] == pytest.approx([float(sizes.median()), float(sizes.max())], rel=1e-5)
    assert found.info["exploded"] == 0
    f.target_norm /= 100
    assert dct.fit(f, 24, factors=8, scale=4.0, iterations=3, dtype=F64).info["exploded"] == 8


def test_one_quadratic_iteration_by_hand():
    """u <- unit T2(., v, v), then v <- unit T2(u, v, .) with the new u, T2 dense."""
    planted = PlantedQuadratic(10, 4)
    T2 = 2 * torch.einsum("l,li,lj,lk->ijk", planted.c, planted.U, planted.V, planted.V)
    V, U = unit(5, 10, 7), unit(5, 10, 8)
    kept: list[State] = []
    dct.fit(
        planted, 10, method="quadratic", factors=5, scale=1.0, iterations=1, orthogonalize="qr", resume=State(V, U),
        checkpoint=kept.append, dtype=F64,
    )  # fmt: skip
    Q = orthogonalized(V)
    new_U = normalize(torch.einsum("ijk,bj,bk->bi", T2, Q, Q), dim=1)
    torch.testing.assert_close(kept[0].U, new_U)
    torch.testing.assert_close(kept[0].V, normalize(torch.einsum("ijk,bi,bj->bk", T2, new_U, Q), dim=1))


def test_objective_is_the_post_s():
    """causal = sum alpha b, penalty = 1/2 sum over l != k, change = 1 - mean |<v_new, v_old>|, recomputed densely."""
    planted = PlantedExponential(10, 4, 3)
    V, U = unit(5, 10, 7), unit(5, 10, 8)
    kept: list[State] = []
    found = dct.fit(
        planted,
        10,
        factors=5,
        scale=2.0,
        iterations=1,
        orthogonalize="qr",
        resume=State(V, U),
        checkpoint=kept.append,
        dtype=F64,
    )
    Q = orthogonalized(V)
    value = planted(2.0 * Q)
    new_U, b = normalize(value, dim=1), value.norm(dim=1)
    K = (new_U @ new_U.T) * torch.expm1(Q @ Q.T)
    alpha = torch.linalg.solve(K, b)
    off = K - torch.diag(K.diagonal())
    change = 1 - (kept[0].V * V).sum(1).abs().mean()
    expected = torch.stack([alpha @ b, alpha @ off @ alpha / 2, change])
    torch.testing.assert_close(found.objective[0], expected)


# --- orthogonalisation ------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 8), seed=st.integers(0, 1000))
def test_qr_is_gram_schmidt_and_keeps_each_row_s_sense(m, seed):
    V = unit(m, 8, seed)
    Q = orthogonalized(V, "qr")
    expected: list[torch.Tensor] = []
    for v in V:
        rest = v - sum(((v @ q) * q for q in expected), torch.zeros(8, dtype=F64))
        expected.append(rest / rest.norm())
    torch.testing.assert_close(Q, torch.stack(expected), atol=1e-8, rtol=0)


@pytest.mark.parametrize("eta", [0.25, 0.5])
def test_soft_is_its_formula_and_leaves_its_input_alone(eta):
    V = unit(6, 4, 0)
    before = V.clone()
    expected = V
    for _ in range(3):
        weights = torch.exp(expected @ expected.T / 0.05)
        weights = weights - torch.diag(weights.diagonal())
        expected = normalize(expected - eta * (weights / weights.sum(1, keepdim=True)) @ expected, dim=1)
    torch.testing.assert_close(orthogonalized(V, "soft", eta=eta), expected)
    assert torch.equal(V, before)
    assert (eta == 0.25) == torch.equal(orthogonalized(V, "soft"), orthogonalized(V, "soft", eta=eta))


def test_the_push_of_a_fit_is_the_one_that_is_asked_for():
    planted, how = PlantedExponential(16, 6), {"factors": 12, "scale": 3.0, "iterations": 2, "start": "random"}
    usual = dct.fit(planted, 16, **how)
    assert torch.equal(dct.fit(planted, 16, eta=0.25, **how).V, usual.V)
    pushed = dct.fit(planted, 16, eta=0.5, **how)
    assert not torch.equal(pushed.V, usual.V)
    assert (usual.info["eta"], pushed.info["eta"]) == (0.25, 0.5)
    unmoved, none = dct.fit(planted, 16, eta=0.0, **how).V, dct.fit(planted, 16, orthogonalize="none", **how).V
    torch.testing.assert_close((unmoved @ none.T).amax(1), torch.ones(12))  # several are one factor, in any order


def test_soft_pushes_twins_apart():
    v = unit(1, 8, 0)
    twins = normalize(torch.cat([v, v + 0.01 * unit(1, 8, 1), unit(3, 8, 2)]), dim=1)
    apart = orthogonalized(twins, "soft")
    angle, before = torch.arccos(apart[0] @ apart[1]), torch.arccos(twins[0] @ twins[1])
    assert float(angle) > 4 * float(before)


@pytest.mark.parametrize("method", ["exponential", "melbo"])
def test_the_strongest_response_comes_first(method):
    planted = PlantedExponential(24, 6)
    found = dct.fit(planted, 24, method=method, factors=12, scale=3.0, iterations=5)
    responses = planted(3.0 * found.V).norm(dim=1)
    assert bool((responses.diff() < 1e-4 * responses[:-1]).all())  # twins may be equal but for rounding
    assert float(responses[0]) > 1.01 * float(responses[-1])


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exponential", "quadratic"])
@pytest.mark.parametrize("interrupted_after", [1, 2])
def test_resuming_gives_the_same_factors_to_the_bit(method, interrupted_after):
    planted = PlantedExponential(24, 6)
    states: list[State] = []
    options = {"method": method, "factors": 12, "scale": 3.0, "iterations": 4}
    whole = dct.fit(planted, 24, checkpoint=states.append, **options)
    resumed = dct.fit(planted, 24, resume=states[interrupted_after - 1], **options)
    for name in ("V", "U", "alpha", "objective"):
        assert torch.equal(getattr(whole, name), getattr(resumed, name)), name


def test_tolerance_stops_early():
    planted = PlantedExponential(24, 6)
    found = dct.fit(planted, 24, factors=6, scale=3.0, iterations=100, tolerance=1e-4)
    assert 1 < len(found.objective) < 100
    assert float(found.objective[-1, 2]) < 1e-4


def test_seed_decides_everything():
    planted = PlantedExponential(24, 6)
    one, same, other = (dct.fit(planted, 24, factors=12, scale=3.0, iterations=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.V, same.V)
    assert not torch.equal(one.V, other.V)


def test_batches_do_not_change_the_result():
    planted = PlantedExponential(24, 6)
    one, other = (dct.fit(planted, 24, factors=6, scale=3.0, iterations=2, batch=b, dtype=F64) for b in (5, 500))
    torch.testing.assert_close(one.V, other.V)


@pytest.mark.parametrize("method", built_in())
def test_progress_reaches_its_total(method):
    told: list[tuple[str, int, int]] = []
    dct.fit(
        PlantedExponential(24, 6), 24, method=method, factors=12, scale=3.0, iterations=2,
        progress=lambda *step: told.append(step),
    )  # fmt: skip
    done = [step[1] for step in told]
    assert done == sorted(done)
    assert told[-1][1] == told[-1][2] > 0


def test_what_the_start_did_not_know_is_said():
    found = dct.fit(PlantedExponential(24, 6), 24, factors=12, d_proj=5, scale=3.0, iterations=1)
    assert found.info["random_start"] == 7
    assert found.info["above_random"] <= 12


def test_scale_is_calibrated_when_left_out():
    planted = PlantedExponential(24, 6)
    found = dct.fit(planted, 24, factors=4, iterations=1)
    assert found.scale == pytest.approx(dct.calibrate(planted, 24).scale)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "cubic"},
        {"orthogonalize": "hard"},
        {"start": "warm"},
        {"factors": 0},
        {"iterations": 0},
        {"d_proj": 0},
        {"beta": 0.0},
        {"beta": 1.5},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"factors": 25, "orthogonalize": "qr"},
    ],
)
def test_arguments_that_cannot_be(wrong):
    with pytest.raises(dct.UsageError):
        dct.fit(PlantedExponential(24, 6), 24, **{"scale": 3.0, **wrong})
