"""Interaction spectra: against weights of bilinear blocks, dense float64 algebra, sampled chance, and the command."""

import json
import math

import numpy as np
import pytest
import torch
import transformers
from conftest import _COMMON, DEPTH, WIDTH
from test_derivatives import Polynomial
from torch.nn.attention import SDPBackend, sdpa_kernel
from typer.testing import CliRunner

import dct
from dct.cli.app import app
from dct.derivatives import Derivatives
from dct.hosvd import hosvd
from dct.naming import token_direction
from dct.spectra import agreement, chance_edge, chance_rank, correlated, normal_inputs, spectrum

F64 = torch.float64
IDS = [[1, 5, 9, 20, 31, 7, 8, 9, 44], [1, 5, 9, 33, 3, 61, 70]]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def by_size(Q: torch.Tensor) -> torch.Tensor:
    """Eigenvalues, the largest |lambda| first."""
    values = torch.linalg.eigvalsh(Q)
    return values[values.abs().argsort(descending=True)]


# --- bilinear blocks --------------------------------------------------------------------------------------------------


class Bilinear:
    """down (gate x * up x)."""

    def __init__(self, dim: int, hidden: int, dtype: torch.dtype) -> None:
        self.gate, self.up, self.down = (
            drawn(a, b, seed=a + b) for a, b in ((hidden, dim), (hidden, dim), (dim, hidden))
        )
        self.dtype = dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gate, up, down = (w.to(self.dtype) for w in (self.gate, self.up, self.down))
        return ((x @ gate.T) * (x @ up.T)) @ down.T

    def interactions(self, u: torch.Tensor) -> torch.Tensor:
        """d^2 <u, f> = sum_a (u'down)_a (gate_a up_a' + up_a gate_a'), from the weights alone."""
        weighted = torch.einsum("i,ia,aj,ak->jk", u / u.norm(), self.down, self.gate, self.up)
        return weighted + weighted.T


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("exact", [True, False])
def test_a_bilinear_block_has_the_spectrum_of_its_weights(dtype, exact):
    f, u = Bilinear(40, 24, dtype), drawn(40)
    d = Derivatives(f, 40, dtype=dtype)
    found = spectrum(d, u, 6, exact=exact)
    Q = f.interactions(u)
    true = by_size(Q)
    assert found.exact == exact
    assert found.residuals.max() < 1e-5
    np.testing.assert_allclose(found.values[:6], true[:6], rtol=0, atol=1e-5 * float(true[0].abs()))
    q = found.vectors.double()
    assert float((q @ Q - true[:6, None] * q).norm(dim=1).max()) < 1e-5 * float(true[0].abs())
    room = 1e-5 if exact else 4 * found.error
    assert found.total**2 == pytest.approx(float(Q.square().sum()), rel=room)
    assert found.linear.max() == 0  # nothing of it is linear


def test_the_form_of_a_bilinear_block_is_its_response():
    f, u = Bilinear(40, 24, F64), drawn(40)
    d = Derivatives(f, 40, dtype=F64)
    found = spectrum(d, u, 40)
    told = agreement(d, u, found, normal_inputs(400, 40, 3.0, 1))
    assert told.whole == pytest.approx(1)
    assert told.second == pytest.approx(1)
    assert told.share == pytest.approx(1)
    assert told.form[-1] == pytest.approx(1)
    assert told.even == pytest.approx(told.form)
    # what is captured is the correlation over normal inputs
    many = drawn(40_000, 40, seed=3)
    squares = torch.from_numpy(found.values) * (many @ found.vectors.T).square()
    for r in (1, 2, 5, 12):
        assert found.captured[r - 1] == pytest.approx(correlated(squares[:, :r].sum(1), squares.sum(1)), abs=0.02)
    rank = found.rank(0.75)
    assert found.captured[rank - 1] >= 0.75 > found.captured[rank - 2]
    assert spectrum(d, u, 2, exact=False).rank(0.999) is None  # more than those that were found


def normed(Q: torch.Tensor, h: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The second derivatives at h of n'Qn = d q / s, with n = h / sqrt(mean h^2 + epsilon), s = h'h + d epsilon and
    q = h'Qh."""
    d, Qh = len(h), Q @ h
    s, q = h @ h + len(h) * epsilon, h @ Q @ h
    cross = torch.outer(Qh, h)
    return d * (2 * Q / s - 4 * (cross + cross.T) / s**2 - 2 * q * torch.eye(d).double() / s**2
                + 8 * q * torch.outer(h, h) / s**3)  # fmt: skip


def test_a_llama_without_activation_has_the_spectrum_of_its_weights(tokenizer):
    """`hidden_act = linear` makes its MLP bilinear, down(gate n * up n), behind its norm; attention is silenced."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_COMMON, hidden_act="linear")).to(F64).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3) if p.ndim > 1 else p.add_(0.2 * torch.randn_like(p))
        model.model.layers[2].self_attn.o_proj.weight.zero_()
    lm = dct.LanguageModel(model, tokenizer, "bilinear")
    f, u = dct.Slice(lm, IDS, 2, 3, positions=2), drawn(WIDTH)
    found = spectrum(Derivatives(f, WIDTH, dtype=F64), u, 8)

    block, unit = model.model.layers[2], u / u.norm()
    gain = block.post_attention_layernorm.weight
    gate, up = (w.weight * gain for w in (block.mlp.gate_proj, block.mlp.up_proj))
    weighted = torch.einsum("i,ia,aj,ak->jk", unit, block.mlp.down_proj.weight, gate, up).detach()
    Q = (weighted + weighted.T) / 2
    with torch.no_grad():
        entering = [model(torch.tensor([row]), output_hidden_states=True).hidden_states[2][0, -2:] for row in IDS]
    true = torch.stack([normed(Q, h, model.config.rms_norm_eps) for h in torch.cat(entering)]).mean(0)
    np.testing.assert_allclose(found.values, by_size(true), rtol=0, atol=1e-5 * abs(found.values[0]))
    assert found.residuals.max() < 1e-5


# --- deep slices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_deep_slice_has_the_spectrum_of_its_dense_hessian(make_lm, architecture):
    lm = make_lm(architecture, dtype=F64)
    f, u = dct.Slice(lm, [IDS[1]], 1, 3), drawn(WIDTH)
    unit = u / u.norm()
    with sdpa_kernel(SDPBackend.MATH):
        zero = torch.zeros(WIDTH, dtype=F64)
        dense = torch.autograd.functional.hessian(lambda x: f(x[None])[0] @ unit, zero)
        slope = torch.autograd.functional.jacobian(lambda x: f(x[None])[0] @ unit, zero)
    true = by_size((dense + dense.T) / 2)
    taken = []
    for exact in (True, False):
        d = Derivatives(f, WIDTH, dtype=F64, on_rows=taken.append)
        del taken[:]
        found = spectrum(d, u, 4, exact=exact)
        assert found.products == sum(taken) - 1  # the slope is the one that is no Hessian-vector product
        # norms compute in float32 even in a float64 model
        np.testing.assert_allclose(found.values[:4], true[:4], rtol=0, atol=1e-5 * float(true[0].abs()))
        assert found.slope == pytest.approx(float(slope.norm()), rel=1e-5)
        np.testing.assert_allclose(found.linear, found.vectors @ slope, atol=1e-5 * found.slope)
        assert found.linear.min() >= 0
        assert found.residuals.max() < 1e-4


def test_a_residual_says_how_wrong_an_eigenvector_is():
    """A map whose second derivatives are not symmetric has no eigenvectors: here by an operation with a wrong rule."""

    class Skewed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def jvp(ctx, tangent):
            return tangent

        @staticmethod
        def backward(ctx, gradient):
            return 1.2 * gradient

    poly = Polynomial()
    f = lambda x: poly(torch.cat([Skewed.apply(x[:, :3]), x[:, 3:]], 1))  # noqa: E731
    assert spectrum(Derivatives(f, 7, dtype=F64), drawn(5), 3).residuals.max() > 0.01


def test_what_has_no_spectrum_is_refused():
    poly = Polynomial()
    with pytest.raises(dct.DctError, match="output direction is zero"):
        spectrum(Derivatives(poly, 7, dtype=F64), torch.zeros(5))
    A = drawn(30, 30)
    flat = Derivatives(lambda x: x @ A.T, 30, dtype=F64)
    for exact in (True, False):
        with pytest.raises(dct.DctError, match="nothing interacts"):
            spectrum(flat, drawn(30), 2, exact=exact)
    with pytest.raises(dct.DctError, match="nothing interacts"):
        hosvd(flat, 2)


def test_chance_is_that_of_random_matrices():
    A = drawn(500, 500)
    values = by_size((A + A.T) / 2)
    total = float(values.norm())
    assert chance_edge(total, 500) == pytest.approx(float(values[0].abs()), rel=0.03)
    for correlation in (0.5, 0.75, 0.9):
        captured = values.square().cumsum(0).sqrt() / total
        assert chance_rank(500, correlation) == pytest.approx(int((captured < correlation).sum()) + 1, abs=5)
    assert chance_rank(500, 1.0) == 500


# --- without an output ------------------------------------------------------------------------------------------------


def test_terms_are_the_singular_value_decomposition_of_the_flattened_tensor():
    poly = Polynomial()
    found = hosvd(Derivatives(poly, 7, dtype=F64), 3, inputs=7)
    left, sigmas, right = torch.linalg.svd(poly.T2.flatten(1), full_matrices=False)
    for r, one in enumerate(found.components):
        assert one.sigma == pytest.approx(float(sigmas[r]), rel=1e-9)
        assert abs(float(one.u @ left[:, r])) == pytest.approx(1, abs=1e-9)
        np.testing.assert_allclose(np.abs(one.values), by_size(right[r].reshape(7, 7)).abs(), atol=1e-9)
        approximation = (left[:, : r + 1] * sigmas[: r + 1]) @ right[: r + 1]
        assert found.left[r] == pytest.approx(
            float((poly.T2.flatten(1) - approximation).norm() / poly.T2.norm()), rel=1e-6
        )


def test_the_leading_part_of_a_wide_tensor_is_found_in_a_subspace():
    """Three planted terms of rank two, with noise: their outputs, their inputs, and the error that is truly left."""
    out, dim, sigmas = 20, 30, torch.tensor([9.0, 6.0, 4.0], dtype=F64)
    U = torch.linalg.qr(drawn(out, 3))[0].T
    Q = torch.linalg.qr(drawn(dim, 6, seed=1))[0].T
    forms = torch.stack([(torch.outer(Q[2 * r], Q[2 * r]) - torch.outer(Q[2 * r + 1], Q[2 * r + 1])) for r in range(3)])
    noise = drawn(out, dim, dim, seed=2)
    T2 = torch.einsum("r,ri,rjk->ijk", sigmas / math.sqrt(2), U, forms) + 0.01 * (noise + noise.transpose(1, 2))
    found = hosvd(Derivatives(lambda x: torch.einsum("ijk,bj,bk->bi", T2, x, x) / 2, dim, dtype=F64), 3, inputs=8)
    kept = torch.zeros_like(T2)
    for r, one in enumerate(found.components):
        assert one.sigma == pytest.approx(float(sigmas[r]), rel=0.02)
        assert abs(float(one.u @ U[r])) > 0.99
        assert one.rank(0.9) == 2
        form = torch.einsum("a,aj,ak->jk", torch.from_numpy(one.values), one.vectors, one.vectors)
        kept += one.sigma * torch.einsum("i,jk->ijk", one.u, form)
        true = float((T2 - kept).norm() / T2.norm())
        assert found.left[r] == pytest.approx(true, rel=0.05)
    assert found.total**2 == pytest.approx(float(T2.square().sum()), rel=4 * found.error)
    assert found.products < dim * out


# --- a token as an output ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [DEPTH, 3])
def test_a_token_pulled_back_is_the_slope_of_its_logit(make_lm, target):
    """<u, x> is proportional to what a push x does to the token's centred logit, by finite differences."""
    lm, token = make_lm("llama", dtype=F64), 70
    u = token_direction(lm, token, target, IDS).double()
    assert float(u.norm()) == pytest.approx(1)
    slice_ = dct.Slice(lm, IDS, min(target, DEPTH - 1), DEPTH, positions=1)
    head, norm, streams = lm.model.lm_head, lm.model.model.norm, slice_.unsteered

    @torch.no_grad()
    def change(x: torch.Tensor) -> float:
        if target < DEPTH:
            x = (slice_(1e-4 * x[None]) - slice_(-1e-4 * x[None]))[0] / 2e-4
        step = 1e-4 * streams.norm(dim=1, keepdim=True) * x
        moved = (head(norm(streams + step)) - head(norm(streams - step))) / 2e-4
        return float((moved[:, token] - moved.mean(1)).mean())

    pushes = drawn(6, WIDTH, seed=4)
    changes = torch.tensor([change(x) for x in pushes])
    assert correlated(pushes @ u, changes.double()) > 0.9999


# --- the command ------------------------------------------------------------------------------------------------------


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("spectrum")
    words = [
        "--model",
        model_folder,
        "--n",
        1,
        "--factors",
        4,
        "--iterations",
        1,
        "--scale",
        0.9,
        "--out",
        folder / "run",
    ]
    done = run("fit", *words)
    assert done.exit_code == 0, done.output
    return folder / "run"


def test_the_command_on_a_vector(fitted, workplace):
    done = run(
        "spectrum",
        fitted,
        "--vector",
        3,
        "--count",
        3,
        "--directions",
        8,
        "--out",
        "eigen",
        "--plot",
        "s.svg",
        "--json",
    )
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    factors = dct.Factors.load(fitted / "factors.safetensors")
    info, u, R = factors.info, factors.U[3], factors.scale
    f = dct.Slice(dct.load(info["model"]), info["ids"], info["source"], info["target"], info["positions"])
    zero = torch.zeros(WIDTH)
    with sdpa_kernel(SDPBackend.MATH):
        true = by_size(torch.autograd.functional.hessian(lambda x: f(x[None])[0] @ u, zero).double())
    np.testing.assert_allclose(content["values"], true, atol=1e-4 * float(true[0].abs()))
    assert content["products"] == WIDTH
    assert content["chance"]["rank"] == chance_rank(WIDTH)
    eigen = dct.Factors.load(workplace / "eigen" / "factors.safetensors")
    assert eigen.signless
    for q, one in zip(eigen.V, content["eigenvectors"], strict=True):
        plus, minus = (f(sense * R * q[None])[0] @ u for sense in (1, -1))
        assert one["even"] == pytest.approx(float(plus + minus) / 2, rel=1e-3, abs=1e-5)
        assert one["own"] == pytest.approx(float(q @ factors.V[3]), abs=1e-4)
    assert "vector 3" in (workplace / "s.svg").read_text()
    assert run("verify", "eigen").exit_code == 0  # what they cause, and how strongly
    assert run("rank", "eigen", "--screen-only", "--n", 1).exit_code == 0
    done = run("report", fitted, "--out", "page.html")
    assert "What acts together on vector 3?" in (workplace / "page.html").read_text()


def test_the_command_on_a_token_and_without_an_output(fitted, monkeypatch):
    monkeypatch.setattr("dct.hosvd.SKETCH", 12)
    done = run("spectrum", fitted, "--token", "Sure", "--count", 2, "--directions", 4, "--no-exact", "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert (content["output"], content["exact"], len(content["values"])) == ("token Sure", False, 2)
    done = run("spectrum", fitted, "--count", 2, "--inputs", 4)
    assert done.exit_code == 0, done.output
    assert "2 terms of the second derivatives" in done.stdout
    kept = json.loads((fitted / "spectrum.json").read_text())["spectra"]
    assert {"token Sure", "terms"} <= set(kept)
    assert run("report", fitted).exit_code == 0
    (fitted / "spectrum.json").write_text('{"format": "dct spectrum 1", "factors": 1}')
    assert run("report", fitted).exit_code == 0  # a file that somebody spoilt is no file


def test_the_command_refuses_in_one_line(fitted):
    for words, code, said in (
        (["--vector", "9"], 1, "vector 9 is out of range"),
        (["--vector", "nine"], 2, "a vector is a number"),
        (["--vector", "1", "--token", "Sure"], 2, "give one output"),
        (["--out", "x"], 2, "--vector"),
        (["--vector", "1", "--out", str(fitted)], 1, "holds"),
        (["--vector", "1", "--plot", "s.pdf"], 2, ".svg or a .png"),
    ):
        done = run("spectrum", fitted, *words)
        assert done.exit_code == code, (words, done.output)
        assert said in done.output, (words, done.output)
