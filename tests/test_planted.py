"""`dct bench planted`: maps whose factors are known, against their definitions, and how many of them fits recover."""

import json
import math
from pathlib import Path

import pytest
import torch
from test_cli import as_json, ok, run
from torch.nn.functional import normalize

import dct
from dct.bench.planted import Blind, Planted, strongest
from dct.bench.recovery import Cell, frontier, measure, plan
from dct.fits.shared import strengths
from dct.settings import PlantedSettings
from dct.settings.planted import KINDS

CPU = torch.device("cpu")
SMALL = ["--widths", 16, "--true", "1/2,1", "--learned", "1,2", "--iterations", 3]


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, width, generator=draw), dim=1)


# --- the maps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_zero_at_zero_and_treats_rows_by_themselves(kind):
    f = Planted(kind, 24, 12, 3)
    x = 2 * rows(5, 24, 0)
    assert float(f(torch.zeros(2, 24)).abs().max()) < 1e-5
    torch.testing.assert_close(f(x)[3:4], f(x[3:4]))
    torch.testing.assert_close(f(x.double()).float(), f(x), rtol=1e-4, atol=1e-4)
    assert not torch.equal(f(x), Planted(kind, 24, 12, 4)(x))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "noise"])
def test_a_term_is_steepest_where_it_is_said_to_be(kind):
    """Of a map with a single term: the greatest response on the sphere, by ascent from many random directions."""
    f, scale = Planted(kind, 6, 1, 1), 4.0
    x = rows(64, 6, 5).double().requires_grad_()
    for _ in range(400):
        [gradient] = torch.autograd.grad(f(scale * normalize(x, dim=1)).norm(dim=1).log().sum(), x)
        x = normalize(x + 0.05 * gradient, dim=1).detach().requires_grad_()
    lengths = f(scale * x).norm(dim=1)
    best = x[lengths > 0.9999 * lengths.max()].detach()
    cosines = torch.stack([best @ T[0].double() for T in f.targets(scale)])
    assert float(cosines.max(dim=0).values.min()) > 0.999
    assert float(cosines.max(dim=1).values.min()) > 0.999  # each of the two is one of the highest hills


def test_kinds_are_what_they_are_called():
    orthogonal, correlated, heavy = (Planted(k, 64, 64, 0) for k in ("orthogonal", "correlated", "heavy"))
    for rows_ in (orthogonal.V, orthogonal.U):
        torch.testing.assert_close(rows_ @ rows_.T, torch.eye(64), atol=1e-5, rtol=0)
    cosines = correlated.V @ correlated.V.T
    group = torch.arange(64) // 8
    same = (group[:, None] == group[None]) & ~torch.eye(64, dtype=torch.bool)
    assert float(cosines[same].mean()) == pytest.approx(0.5, abs=0.05)
    assert float(cosines[~same & (cosines < 0.99)].mean()) == pytest.approx(0.0, abs=0.05)
    strengths_ = Planted("heavy", 8, 20_000, 0).U.norm(dim=1)
    assert float((strengths_ > 10).float().mean()) == pytest.approx(10**-1.5, rel=0.1)
    assert float(heavy.U.norm(dim=1).min()) >= 0.999


def test_noise_is_as_strong_as_the_factors():
    f = Planted("noise", 64, 64, 0)
    x = 4 * rows(200, 64, 9)
    noise = f.noise(x)
    alone = float((f(x) - noise).norm(dim=1).median() / noise.norm(dim=1).median())
    assert alone == pytest.approx(1.0, abs=0.15)


def test_a_fit_s_own_draws_are_not_the_factors():
    """Calibration and start draw directions by the same seed."""
    f = Planted("uniform", 64, 64, 0)
    for seed in range(5):
        assert float((f.V @ dct.calibration.random_directions(64, 64, seed).T).max()) < 0.8


# --- recovery ---------------------------------------------------------------------------------------------------------


def test_as_many_factors_as_dimensions_are_recovered_by_default():
    found = measure(Cell("uniform", 128, 1.0, 2.0, 0), PlantedSettings(), CPU)
    assert found["close"] > 0.97
    assert found["chance"] < 0.4
    assert found["scale"] == pytest.approx(math.sqrt(128) / 2, rel=0.15)


def test_fewer_learned_than_true_are_true_ones():
    found = measure(Cell("uniform", 128, 1.0, 0.5, 0), PlantedSettings(), CPU)
    assert found["of learned"] > 0.97
    assert 0.4 < found["close"] <= 0.5


def test_rounds_find_what_strong_factors_hide():
    cell = Cell("heavy", 128, 0.5, 2.0, 0)
    once, rounds = (measure(cell, PlantedSettings(rounds=n), CPU)["close"] for n in (1, 8))
    assert rounds > once + 0.25
    assert rounds > 0.9


def test_the_strongest_outputs_are_taken_once():
    outputs = torch.diag(torch.tensor([1.0, 5.0, 3.0, 4.0]))
    outputs = torch.cat([outputs, 4.5 * normalize(torch.tensor([[0.1, 1.0, 0.0, 0.0]]), dim=1)])
    seen = strongest(outputs, torch.zeros(0, 4), 2)
    torch.testing.assert_close(seen.abs(), torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 1]]))
    more = strongest(outputs, seen, 1)
    torch.testing.assert_close(more.abs()[2], torch.tensor([0.0, 0, 1, 0]))
    f = Planted("uniform", 4, 3, 0)
    x = rows(5, 4, 1)
    torch.testing.assert_close(Blind(f, seen)(x), f(x) * torch.tensor([1.0, 0, 1, 0]))


def test_the_frontier_is_the_last_before_the_first_failure():
    def row(of: float, share: float, closer: float, learned: float = 2.0) -> dict[str, object]:
        return {"map": "m", "width": 8, "of width": of, "of true": learned, "> 0.9": share, "> 0.99": closer}

    table = [row(4, 0.95, 0.9), row(1, 0.95, 0.95), row(2, 0.9, 0.89), row(1, 0.5, 0.5, 0.5), row(1, 0.8, 0.7, 1.0)]
    assert [(r["learned each"], r["at > 0.9"], r["at > 0.99"]) for r in frontier(table)] == [
        (2.0, 4, 1),
        (1.0, 0, 0),
    ]


def test_cells_are_planned_cheapest_first_and_none_that_cannot_be():
    cells = plan(PlantedSettings(widths="16,32", true="1,2", learned="1", networks=2))
    assert len(cells) == 2 * (7 + 6) * 2
    assert [c.cost for c in cells] == sorted(c.cost for c in cells)
    assert plan(PlantedSettings(true="2", learned="1", orthogonalize="qr")) == []


def test_the_ridge_solves_what_the_decomposition_solves(monkeypatch):
    V, U = rows(40, 64, 0), rows(40, 64, 1)
    b = torch.rand(40, generator=torch.Generator().manual_seed(2)).double() + 1
    exact = torch.linalg.solve((U.double() @ U.double().T) * torch.expm1(V.double() @ V.double().T), b)
    monkeypatch.setattr(strengths, "DECOMPOSED", 1)
    torch.testing.assert_close(strengths.strengths("exponential", V, U, b), exact, rtol=1e-5, atol=1e-5)
    # Factors that coincide share their strength, as in the solution of least norm.
    twice = strengths.strengths("exponential", torch.cat([V, V[:1]]), torch.cat([U, U[:1]]), torch.cat([b, b[:1]]))
    torch.testing.assert_close(twice[[0, 40]], exact[:1].repeat(2) / 2, rtol=1e-4, atol=1e-4)


# --- the command ------------------------------------------------------------------------------------------------------


def test_tables_files_and_figure(workplace):
    content = as_json("bench", "planted", *SMALL, "--true", 1, "--out", "found")
    assert list(content["experiments"]) == ["recovery", "frontier"]
    table = content["experiments"]["recovery"]["rows"]
    assert len(table) == 7 * 2
    assert {row["map"] for row in table} == set(KINDS)
    assert all(0 <= row["> 0.99"] <= row["> 0.9"] <= 1 for row in table)
    on_disk = json.loads(Path("found/results.json").read_text())
    assert on_disk["experiments"] == content["experiments"]
    drawn = Path("found/recovery.svg").read_text()
    assert all(f"{kind}, width 16" in drawn for kind in KINDS)
    assert set(content["files"]) == {str(p) for p in Path("found").iterdir() if p.is_file()}


def test_the_same_command_goes_on_and_force_starts_over(workplace):
    words = ["bench", "planted", *SMALL, "--maps", "uniform"]
    assert "4 measured now, 0 were on record" in ok(*words).output
    kept = {p.name: p.stat().st_mtime_ns for p in Path("runs/bench-planted/cells").iterdir()}
    assert "0 measured now, 4 were on record" in ok(*words).output
    assert {p.name: p.stat().st_mtime_ns for p in Path("runs/bench-planted/cells").iterdir()} == kept
    assert "4 measured now" in ok(*words, "--force").output
    assert "4 measured now" in ok(*words, "--rounds", 2).output


def test_time_that_is_up_leaves_the_rest_for_later(workplace):
    words = ["bench", "planted", *SMALL, "--maps", "uniform"]
    cut = as_json(*words, "--seconds", 1e-9)
    assert cut["left"] == 4
    assert cut["experiments"]["recovery"]["rows"] == []
    assert as_json(*words)["left"] == 0


def test_the_scale_can_be_given(workplace):
    [row] = as_json("bench", "planted", *SMALL[:2], "--true", 1, "--learned", 1, "--maps", "gated", "--scale", 3)[
        "experiments"
    ]["recovery"]["rows"]
    assert row["R"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["planted", "--maps", "cubic"], "unknown map 'cubic' in --maps: choose from orthogonal, uniform,"),
        (["planted", "--true", "0"], "--true are positive multiples with commas between, such as 1/4,1,2: got '0'"),
        (["planted", "--learned", "1/0"], "--learned are positive multiples"),
        (["planted", "--widths", "4"], "--widths are widths of 8 or more"),
        (["planted", "--true", "2", "--maps", "orthogonal"], "nothing to measure: orthogonal factors are no more"),
        (["planted", "--device", "abacus"], "unknown --device 'abacus'"),
        (["--seed", "1", "planted"], "--seed stands before planted: put options behind it (see `"),
        (["plantd"], "No such command 'plantd'"),
    ],
)
def test_what_is_asked_wrongly_is_said(workplace, words, said):
    result = run("bench", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not Path("runs").exists()


def test_help_of_the_benchmark_names_it_and_has_its_own():
    whole = " ".join(ok("bench", "--help").stdout.split())
    assert "six experiments" in whole
    assert "planted Measure how many factors a fit recovers" in whole
    assert "[OPTIONS] [COMMAND]" in whole
    assert "--learned" in ok("bench", "planted", "--help").stdout
