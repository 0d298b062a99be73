"""Norm-maximising vectors, against the SVD, planted factors and the model's own hidden states."""

import pytest
import torch
from torch import Tensor

import dct
from dct import UsageError
from dct.fits.melbo import pooled
from dct.job import State

F64 = torch.float64


def orthonormal(n: int, width: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(width, n, generator=torch.Generator().manual_seed(seed))).Q.T


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_of_a_linear_map_they_are_the_singular_vectors_in_order(power):
    U, V = orthonormal(48, 48, 0), orthonormal(48, 48, 1)
    S = torch.arange(1, 49).float() ** -power
    found = dct.fit(lambda x: x @ V.T * S @ U, 48, method="melbo", factors=6, scale=2.0)
    torch.testing.assert_close((found.V * V[:6]).sum(1).abs(), torch.ones(6), rtol=0, atol=0.01)
    torch.testing.assert_close((found.U * U[:6]).sum(1).abs(), torch.ones(6), rtol=0, atol=0.02)
    torch.testing.assert_close(found.objective[:, 0], 2 * S[:6], rtol=0.01, atol=0)


def test_every_planted_exponential_factor_is_found():
    V, U = orthonormal(8, 64, 2), orthonormal(8, 64, 3)
    c = torch.linspace(2, 1, 8)

    def f(x: Tensor) -> Tensor:
        return (torch.expm1(x @ V.T) * c) @ U

    found = dct.fit(f, 64, method="melbo", factors=8, scale=4.0)
    signed = found.V @ V.T
    assert float(signed.abs().max(dim=0).values.min()) > 0.99
    # Nearly all in their own sense: a search that begins with all other directions taken, on the far side of the last
    # one, climbs the lower of its two hills.
    assert int((signed.max(dim=0).values > 0.99).sum()) >= 7
    assert not found.signless
    assert float((found.U @ U.T).abs().max(dim=0).values.min()) > 0.99


def test_vectors_are_orthonormal_and_what_they_cause_is_measured():
    J = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))

    def f(x: Tensor) -> Tensor:
        return torch.tanh(x @ J.T)

    found = dct.fit(f, 32, method="melbo", factors=32, scale=1.5, iterations=20)
    torch.testing.assert_close(found.V @ found.V.T, torch.eye(32), rtol=0, atol=1e-5)
    caused = f(1.5 * found.V)
    # The last of 32 orthogonal directions lie where f is nothing: their outputs are rounding.
    torch.testing.assert_close((found.U * caused).sum(1).abs(), caused.norm(dim=1), rtol=1e-4, atol=1e-5)
    assert found.objective.shape == (32, 3)
    assert found.info["p"] == found.info["q"] == 2


def test_each_is_higher_than_random_directions_and_than_its_neighbourhood():
    J = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))

    def f(x: Tensor) -> Tensor:
        return torch.tanh(x @ J.T / 3).cumsum(1)

    found = dct.fit(f, 40, method="melbo", factors=1, scale=3.0, iterations=200)
    v = found.V[0]
    nearby = torch.nn.functional.normalize(v + 0.05 * torch.randn(200, 40), dim=1)
    assert f(3 * v[None]).norm() >= f(3 * nearby).norm(dim=1).max()


@pytest.mark.parametrize(("p", "q"), [(2.0, 2.0), (2.0, 1.0), (4.0, 1.0), (3.0, 2.0)])
def test_objective_is_the_post_s_over_prompts_and_tokens(make_lm, prompts, p, q):
    """Sum over prompts of (sum over tokens |Delta_t|^p)^(1/q), from the model's own hidden states in float64."""
    lm = make_lm("llama", dtype=F64)
    slice_ = dct.Slice(lm, prompts, 1, 4, positions=3)
    theta = 0.7 * torch.randn(2, lm.width, generator=torch.Generator().manual_seed(1), dtype=F64)
    measured = pooled(slice_, p, q)(theta)
    for vector, value in zip(theta, measured, strict=True):
        wanted = 0.0
        for ids in lm.encode(prompts):
            rows = []
            for added in (torch.zeros_like(vector), vector):
                with dct.steer(lm, added, 1), torch.no_grad():
                    states = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
                rows.append(states[4][0, -3:])
            wanted += float((rows[1] - rows[0]).norm(dim=1).pow(p).sum() ** (1 / q))
        assert float(value) == pytest.approx(wanted, rel=1e-5)


def test_positions_of_different_prompts_stay_apart(make_lm, prompts):
    slice_ = dct.Slice(make_lm("llama"), prompts, 1, 4, positions="all")
    lengths = [len(row) for row in slice_.ids]
    assert slice_.prompt_of_target.tolist() == [k for k, n in enumerate(lengths) for _ in range(n)]
    assert slice_.responses(torch.zeros(1, slice_.dim)).abs().max() < 1e-5
    theta = torch.randn(2, slice_.dim)
    weighted = (slice_.responses(theta) * slice_.weights[:, None]).sum(1)
    torch.testing.assert_close(weighted, slice_(theta), rtol=1e-4, atol=1e-5)


def test_of_a_map_without_tokens_it_is_the_norm():
    x = torch.randn(3, 5)
    torch.testing.assert_close(pooled(lambda t: t, 2.0, 1.0)(x), x.square().sum(1, keepdim=True))


@pytest.mark.parametrize("after", [1, 3])
def test_resuming_gives_the_same_vectors_to_the_bit(after):
    J = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    states: list[State] = []
    options = {"method": "melbo", "factors": 5, "scale": 2.0, "iterations": 7}

    def f(x: Tensor) -> Tensor:
        return torch.tanh(x @ J.T)

    whole = dct.fit(f, 16, **options, checkpoint=states.append)
    assert [s.iteration for s in states] == [1, 2, 3, 4, 5]
    told: list[tuple[str, int, int]] = []
    again = dct.fit(f, 16, **options, resume=states[after - 1], progress=lambda *a: told.append(a))
    assert torch.equal(whole.V, again.V)
    assert torch.equal(whole.objective, again.objective)
    assert told[-1][1] == told[-1][2]


def test_more_vectors_than_dimensions_or_exponents_that_cannot_be():
    with pytest.raises(UsageError, match="at most 4"):
        dct.fit(lambda x: x, 4, method="melbo", factors=5, scale=1.0)
    with pytest.raises(UsageError, match="exponents"):
        dct.fit(lambda x: x, 4, method="melbo", factors=2, scale=1.0, p=0.0)
    with pytest.raises(UsageError, match="state to resume from"):
        dct.fit(lambda x: x, 4, method="melbo", factors=1, scale=1.0, resume=State(torch.eye(4), torch.eye(4), []))
