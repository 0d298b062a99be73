"""Vectors grouped by what a model goes on with: against distances and groups computed by hand, and planted twins."""

import numpy as np
import pytest
import torch
from conftest import WIDTH
from test_ranking import SOURCE, last_logits, tokens

import dct
from dct.kinds import Kind, distances, grouped, kinds
from dct.nexttoken import NextTokens

PROMPTS = ["How do I bake bread?", "Tell me a story", "pick the moon"]


@pytest.fixture(scope="module")
def lm(make_lm) -> dct.LanguageModel:
    return make_lm("llama")


@pytest.fixture(scope="module")
def near(lm) -> NextTokens:
    return NextTokens(lm, SOURCE, lm.encode(PROMPTS))


def directions(n: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=1, keepdim=True)


def test_next_tokens_are_those_of_the_model_s_own_run(lm, near):
    vectors = 5.0 * directions(3)
    for logs, vector in zip(near.logs(vectors), vectors, strict=True):
        own = last_logits(lm, tokens(lm, PROMPTS), vector).log_softmax(-1)
        torch.testing.assert_close(logs.double(), own, rtol=1e-4, atol=1e-4)
    alone = last_logits(lm, tokens(lm, PROMPTS), None).log_softmax(-1)
    torch.testing.assert_close(near.base.double(), alone, rtol=1e-4, atol=1e-4)
    parts = near.under(vectors, lambda logs: logs.argmax(-1))
    assert torch.equal(torch.cat(parts), near.logs(vectors).argmax(-1))


def test_distances_are_squared_hellinger_means():
    p = torch.softmax(4 * torch.randn(6, 3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64), -1)
    d = distances(p.sqrt().half())
    for a in range(6):
        for b in range(6):
            hellinger = (0.5 * (p[a].sqrt() - p[b].sqrt()).square().sum(-1)).mean()
            assert d[a, b] == pytest.approx(float(hellinger), abs=2e-3)
    assert (np.diag(d) == 0).all()
    assert (d == d.T).all()


def test_groups_are_cut_where_they_are_far_from_each_other():
    """Points on a line, joined by mean distances: 0, 0.1 and 0.25 are near, 0.6 is 0.48 from them, 2 is alone."""
    at = np.array([0.0, 0.6, 0.1, 2.0, 0.25])
    d = np.abs(at[:, None] - at[None])
    assert sorted(map(sorted, grouped(d, 0.2))) == [[0, 2, 4], [1], [3]]
    assert sorted(map(sorted, grouped(d, 0.5))) == [[0, 1, 2, 4], [3]]
    assert sorted(map(sorted, grouped(d, 0.15))) == [[0, 2], [1], [3], [4]]
    assert grouped(np.zeros((1, 1))) == [[0]]


def test_twins_are_of_one_kind_and_weak_vectors_change_nothing(near):
    """Three strong vectors that lead elsewhere, one of them with two near copies; two that are hardly there."""
    strong = 60.0 * directions(3)
    copies = strong[[1]] + 0.05 * directions(2, 1)
    vectors = torch.cat([strong, copies, 1e-3 * directions(2, 2)])
    apart = distances(torch.cat(near.under(strong, lambda logs: (logs / 2).exp().half().cpu())))
    assert apart[~np.eye(3, dtype=bool)].min() > 0.06  # else they would be no kinds of their own
    found = kinds(near, vectors, 0.03)
    groups = [(set(kind.members), kind.unchanged) for kind in found]
    assert groups[0] == ({1, 3, 4}, False)
    assert ({5, 6}, True) in groups
    assert ({0}, False) in groups
    assert ({2}, False) in groups
    assert len(groups) == 4
    assert found[0].members[0] in (1, 3, 4)
    assert kinds(near, vectors[:1], 0.03) == [Kind((0,))]


def test_kinds_do_not_depend_on_how_many_vectors_run_together(near, monkeypatch):
    vectors = 40.0 * directions(7, 3)
    whole = kinds(near, vectors, 0.03)
    assert len(whole) > 2
    monkeypatch.setattr(type(near.slice), "value_batch", property(lambda self: 2))
    assert kinds(near, vectors, 0.03) == whole
