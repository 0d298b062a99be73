"""Every derivative against a dense float64 one: a planted polynomial, whose tensors are known, and a tiny transformer,
whose tensors torch's own dense differentiation gives."""

import pytest
import torch
from conftest import CONFIGS
from torch.nn.attention import SDPBackend, sdpa_kernel

import dct
from dct.derivatives import Derivatives

DIM, OUT, ROWS = 7, 5, 6
F64 = torch.float64


class Polynomial:
    """f(x) = J x + 1/2 T2(., x, x) + 1/6 T3(., x, x, x) with symmetric T2 and T3, in float64."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.J = torch.randn(OUT, DIM, generator=g, dtype=F64)
        T2 = torch.randn(OUT, DIM, DIM, generator=g, dtype=F64)
        self.T2 = T2 + T2.transpose(1, 2)
        T3 = torch.randn(OUT, DIM, DIM, DIM, generator=g, dtype=F64)
        self.T3 = sum(T3.permute(0, *p) for p in [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        second = torch.einsum("ijk,bj,bk->bi", self.T2, x, x) / 2
        third = torch.einsum("ijkl,bj,bk,bl->bi", self.T3, x, x, x) / 6
        return x @ self.J.T + second + third


@pytest.fixture
def poly() -> Polynomial:
    return Polynomial()


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, DIM, generator=g, dtype=F64), torch.randn(ROWS, OUT, generator=g, dtype=F64)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_polynomial(poly, vectors, batch):
    v, u = vectors
    d = Derivatives(poly, DIM, batch=batch, dtype=F64)
    assert d.dim_out == OUT
    torch.testing.assert_close(d.value(v), poly(v))
    torch.testing.assert_close(d.jvp(v), v @ poly.J.T)
    torch.testing.assert_close(d.vjp(u), u @ poly.J)
    torch.testing.assert_close(d.second(v), torch.einsum("ijk,bj,bk->bi", poly.T2, v, v))
    torch.testing.assert_close(d.second_transposed(u, v), torch.einsum("ijk,bi,bj->bk", poly.T2, u, v))
    value, gradient = d.value_and_gradient(v, u)
    slope = poly.J + torch.einsum("ijk,bk->bij", poly.T2, v) + torch.einsum("ijkl,bk,bl->bij", poly.T3, v, v) / 2
    torch.testing.assert_close(value, poly(v))
    torch.testing.assert_close(gradient, torch.einsum("bi,bij->bj", u, slope))


def test_derivatives_at_zero_share_the_pass_that_does_not_depend_on_the_row(poly, vectors):
    v, u = vectors
    seen = []

    def spied(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return poly(x)

    d = Derivatives(spied, DIM, batch=4, dtype=F64)
    for derivative in (d.jvp, d.second):
        del seen[:]
        derivative(v)
        assert seen == [1, 1]  # six rows, in two batches
    del seen[:]
    d.vjp(u)
    d.second_transposed(u, v)
    assert seen == [1, 1, 1, 1]


class Shifted(torch.autograd.Function):
    """x + x^2 as an operation of its own, for which nobody wrote a rule for vmap."""

    @staticmethod
    def forward(x):
        return x + x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, tangent):
        [x] = ctx.saved_tensors
        return tangent * (1 + 2 * x)

    @staticmethod
    def backward(ctx, gradient):
        [x] = ctx.saved_tensors
        return gradient * (1 + 2 * x)


def test_a_map_that_vmap_refuses_is_differentiated_all_the_same(poly, vectors):
    v, u = vectors
    d = Derivatives(lambda x: poly(Shifted.apply(x)), DIM, batch=4, dtype=F64)
    torch.testing.assert_close(d.jvp(v), v @ poly.J.T)
    assert not d.shares
    torch.testing.assert_close(d.vjp(u), u @ poly.J)
    T2 = poly.T2 + 2 * poly.J[:, :, None] * torch.eye(DIM, dtype=F64)
    torch.testing.assert_close(d.second_transposed(u, v), torch.einsum("ijk,bi,bj->bk", T2, u, v))


def test_a_linear_map_has_no_second_derivative():
    A = torch.randn(OUT, DIM, dtype=F64)
    d = Derivatives(lambda x: x @ A.T, DIM, dtype=F64)
    v, u = torch.randn(3, DIM, dtype=F64), torch.randn(3, OUT, dtype=F64)
    assert float(d.second(v).abs().max()) == 0
    assert float(d.second_transposed(u, v).abs().max()) == 0


@pytest.mark.parametrize("architecture", CONFIGS)
def test_transformer_slice(make_lm, prompts, architecture):
    """J and T2 of a float64 slice, made dense by reverse mode twice, against every product we take with them."""
    experts = {"experts_implementation": "eager"} if architecture in ("mixtral", "qwen3_moe") else {}
    lm = make_lm(architecture, dtype=F64, **experts)
    f = dct.Slice(lm, prompts[:2], 1, 4)
    d = Derivatives(f, f.dim, dtype=F64)

    def one(x: torch.Tensor) -> torch.Tensor:
        return f(x[None])[0]

    zero = torch.zeros(f.dim, dtype=F64)
    with sdpa_kernel(SDPBackend.MATH):
        J = torch.autograd.functional.jacobian(one, zero)
        rows = [torch.autograd.functional.hessian(lambda x, i=i: one(x)[i], zero) for i in range(0, f.dim, 8)]
    T2 = torch.stack(rows)  # every eighth output
    g = torch.Generator().manual_seed(0)
    v = torch.randn(3, f.dim, generator=g, dtype=F64)
    u = torch.zeros(3, f.dim, dtype=F64)
    u[:, ::8] = torch.randn(3, len(T2), generator=g, dtype=F64)
    # Norms and softmax of transformers compute in float32 even in a float64 model.
    for mine, dense in (
        (d.jvp(v), v @ J.T),
        (d.vjp(u), u @ J),
        (d.second(v)[:, ::8], torch.einsum("ijk,bj,bk->bi", T2, v, v)),
        (d.second_transposed(u, v), torch.einsum("ijk,bi,bj->bk", T2, u[:, ::8], v)),
    ):
        assert float((mine - dense).norm()) < 1e-5 * float(dense.norm())
    assert d.shares


def test_running_out_of_memory_halves_the_batch_and_loses_nothing(poly, vectors):
    v, u = vectors
    seen = []

    def tight(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return poly(x)

    done = []
    d = Derivatives(tight, DIM, batch=64, dtype=F64, on_rows=done.append)
    value, gradient = d.value_and_gradient(v, u)
    expected = Derivatives(poly, DIM, dtype=F64).value_and_gradient(v, u)
    torch.testing.assert_close((value, gradient), expected)
    assert max(seen) > 2  # the first passes did fail
    assert d.batch <= 2
    assert sum(done) == ROWS


def test_out_of_memory_with_one_row_is_the_end(poly):
    def full(x: torch.Tensor) -> torch.Tensor:
        if x.any():
            raise torch.OutOfMemoryError("out of memory")
        return poly(x)

    with pytest.raises(dct.DctError, match="single row"):
        Derivatives(full, DIM, dtype=F64).value(torch.ones(3, DIM, dtype=F64))


def test_other_errors_pass_through(poly):
    def broken(x: torch.Tensor) -> torch.Tensor:
        if x.any():
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return poly(x)

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        Derivatives(broken, DIM, dtype=F64).value(torch.ones(3, DIM, dtype=F64))


def test_nan_is_refused():
    d = Derivatives(lambda x: torch.log1p(x), DIM)
    with pytest.raises(dct.NonFiniteError):
        d.value(torch.full((2, DIM), -2.0))


def test_a_map_of_the_wrong_shape_is_refused():
    with pytest.raises(dct.DctError, match="dim_out"):
        Derivatives(lambda x: x.sum(), DIM)
