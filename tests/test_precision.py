"""How far the factors of a fit depend on the precision that its blocks compute in."""

import pytest
import torch

import dct
from dct.prompts import default_origin, read


def leading(factors: dct.Factors, count: int) -> torch.Tensor:
    """An orthonormal basis (columns) of the input directions of the strongest factors."""
    strongest = factors.alpha.argsort(descending=True)[:count]
    return torch.linalg.qr(factors.V[strongest].double().T).Q


@pytest.mark.slow
def test_bfloat16_factors_span_the_float32_ones():
    """Mean squared canonical correlation of the 32 strongest of 64 after ten iterations from the same start."""
    texts = read(default_origin("demo", "harmful")).texts[:8]
    found = []
    for dtype in ("float32", "bfloat16"):
        slice_ = dct.Slice(dct.load("demo", dtype=dtype), texts, 4, 8, positions=3)
        assert slice_.packed
        assert slice_.narrowed
        scale = found[0].scale if found else slice_.residual_norm
        found.append(dct.fit(slice_, slice_.dim, factors=64, scale=scale, iterations=10, orthogonalize="qr", seed=0))
    full, half = (leading(factors, 32) for factors in found)
    assert float(torch.linalg.svdvals(full.T @ half).square().mean()) > 0.99
