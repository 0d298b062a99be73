"""The atlas of layers, against dense Jacobians in float64, separate slices, and the calibration's own ratio."""

import json

import pytest
import torch
from conftest import DEPTH, WIDTH
from typer.testing import CliRunner

import dct
from dct.atlas import Ladder, orthonormal
from dct.calibration import nonlinearity, random_directions
from dct.cli.app import app
from dct.derivatives import Derivatives
from dct.proposal import propose
from dct.slice import Slice

F64 = torch.float64
IDS = [[1, 5, 9, 20, 31, 7, 8, 9, 44], [1, 5, 9, 33, 3, 61, 70]]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3"])
def both(request, make_lm):
    lm = make_lm(request.param, dtype=F64)
    return lm, Ladder(Slice(lm, IDS, 0, DEPTH, narrow=False))


def test_one_pull_back_gives_every_source_what_a_slice_of_its_own_gives(both):
    lm, ladder = both
    u = orthonormal(3, WIDTH, 1)
    for target in (1, 3, DEPTH):
        back = ladder.pulled(target, u)
        for source in range(target):
            own = Derivatives(Slice(lm, IDS, source, target), WIDTH, dtype=F64).vjp(u)
            torch.testing.assert_close(back[:, source], own, rtol=1e-6, atol=1e-8)


def test_norms_are_those_of_the_dense_jacobian(both):
    lm, ladder = both
    f = Slice(lm, IDS, 1, 4)
    zero = torch.zeros(1, WIDTH, dtype=F64)
    J = torch.autograd.functional.jacobian(lambda x: f(x)[0], zero)[:, 0]
    exact = ladder.pull(4, orthonormal(WIDTH, WIDTH, 0))
    assert exact.gain[1] == pytest.approx(float(J.norm()) / WIDTH**0.5, rel=1e-6)
    assert exact.written[1] == pytest.approx(float((J - torch.eye(WIDTH)).norm()) / WIDTH**0.5, rel=1e-6)
    assert ladder.pull(4, orthonormal(8, WIDTH, 0)).gain[1] == pytest.approx(exact.gain[1], rel=0.4)


def test_the_ratio_is_the_calibrations(both):
    lm, ladder = both
    w = random_directions(6, WIDTH, 2)
    ratios = ladder.push(1, 0.7, w)
    for target in (2, DEPTH):
        [(_, own)] = nonlinearity(Slice(lm, IDS, 1, target), WIDTH, [0.7], directions=6, seed=2, dtype=F64)
        assert ratios[target - 2] == pytest.approx(own, rel=1e-6)


def test_the_rule_takes_the_last_source_that_writes_and_half_of_what_is_above():
    grid = [[2.0 if s <= 1 else 0.5 for s in range(t)] for t in range(1, 7)]
    bent = [[0.1 * t for _ in range(t)] for t in range(1, 7)]
    assert (propose(grid, bent).source, propose(grid, bent).target) == (1, 4)
    flat = [[0.0] * t for t in range(1, 7)]
    assert not propose(flat, flat).sure
    with pytest.raises(dct.DctError, match="no pair"):
        propose([], [])


def test_scan_and_fit_from_it(workplace, model_folder, tmp_path_factory):
    run = CliRunner().invoke
    done = run(app, ["scan", "--model", str(model_folder), "--n", "2", "--plot", "s.svg", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads((workplace / "scan.json").read_text())
    assert found["complete"]
    assert (workplace / "s.svg").read_text().count("fill-opacity") == DEPTH * (DEPTH + 1) // 2
    # cut after two targets: what is kept is taken, the rest is the same
    cut = {**found, "complete": False, "pulls": found["pulls"][:2], "pushes": []}
    (workplace / "scan.json").write_text(json.dumps(cut))
    fit = ["fit", "--model", str(model_folder), "--n", "2", "--layers-from", "scan.json", "--factors", "2"]
    assert run(app, fit).exit_code == 1
    assert run(app, ["scan", "--model", str(model_folder), "--n", "2"]).exit_code == 0
    assert json.loads((workplace / "scan.json").read_text())["nonlinear"] == found["nonlinear"]
    assert run(app, [*fit, "--s", "1"]).exit_code == 2
    done = run(app, [*fit, "--scale", "1", "--out", "r"])
    assert done.exit_code == 0, done.output
    info = dct.Factors.load(workplace / "r" / "factors.safetensors").info
    assert [info["source"], info["target"]] == [found["proposal"]["source"], found["proposal"]["target"]]
    (workplace / "scan.json").write_text(json.dumps({**found, "fingerprint": "sha256:0"}))
    assert run(app, [*fit, "--force", "--out", "r"]).exit_code == 1
