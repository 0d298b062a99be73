"""Real processes killed at any moment: they leave a folder that the next command goes on from, and no orphan."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dct
from dct.errors import DctError
from dct.runs import Run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

FIT = ["fit", "--factors", "4", "--iterations", "3", "--n", "2", "--scale", "0.35", "--out", "run"]
COMMANDS = {
    "fit": FIT,
    "fit --force": [*FIT, "--seed", "5", "--force"],
    "rank": ["rank", "run", "--screen-only", "--n", "2"],
    "rank --task": ["rank", "run", "--task", "locked", "--n", "2", "--test", "2", "--max-new-tokens", "4"],
    "ablate --save": ["ablate", "run", "--rank", "1", "--n", "1", "--max-new-tokens", "4", "--save", "edited"],
    "bench": ["bench", "--quick", "--only", "i", "--factors", "4", "--shuffles", "1", "--no-figures", "--out", "bench"],
}

DYING = """
import os, signal, sys
left = int(sys.argv.pop(1))
WRITING = ("os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "open")
here = os.getcwd()
def hook(event, arguments):
    global left
    if event not in WRITING or not arguments or not isinstance(arguments[0], (str, os.PathLike)):
        return
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    paths = [os.path.abspath(os.fspath(a)) for a in arguments[:2] if isinstance(a, (str, os.PathLike)) and a]
    if any(path.startswith(here + os.sep) for path in paths):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from dct.cli import main
main()
"""
"""A command that kills itself just before its n-th change of a file or folder below the working folder."""


def start(words: list[str], *, after: int | None = None) -> subprocess.Popen:
    """A command of its own, the n-th of whose changes kills it where `after` says so."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "250"}
    program = [sys.executable, "-m", "dct"] if after is None else [sys.executable, "-c", DYING, str(after)]
    return subprocess.Popen([*program, *words, "--quiet"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(words: list[str]) -> None:
    done = start(words)
    said = done.communicate(timeout=300)
    assert done.returncode == 0, said


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """What the commands make when nothing stops them."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, out in (("fit --force", "forced"), ("fit", "run")):
            finish(COMMANDS[name])
            shutil.copytree("run", out) if out != "run" else None
            if out != "run":
                shutil.rmtree("run")
        finish(COMMANDS["rank"])
        finish(COMMANDS["ablate --save"])
    return folder


def prepared(name: str, whole: Path) -> None:
    for folder in ("run", "bench", "edited"):
        shutil.rmtree(folder, ignore_errors=True)
    if name in ("rank", "rank --task", "fit --force", "ablate --save"):
        shutil.copytree(whole / "run", "run")
    if name.startswith("rank"):
        Path("run/rank.json").unlink()


def orphans() -> list[str]:
    """Files that no command knows by their name."""
    known = {"factors.safetensors", "state.safetensors", "rank.json", "config.toml", "results.json", "report.md"}
    files = [p for folder in ("run", "bench") for p in Path(folder).rglob("*") if p.is_file()]
    beside = {p.name for p in Path().iterdir()} - {"run", "bench", "edited"}
    return [*beside] + [
        str(p)
        for p in files
        if p.name not in known and (p.name.startswith(".") or p.parent.name not in ("cells", "fits", "bench"))
    ]


def check(name: str, whole: Path) -> None:
    """After a kill: nothing is half there, nothing is taken for what it is not, and the work goes on."""
    run = Run(Path("run"), Path("run/factors.safetensors"))
    if run.factors.exists():
        dct.Factors.load(run.factors)
    if run.ranking.exists():
        with contextlib.suppress(DctError):  # of other factors, and says so
            assert run.load_ranking()["factors"] == dct.Factors.load(run.factors).digest
    if name.startswith("fit"):
        unfinished = run.state.exists() and not run.superseded
        if unfinished:
            run.load_state()
            finish(["fit", "--resume", "--out", "run"])
        elif not run.factors.exists() or name == "fit --force":
            finish(COMMANDS[name])
        wanted = whole / ("forced" if name == "fit --force" else "run") / "factors.safetensors"
        one, other = dct.Factors.load(run.factors), dct.Factors.load(wanted)
        assert all(torch.equal(getattr(one, t), getattr(other, t)) for t in ("V", "U", "alpha", "objective"))
        assert not run.superseded or finish(COMMANDS["rank"]) is None
    elif not Path("edited").exists():  # it appears whole or not at all
        finish(COMMANDS[name])
    assert orphans() == []
    if name == "ablate --save":
        one, other = (load_file(folder / "model.safetensors") for folder in (Path("edited"), whole / "edited"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[tensor], other[tensor]) for tensor in one)
        return
    if name == "bench":
        assert Path("bench/results.json").exists()
    else:
        assert not run.state.exists()
        assert not name.startswith("rank") or run.load_ranking()


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("fit", 2),
        ("fit", 14),
        ("fit --force", 13),
        ("rank", 2),
        ("rank --task", 1),
        ("ablate --save", 3),
        ("ablate --save", 8),
        ("bench", 9),
    ],
)
def test_killed_before_a_change_of_the_folder(whole, workplace, name, after):
    prepared(name, whole)
    child = start(COMMANDS[name], after=after)
    child.communicate(timeout=300)
    assert child.returncode in (0, -9)
    assert len(orphans()) <= 1, "only what was about to be renamed"
    check(name, whole)


@pytest.mark.parametrize("name", ["fit", "rank", "ablate --save"])
def test_killed_at_any_time(whole, workplace, name):
    prepared(name, whole)
    child = start(COMMANDS[name])
    time.sleep(random.uniform(0.5, 4))
    child.kill()
    child.communicate(timeout=30)
    assert orphans() == []
    check(name, whole)
