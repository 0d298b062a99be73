"""Run folders: which one a command means, and what an interrupted fit leaves in it."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dct import DctError, Factors
from dct.fitting import State
from dct.runs import FACTORS, STATE, Run, find_run, new_run


def factors(seed: int = 0) -> Factors:
    g = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(2, 3, generator=g), torch.randn(2, 3, generator=g), torch.ones(2), torch.ones(1, 3), 1.0)


def make_run(name: str, age: int, file: str = FACTORS) -> Path:
    """A run under runs/ whose file is `age` seconds old."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / file).write_bytes(b"")
    stamp = 1_700_000_000 - age
    os.utime(folder / file, (stamp, stamp))
    return folder


def test_left_out_the_newest_run_is_meant(workplace):
    make_run("a", age=30)
    newest = make_run("b", age=10)
    make_run("c", age=20)
    make_run("unfinished", age=0, file=STATE)
    assert find_run(None) == Run(newest, newest / FACTORS)


def test_left_out_the_newest_interrupted_fit_is_meant_when_resuming(workplace):
    make_run("finished", age=0)
    newest = make_run("b", age=10, file=STATE)
    make_run("a", age=20, file=STATE)
    assert find_run(None, STATE).folder == newest


def test_run_by_folder_and_by_file(workplace):
    folder = make_run("a", age=0)
    other = folder / "other.safetensors"
    other.write_bytes(b"")
    assert find_run(folder) == Run(folder, folder / FACTORS)
    assert find_run(other) == Run(folder, other)
    assert find_run(other).ranking == folder / "rank.json"


@pytest.mark.parametrize(
    ("where", "says"), [(None, "no run under runs/"), ("nowhere", "no run folder or factors file"), (".", "dct fit")]
)
def test_no_run_says_what_to_do(workplace, where, says):
    with pytest.raises(DctError, match=says):
        find_run(None if where is None else Path(where))


def test_unfinished_run_names_the_command_that_finishes_it(workplace):
    folder = make_run("a", age=0, file=STATE)
    with pytest.raises(DctError, match=f"`dct fit --resume --out {folder}`"):
        find_run(folder)


def test_new_runs_are_numbered_and_never_reuse_a_folder(workplace):
    for expected in ("x", "x-2", "x-3"):
        run = new_run(None, "x")
        assert run.folder == Path("runs") / expected
        run.folder.mkdir(parents=True)


def test_out_is_the_run_folder_itself(workplace):
    assert new_run(Path("mine"), "x") == Run(Path("mine"), Path("mine") / FACTORS)
    Path("file").write_text("")
    with pytest.raises(DctError, match="--out file is a file"):
        new_run(Path("file"), "x")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 5),
    d=st.integers(1, 5),
    objective=st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3), max_size=4),
)
def test_state_round_trip_is_exact(workplace, m, d, objective):
    run = new_run(Path("run"), "")
    V, U = torch.randn(m, d), torch.randn(m, d + 1)
    run.save_state(State(V, U, objective), {"model": "m", "options": {"seed": 1}})
    state, config = run.load_state()
    assert torch.equal(state.V, V)
    assert torch.equal(state.U, U)
    assert state.objective == objective
    assert state.iteration == len(objective)
    assert config == {"model": "m", "options": {"seed": 1}}


def test_factors_replace_the_state(workplace):
    run = new_run(Path("run"), "")
    run.save_state(State(torch.ones(1, 2), torch.ones(1, 2)), {})
    run.save_factors(factors())
    assert sorted(p.name for p in Path("run").iterdir()) == [FACTORS]


def test_new_factors_do_not_keep_the_ranking_of_the_old_ones(workplace):
    run = new_run(Path("run"), "")
    run.save_factors(factors(0))
    run.save_ranking({"vectors": [{"vector": "1"}]})
    run.save_factors(factors(1))
    with pytest.raises(DctError, match="dct rank"):
        run.load_ranking()


def test_ranking_round_trip(workplace):
    run = new_run(Path("run"), "")
    run.save_ranking({"vectors": [{"vector": "-1"}], "scale": 0.1})
    assert run.load_ranking() == {"vectors": [{"vector": "-1"}], "scale": 0.1}
    assert json.loads(Path("run/rank.json").read_text())["scale"] == 0.1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"vectors": 1}', '{"vectors": [{}]}', "\0"])
def test_damaged_ranking_is_a_clear_error(workplace, content):
    run = new_run(Path("run"), "")
    run.folder.mkdir()
    run.ranking.write_text(content)
    with pytest.raises(DctError, match="damaged: run `dct rank` again"):
        run.load_ranking()


def test_no_ranking_names_the_command(workplace):
    with pytest.raises(DctError, match="run `dct rank run` first"):
        Run(Path("run"), Path("run") / FACTORS).load_ranking()


def test_damaged_state_is_a_clear_error(workplace):
    folder = make_run("a", age=0, file=STATE)
    with pytest.raises(DctError, match="damaged"):
        find_run(folder, STATE).load_state()
