"""The calibrated scale against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dct
from dct.calibration import default_calibration, nonlinearity, random_directions

F64 = torch.float64


@settings(max_examples=25, deadline=None)
@given(c=st.floats(1e-4, 1e4), ratio=st.floats(0.05, 3.0), guess=st.floats(1e-3, 1e3))
def test_cubic_map_has_its_closed_form(c, ratio, guess):
    """f(x) = x + c |x|^2 x: |f(Rw) - Rw| / |Rw| = c R^2 for every unit w, so R = sqrt(lambda / c)."""

    def f(x):
        return x + c * x.square().sum(1, keepdim=True) * x

    f.residual_norm = guess  # where the search begins
    found = dct.calibrate(f, 6, ratio, dtype=F64)
    assert found.scale == pytest.approx(math.sqrt(ratio / c), rel=2e-3)
    assert found.ratio == pytest.approx(ratio, rel=1e-3)


def test_ratio_is_the_root_mean_square_over_directions_divided_by_the_linear_part():
    """A map whose ratio differs between directions, against the formula in plain float64."""
    g = torch.Generator().manual_seed(0)
    A, B = torch.randn(5, 8, generator=g, dtype=F64), torch.randn(5, 8, generator=g, dtype=F64)
    f = lambda x: x @ A.T + x.square() @ B.T  # noqa: E731
    found = dct.calibrate(f, 8, 0.5, directions=12, seed=3, dtype=F64)
    w = random_directions(12, 8, 3).double()
    for scale, ratio in found.curve:
        linear, gap = scale * w @ A.T, (scale * w).square() @ B.T
        expected = (gap.norm(dim=1) / linear.norm(dim=1)).square().mean().sqrt()
        assert ratio == pytest.approx(float(expected), rel=1e-9)
    assert found.curve == sorted(found.curve)
    assert (found.scale, found.ratio) in found.curve


def test_a_saturating_curve_says_what_it_reaches():
    """f(x) = x + 0.2 x |x| / (1 + |x|) never deviates by more than a fifth."""

    def f(x):
        n = x.norm(dim=1, keepdim=True)
        return x + 0.2 * x * n / (1 + n)

    with pytest.raises(dct.CalibrationError, match=r"reaches 0\.2 at scale .*`ratio=0\.18`") as caught:
        dct.calibrate(f, 4, 0.5)
    assert max(r for _, r in caught.value.curve) == pytest.approx(0.2, rel=1e-2)


def test_left_out_the_scale_is_within_what_the_streams_bear():
    """f(x) = 2 x + |x|^2 x: ratio R^2 / 2, so R = 1 at lambda = 0.5; |f(R w)| = 2 R + R^3."""
    f = lambda x: 2 * x + x.square().sum(1, keepdim=True) * x  # noqa: E731
    assert default_calibration(f, 5, dtype=F64).scale == pytest.approx(1.0, rel=2e-3)
    f.target_norm = 20.0
    found = default_calibration(f, 5, dtype=F64)
    root = float(np.roots([1, 0, 2, -2]).real[-1])  # 2 R + R^3 = 2
    assert found.scale == pytest.approx(root, rel=0.02)
    assert found.response == pytest.approx(2, rel=0.02)
    assert found.limited
    f.target_norm = 5.0  # 0.2423, where the ratio is 0.03
    assert default_calibration(f, 5, dtype=F64).scale == pytest.approx(math.sqrt(0.5), rel=2e-3)  # where it is 0.25
    f.target_norm = 20.0
    assert found.ratio == pytest.approx(found.scale**2 / 2, rel=1e-6)
    assert default_calibration(f, 5, 0.5, dtype=F64).scale == pytest.approx(1.0, rel=2e-3)  # asked for
    f.residual_norm = 0.1
    assert default_calibration(f, 5, dtype=F64).scale == 0.1
    f.target_norm = 1e9
    assert default_calibration(f, 5, dtype=F64).scale == 0.1


def test_a_limit_is_the_scale_where_the_ratio_is_still_below_lambda_there():
    """f(x) = x + |x|^2 x has ratio R^2: 0.09 at the limit 0.3, and lambda = 0.5 at 0.707."""
    f = lambda x: x + x.square().sum(1, keepdim=True) * x  # noqa: E731
    limited = dct.calibrate(f, 5, 0.5, limit=0.3, dtype=F64)
    assert (limited.scale, limited.limited) == (0.3, True)
    assert limited.ratio == pytest.approx(0.09)
    free = dct.calibrate(f, 5, 0.5, limit=20.0, dtype=F64)
    assert not free.limited
    assert free.scale == pytest.approx(math.sqrt(0.5), rel=2e-3)


def test_the_curve_at_given_scales():
    f = lambda x: x + x.square().sum(1, keepdim=True) * x  # noqa: E731
    curve = nonlinearity(f, 5, [0.1, 2.0], dtype=F64)
    assert curve == [(0.1, pytest.approx(0.01)), (2.0, pytest.approx(4.0))]


def test_a_linear_map_has_no_scale():
    with pytest.raises(dct.CalibrationError, match="linear"):
        dct.calibrate(lambda x: 2 * x, 4)


def test_a_map_without_a_linear_part_is_refused():
    with pytest.raises(dct.CalibrationError, match="no linear part"):
        dct.calibrate(lambda x: x.square(), 4)


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("inf"), float("nan")])
def test_lambda_must_be_positive(ratio):
    with pytest.raises(dct.UsageError, match="`ratio` \\(lambda\\) must be positive") as caught:
        dct.calibrate(lambda x: x + x.square(), 4, ratio)
    assert caught.value.argument == "ratio"


def test_the_slice_offers_its_residual_norm_as_a_start(make_lm, prompts):
    f = dct.Slice(make_lm("llama"), prompts, 1, 4)
    found = dct.calibrate(f, f.dim, 0.5)
    assert any(scale == pytest.approx(f.residual_norm) for scale, _ in found.curve)
    assert found.ratio == pytest.approx(0.5, rel=2e-3)


def test_random_directions_are_unit_and_repeatable():
    w = random_directions(50, 9, 1)
    torch.testing.assert_close(w.norm(dim=1), torch.ones(50))
    assert torch.equal(w, random_directions(50, 9, 1))
    assert not torch.equal(w, random_directions(50, 9, 2))
