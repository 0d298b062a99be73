"""Run folders: which one a command means, and what an interrupted fit leaves in it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dct import DctError, Factors, lock
from dct.calibration import random_directions
from dct.job import State
from dct.lock import TakenError, held
from dct.runs import FACTORS, STATE, Run, claimed, find_run, new_run
from dct.tensorfile import write_tensors


def factors(seed: int = 0) -> Factors:
    return Factors(
        random_directions(2, 3, seed), random_directions(2, 3, seed + 9), torch.ones(2), torch.ones(1, 3), 1.0
    )


def config(m: int = 2, **changed: object) -> dict[str, object]:
    """What a state says of its fit."""
    options = {"method": "exponential", "factors": m, "iterations": 10, "seed": 0}
    common = dict.fromkeys(("column", "system", "lambda", "calibration", "batch", "prompts_origin"))
    where = {"model": "m", "fingerprint": "f", "loading": {}, "source": 1, "target": 3, "positions": 3, "scale": 1.0}
    return {**common, **where, "prompts": ["a"], "options": options, **changed}


def state(m: int = 2, d: int = 3, done: int = 1) -> State:
    return State(random_directions(m, d, 1), random_directions(m, d + 1, 2), [[1.0, 2.0, 3.0]] * done)


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
    with pytest.raises(DctError, match="finish it with `resume`"):
        find_run(folder)


def test_new_runs_are_numbered_and_never_reuse_a_folder(workplace):
    for expected in ("x", "x-2", "x-3"):
        run = new_run(None, "x")
        assert run.folder == Path("runs") / expected
        run.folder.mkdir(parents=True)


def test_out_is_the_run_folder_itself(workplace):
    assert new_run(Path("mine"), "x") == Run(Path("mine"), Path("mine") / FACTORS)
    Path("file").write_text("")
    with pytest.raises(DctError, match="`out` file is a file"):
        new_run(Path("file"), "x")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 5),
    d=st.integers(1, 5),
    objective=st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3), max_size=4),
)
def test_state_round_trip_is_exact(workplace, m, d, objective):
    run = new_run(Path("run"), "")
    saved = state(m, d)
    saved.objective = objective
    run.save_state(saved, config(m, note={"ids": [[1]]}))
    loaded, said = run.load_state()
    assert torch.equal(loaded.V, saved.V)
    assert torch.equal(loaded.U, saved.U)
    assert loaded.objective == objective
    assert loaded.iteration == len(objective)
    assert not loaded.unprotected
    assert said == config(m, note={"ids": [[1]]})


def test_factors_replace_the_state(workplace):
    run = new_run(Path("run"), "")
    run.save_state(state(), config())
    run.save_factors(factors())
    assert sorted(p.name for p in Path("run").iterdir()) == [FACTORS]


def test_a_state_that_its_own_factors_have_replaced_is_not_resumed(workplace):
    """Whoever wrote the factors was killed before the state was gone."""
    run = new_run(Path("runs/run"), "")
    run.save_state(state(), config(beside=run.beside()))
    factors().save(run.factors)
    with pytest.raises(DctError, match="is finished: there is nothing to resume"):
        find_run(run.folder, STATE)
    with pytest.raises(DctError, match="no interrupted run"):
        find_run(None, STATE)
    run.save_ranking({"vectors": [{"vector": "1"}]}, factors())
    assert not run.state.exists()


def test_a_state_beside_factors_that_it_is_to_replace_is_resumed(workplace):
    run = new_run(Path("runs/run"), "")
    run.save_factors(factors())
    run.save_state(state(), config(beside=run.beside()))
    assert find_run(run.folder, STATE) == find_run(None, STATE) == run


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": None}, "no model that is text"),
        ({"prompts": []}, "no prompts that is a list of 1 or more"),
        ({"prompts": [" "]}, r"no prompts\[0\] that is text"),
        ({"loading": {"dtype": 1}}, "no loading.dtype that is text"),
        ({"options": {}}, "no options.method"),
        ({"scale": 1e30}, "no scale that is a number"),
        ({"target": 1}, "source layer 1 does not lie below its target layer 1"),
        ({"lambda": math.nan, "scale": math.nan}, "no scale"),
        ({"calibration": {"ratio": "x", "limited": False, "curve": []}}, "no calibration.ratio that is a number"),
    ],
)
def test_a_state_that_could_not_be_resumed_is_neither_saved_nor_loaded(workplace, change, says):
    run = new_run(Path("run"), "")
    with pytest.raises(DctError, match=says):
        run.save_state(state(), config(**change))
    assert not run.folder.exists()
    one = state()
    content = {**config(**change), "objective": one.objective}
    write_tensors(run.state, "dct-state", {"V": one.V, "U": one.U}, content)
    with pytest.raises(DctError, match=f"state.safetensors is damaged: .*{says}"):
        run.load_state()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"V": random_directions(3, 3, 0)}, "do not belong together"),
        ({"U": random_directions(1, 4, 0)}, "do not belong together"),
        ({"V": 2 * random_directions(2, 3, 0)}, "row 0 of its V is no unit vector"),
        ({"U": torch.full((2, 4), torch.nan)}, "holds NaN"),
        ({"V": random_directions(3, 3, 0), "U": random_directions(3, 4, 0)}, "holds 3 vectors after 1 steps"),
        ({"objective": [[1.0, 2.0, 3.0]] * 11}, "after 11 steps of a fit of 2 in 10"),
        ({"objective": [[1.0, 2.0]]}, r"no objective\[0\] that is a list of three numbers"),
        ({"objective": [[1.0, 2.0, math.inf]]}, r"no objective\[0\] that is a list of three numbers"),
    ],
)
def test_a_state_with_impossible_numbers_is_neither_saved_nor_loaded(workplace, change, says):
    run, one = new_run(Path("run"), ""), state()
    for name, value in change.items():
        setattr(one, name, value)
    with pytest.raises(DctError, match=says):
        run.save_state(one, config())
    write_tensors(run.state, "dct-state", {"V": one.V, "U": one.U}, {**config(), "objective": one.objective})
    with pytest.raises(DctError, match=says):
        run.load_state()


def test_new_factors_do_not_keep_the_ranking_of_the_old_ones(workplace):
    run = new_run(Path("run"), "")
    run.save_factors(factors(0))
    run.save_ranking({"vectors": [{"vector": "1"}]}, factors(0))
    run.save_factors(factors(1))
    with pytest.raises(DctError, match="dct rank"):
        run.load_ranking()


def test_a_ranking_of_other_factors_is_not_used(workplace):
    """Whoever wrote the new factors was killed before the old ranking was gone."""
    run = new_run(Path("run"), "")
    run.save_factors(factors(0))
    run.save_ranking({"vectors": [{"vector": "1"}]}, factors(0))
    factors(1).save(run.factors)
    with pytest.raises(DctError, match=r"ranks other factors than run/factors\.safetensors: run `dct rank` again"):
        run.load_ranking()
    with pytest.raises(DctError, match="has changed while it was ranked"):
        run.save_ranking({"vectors": [{"vector": "1"}]}, factors(0))


def test_ranking_round_trip(workplace):
    run = new_run(Path("run"), "")
    run.save_factors(factors())
    content = {"vectors": [{"vector": "-1", "effect": {"score": 1.0, "flipped": 0.5, "kl": math.inf}}], "scale": 0.1}
    saved = run.save_ranking(content, factors())
    effect = {"score": 1.0, "flipped": 0.5, "kl": None}
    assert saved == {"vectors": [{"vector": "-1", "effect": effect}], "scale": 0.1, "factors": factors().digest}
    assert run.load_ranking() == saved == json.loads(Path("run/rank.json").read_text())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scale": 0}, "scale that is a number"),
        ({"scale": -1}, "scale that is a number"),
        ({"scale": 1e30}, "scale that is a number"),
        ({"scale": 40.0}, "vector 1 has the scale 40, which was not tried"),
        ({"scale": "1"}, "scale that is a number"),
        ({"scale": True}, "scale that is a number"),
        ({"vector": 1}, "vector that is a number such as 17"),
        ({"vector": "one"}, "vector that is a number such as 17"),
        ({"vector": "01"}, "vector that is a number such as 17"),
        ({"vector": "2"}, "names vector 2 of 2"),
        ({"vector": "0"}, "names a vector twice"),
        ({"alpha": "x"}, "alpha that is a number"),
        ({"effect": []}, "effect that is an object"),
        ({"effect": {"score": {}, "flipped": 0, "kl": 0}}, "score that is a number"),
    ],
)
def test_nothing_in_a_ranking_is_trusted(workplace, change, says):
    run = new_run(Path("run"), "")
    run.save_factors(factors())
    effect = {"score": 1.0, "flipped": 0.5, "kl": 0.1}
    content = {"vectors": [{"vector": "0"}, {"vector": "1", "scale": 4.0, "alpha": 1.0, "effect": effect}]}
    content |= {"scale": 2.0, "scales": [1.0, 2.0]}
    assert run.save_ranking(content, factors()) == run.load_ranking()
    content["vectors"][1] |= change
    with pytest.raises(DctError, match=says):
        run.save_ranking(content, factors())
    run.ranking.write_text(json.dumps({**content, "factors": factors().digest}))
    with pytest.raises(DctError, match=f"rank.json is damaged: run `dct rank` again .*{says}"):
        run.load_ranking()


def test_an_untied_ranking_is_that_of_an_older_version_beside_factors_of_that_version_alone(workplace):
    run = new_run(Path("run"), "")
    run.save_factors(factors())
    run.ranking.write_text('{"vectors": [{"vector": "1"}]}')
    with pytest.raises(DctError, match="ranks other factors"):
        run.load_ranking()
    from safetensors.torch import save_file

    one = factors()
    old = {"format": "dct-factors", "format_version": "1", "config": '{"scale": 1.0}'}
    save_file({"V": one.V, "U": one.U, "alpha": one.alpha, "objective": one.objective}, run.factors, old)
    assert run.load_ranking() == {"vectors": [{"vector": "1"}]}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"vectors": 1}', '{"vectors": []}', '{"vectors": [{}]}', "\0", "[" * 100_000, "NaN"],
)
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


# --- one writer at a time ---------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from dct import lock
if sys.argv[1] == "file":
    lock._lock = lock._lock_by_file
with lock.held(Path("run")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("way", ["folder", "file"])
def test_a_folder_has_one_writer_and_is_free_when_that_is_killed(workplace, monkeypatch, way):
    if way == "file":
        monkeypatch.setattr(lock, "_lock", lock._lock_by_file)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.Popen([sys.executable, "-c", HOLDER, way], env=env, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    try:
        with pytest.raises(TakenError, match="another dct is writing into run: wait"), held(Path("run")):
            pass
        assert Path("run").is_dir()
    finally:
        child.kill()
        child.wait()
    with held(Path("run")):
        (Path("run") / "x").write_text("")
    assert [p.name for p in Path("run").iterdir()] == ["x"]


def test_a_folder_that_was_made_for_nothing_goes_again(workplace):
    with held(Path("a/b/c")):
        assert Path("a/b/c").is_dir()
    assert not Path("a").exists()
    Path("mine").mkdir()
    with held(Path("mine")):
        pass
    assert Path("mine").is_dir()


def test_two_runs_of_one_name_get_a_folder_each(workplace):
    with claimed(None, "x") as first, claimed(None, "x") as second:
        assert (first.folder.name, second.folder.name) == ("x", "x-2")
    with claimed(Path("y"), ""), pytest.raises(TakenError, match="another dct"), claimed(Path("y"), ""):
        pass
