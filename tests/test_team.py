"""One job in several processes: the same numbers as in one, whoever fails or dies."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import dct
from dct import team
from dct.batching import in_batches
from dct.cli import processes
from dct.errors import DctError
from dct.team import Team, hosted

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")

MEMBER = """
import os, sys, torch
torch.set_num_threads(1)
from dct.team import current, joined
out = sys.argv[1]
with joined() as mine:
    assert current() is mine
    work(mine, out)
assert current().size == 1
if sys.platform == "linux":  # none of the group's threads lives on: one that does aborts the process at its end
    names = [open(f"/proc/self/task/{one}/comm").read() for one in os.listdir("/proc/self/task")]
    assert not [name for name in names if "gloo" in name], names
"""

FITS = """
import dct, numpy as np, torch
from dct.calibration import calibrate, nonlinearity
from dct.method import built_in

def f(x):  # nonlinear everywhere, f(0) = 0
    g = torch.Generator().manual_seed(1)
    A, B, C = (torch.randn(12, 12, generator=g, dtype=torch.float64).to(x) / 3 for _ in range(3))
    return torch.tanh(x @ A.T) @ B.T + (x @ C.T) ** 2 / 4

def work(mine, out):
    found = {}
    for method in built_in():
        how = {"factors": 5, "iterations": 4, "scale": 1.3, "seed": 3, "d_proj": 6}
        factors = dct.fit(f, 12, method=method, dtype=torch.float64, **how)
        for name in ("V", "U", "alpha", "objective"):
            found[f"{method} {name}"] = getattr(factors, name).numpy()
    found["scale"] = np.array(dct.calibrate(f, 12, ratio=0.5, seed=1).scale)
    found["curve"] = np.array(nonlinearity(f, 12, [0.5, 1.0], seed=2))
    if mine.leads:
        np.savez(out, **found)
"""


def environment(rank: int, size: int, place: dict[str, str]) -> dict[str, str]:
    """As `dct --processes` sets it."""
    here = {"RANK": str(rank), "WORLD_SIZE": str(size), **place, "OMP_NUM_THREADS": "1"}
    return {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", **here}


def members(work: str, size: int, folder: Path, *, expected: int = 0) -> list[str]:
    """Runs `work(team, out)` in a team of so many processes; what each wrote to stderr."""
    with hosted() as place:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", work + MEMBER, str(folder / "out.npz")],
                env=environment(rank, size, place), stderr=subprocess.PIPE, text=True,
            )
            for rank in range(size)
        ]  # fmt: skip
        said = [one.communicate(timeout=200)[1] for one in started]
    assert [one.returncode for one in started] == [expected] * size, said
    return said


@pytest.mark.parametrize("size", [2, 4])
def test_every_method_and_the_calibration_find_the_same_in_several_processes(tmp_path, size):
    members(FITS, size, tmp_path)
    together = np.load(tmp_path / "out.npz")
    scope: dict[str, Any] = {}
    exec(FITS, scope)  # the same text, in this process
    scope["work"](Team(), tmp_path / "alone.npz")
    alone = np.load(tmp_path / "alone.npz")
    assert set(alone) == set(together)
    for name in alone:
        assert np.allclose(alone[name], together[name], rtol=1e-5, atol=1e-5), name


def test_rows_fall_to_processes_in_nearly_equal_parts_and_none_is_left_out():
    for size in (1, 2, 3, 7):
        for total in (0, 1, 2, 6, 7, 100):
            shares = [Team(rank, size).share(total) for rank in range(size)]
            assert [row for share in shares for row in share] == list(range(total))
            assert max(map(len, shares)) == Team(0, size).most(total)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


GATHERED = """
import torch
from dct.batching import in_batches
from dct.errors import DctError, NonFiniteError
from dct.team import alone
CPU = torch.device("cpu")

def work(mine, out):
    told = []
    def rows(start, stop):
        return (torch.arange(start, stop), [str(k) for k in range(start, stop)])
    for total in (0, 1, 2, 5, 16):
        told.clear()
        parts, _ = in_batches(rows, total, 3, CPU, "", told.append)
        assert [k for part, _ in parts for k in part.tolist()] == list(range(total))
        assert [t for _, texts in parts for t in texts] == [str(k) for k in range(total)]
        assert sum(told) == total, (told, total)  # the others' rows count as done too
    with alone():  # nobody waits for anybody
        for _ in range(mine.rank):
            assert len(in_batches(lambda a, b: a, 4, 1, CPU, "")[0]) == 4

    def failing(start, stop):  # in the last process alone
        if stop == 16:
            raise NonFiniteError("row 15 is not finite")
        return start
    try:
        in_batches(failing, 16, 2, CPU, "")
        raise AssertionError("nothing was raised")
    except NonFiniteError as error:
        assert str(error) == "row 15 is not finite"

    def bug(start, stop):
        if start == 0:
            raise KeyError("nobody foresaw this")
    try:
        in_batches(bug, 16, 2, CPU, "")
        raise AssertionError("nothing was raised")
    except (KeyError, RuntimeError) as error:
        assert mine.leads == isinstance(error, KeyError)
        assert "nobody foresaw this" in str(error)

    assert mine.agreed(lambda: mine.rank) == 0
    def refused():
        raise DctError("the leader says no")
    try:
        mine.agreed(refused)
        raise AssertionError("nothing was raised")
    except DctError as error:
        assert str(error) == "the leader says no"
"""


def test_results_progress_and_errors_reach_every_process(tmp_path):
    members(GATHERED, 3, tmp_path)


def test_a_process_without_a_team_is_its_own_leader(monkeypatch):
    assert team.leads()
    assert team.current().size == 1
    assert not team.several()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not team.several()  # nowhere to meet
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29400")
    assert team.several()
    assert team.follows()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not team.several()
    assert sum(in_batches(lambda start, stop: stop - start, 5, 2, CPU, "")[0]) == 5


# --- the command line -------------------------------------------------------------------------------------------------

FIT = ["fit", "--factors", "6", "--iterations", "3", "--n", "2", "--scale", "0.35"]


def run(words: list[str], folder: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    """A command in a folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "250", **more}
    return subprocess.run(
        [sys.executable, "-m", "dct", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )


def same(one: Path, other: Path) -> None:
    """Two runs hold the same factors."""
    a, b = (dct.Factors.load(path / "factors.safetensors") for path in (one, other))
    for name in ("V", "U", "alpha", "objective"):
        assert torch.allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with the run of one process."""
    folder = tmp_path_factory.mktemp("team")
    done = run([*FIT, "--out", "one"], folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_command_in_two_processes_says_and_writes_what_it_does_in_one(finished):
    done = run([*FIT, "--out", "two", "--processes", "2", "--json"], finished)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["factors"] == 6  # a single document: one process prints
    same(finished / "one", finished / "two")
    assert sorted(p.name for p in (finished / "two").iterdir()) == sorted(p.name for p in (finished / "one").iterdir())
    config = [(finished / name / "config.toml").read_text() for name in ("one", "two")]
    assert config[0] == config[1]  # how many processes there were is no part of what was fitted


def test_a_scan_in_two_processes_measures_what_it_does_in_one(finished):
    words = ["scan", "--n", "1", "--probes", "4", "--directions", "3"]
    for more in ([], ["--processes", "2"]):
        done = run([*words, *more, "--out", f"scan{len(more)}.json", "--json"], finished)
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)
    one, two = (json.loads((finished / name).read_text()) for name in ("scan0.json", "scan2.json"))
    assert one.keys() == two.keys()
    assert one["proposal"]["source"] == two["proposal"]["source"]
    for name in ("gain", "written", "nonlinear"):
        for a, b in zip(one[name], two[name], strict=True):
            assert np.allclose(a, b, rtol=1e-5, atol=1e-7), name


def test_a_wrong_request_is_one_line_from_several_processes(finished):
    done = run([*FIT, "--out", "one", "--processes", "2"], finished)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "already holds factors" in line] == done.stderr.splitlines()
    done = run([*FIT, "--processes", "0"], finished)
    assert done.returncode == 2
    assert "--processes" in done.stderr


def test_a_killed_process_ends_the_job_in_one_line_and_the_fit_goes_on_in_another_number(finished):
    words = ["fit", "--factors", "6", "--iterations", "16", "--tolerance", "0", "--n", "2", "--scale", "0.35"]
    whole = run([*words, "--out", "whole"], finished)
    assert whole.returncode == 0, whole.stderr
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "250"}
    command = [sys.executable, "-m", "dct", *words, "--out", "cut", "--processes", "2"]
    started = subprocess.Popen(
        command, cwd=finished, env=env, stderr=subprocess.PIPE, text=True, stdout=subprocess.PIPE
    )
    state = finished / "cut" / "state.safetensors"
    until = time.monotonic() + 120
    while not state.exists() and time.monotonic() < until:
        time.sleep(0.02)
    workers = [p for p in psutil.Process(started.pid).children() if "RANK" in p.environ()]
    assert len(workers) == 2
    next(p for p in workers if p.environ()["RANK"] == "1").send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, said = started.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert started.returncode == 1
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "process 1 of 2 was killed (SIGKILL)" in errors[0]
    assert "Traceback" not in said
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers)
    assert not (finished / "cut" / "factors.safetensors").exists()
    resumed = run(["fit", "--resume", "--out", "cut"], finished)
    assert resumed.returncode == 0, resumed.stderr
    same(finished / "whole", finished / "cut")


def test_processes_end_with_the_one_that_watches_them(finished):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["fit", "--factors", "6", "--iterations", "500", "--tolerance", "0", "--n", "2", "--scale", "0.35"]
    command = [sys.executable, "-m", "dct", *words, "--out", "orphans", "--processes", "2", "--quiet"]
    started = subprocess.Popen(command, cwd=finished, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    state, until = finished / "orphans" / "state.safetensors", time.monotonic() + 120
    while not state.exists() and time.monotonic() < until:
        time.sleep(0.02)
    workers = psutil.Process(started.pid).children()
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs(workers, timeout=15)
    for one in alive:
        with contextlib.suppress(psutil.Error):
            one.kill()
    assert not alive


def test_a_command_for_one_process_is_done_by_the_first_of_several(finished):
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "2"}
    first, second = (run(["models", "demo", "--json"], finished, RANK=rank, **store) for rank in ("0", "1"))
    assert (first.returncode, second.returncode) == (0, 0)
    assert json.loads(first.stdout)
    assert second.stdout == second.stderr == ""


def test_processes_that_do_not_meet_say_so():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "none"}.items():
            patch.setenv(name, value)
        with pytest.raises(DctError, match="do not find each other"):
            team.joined().__enter__()


def test_a_process_that_dies_while_the_first_one_waits_for_it_is_seen(monkeypatch):
    """Before they have met, the first one waits for the others and does not end by itself."""
    monkeypatch.setattr(processes, "GRACE", 0.2)
    waiting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    dead = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    began = time.monotonic()
    try:
        assert processes._watched([waiting, dead]) == [None, -9]
    finally:
        waiting.kill()
        waiting.wait()
    assert time.monotonic() - began < 20
