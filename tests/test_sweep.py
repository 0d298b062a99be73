"""Many fits: what a grid makes, that each is what fit and rank make, and that nothing is lost or done twice."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import dct
from dct.cli import sweepcell
from dct.cli.app import app
from dct.comparing import Opened, pair
from dct.declaration import key
from dct.errors import DctError, UsageError
from dct.plots import figures
from dct.runs import Run, find_run
from dct.settings import SweepFitSettings, SweepPromptSettings, SweepSliceSettings
from dct.settings.sweep import recipes, sources_of, targets_of, wholes_of
from dct.sweep import facts
from dct.sweep.cell import Cell
from dct.sweep.engines import DONE, FAILED, Outcome, serial
from dct.sweep.grid import Grid
from dct.sweep.page import rendered

ROOT = Path(__file__).parents[1]

ASKED = [f"How do I make a {what}?" for what in ("cake", "kite", "raft", "lamp", "drum", "sled")]


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "250"})


def as_json(*words: object) -> dict:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def fails(*words: object, says: str, code: int = 1) -> str:
    result = run(*words)
    assert result.exit_code == code, result.output
    line = result.stderr.splitlines()[-1]
    assert re.search(says, line), line
    assert "Traceback" not in result.output
    return line


@pytest.fixture
def sweep(workplace, model_folder) -> list[object]:
    """A grid of four small fits of the tiny model, without rankings."""
    Path("asked.txt").write_text("\n".join(ASKED))
    Path("mild.txt").write_text("Write a poem\nName a colour")
    model = ["--model", model_folder, "--prompts", "asked.txt", "--harmless", "mild.txt"]
    fit = ["--s", "1,2", "--t", 4, "--seed", "0,1", "--n", 2, "--factors", 3, "--iterations", 2, "--scale", 0.5]
    return ["sweep", *model, *fit, "--fit-only", "--out", "grid"]


@pytest.fixture
def ranked(sweep) -> list[object]:
    """Two of them, screened on two prompts."""
    words = [word for word in sweep if word != "--fit-only"]
    return [*words, "--s", 2, "--screen-only", "--choose-by", 2, "--scales", 1]


def records() -> dict[str, tuple[int, int]]:
    """What says that fits are done, and when it was written."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in Path("grid").glob("*/cell-*.json")}


# --- the grid ---------------------------------------------------------------------------------------------------------


def test_values_as_text():
    assert wholes_of("3, 0-2,1") == (3, 0, 1, 2)
    assert sources_of("all,4") == ("all", 4)
    assert targets_of("12,+06,14-16") == (12, "+6", 14, 15, 16)
    assert SweepFitSettings(seed="0-1", method="linear,melbo").record()["method"] == ["linear", "melbo"]
    for wrong in ({"seed": "2-1"}, {"seed": "x"}, {"seed": ""}, {"seed": "0-99999999"}, {"method": "linear,best"}):
        with pytest.raises(UsageError, match=f"`{next(iter(wrong))}`"):
            SweepFitSettings(**wrong)
    for wrong in ({"source": "every"}, {"target": "+"}, {"target": "+-2"}, {"source": "2000000"}):
        with pytest.raises(UsageError, match=f"`{next(iter(wrong))}`"):
            SweepSliceSettings(**wrong)


def test_pairs_of_layers():
    grid = Grid(slice=SweepSliceSettings(source="all", target="+2,3"))
    assert grid.pairs("x", 5) == ([(0, 2), (0, 3), (1, 3), (2, 4), (2, 3), (3, 5)], 3)
    with pytest.raises(DctError, match="`target` is at most 5: got `source` 4, `target` 14"):
        Grid(slice=SweepSliceSettings(source="4", target="+10")).pairs("x", 5)
    assert len(Grid(slice=SweepSliceSettings(source="all", target="+10")).pairs("x", 32)[0]) == 23


def test_a_grid_is_every_combination_once():
    grid = Grid(
        slice=SweepSliceSettings(source="1,2", target="4"),
        prompts=SweepPromptSettings(n="1,2"),
        fit=SweepFitSettings(seed="0,1", method="linear,quadratic", scale="1,2", factors=3),
    )
    made = grid.recipes("x", 5)
    where = {tuple(facts.axes_of(recipe).items()) for recipe in made}
    assert len(where) == len(made) == 2 * 2 * 2 * 2 * 2
    assert {recipe.fit.factors for recipe in made} == {3}
    assert [recipe.fit.seed for recipe in made[:2]] == [0, 1], "fits that differ in the seed alone stand together"
    with pytest.raises(UsageError, match="leave one or the other out"):
        Grid(fit=SweepFitSettings(ratio="0.5", scale="1")).check()


@pytest.mark.parametrize("name", recipes())
def test_packaged_grids_hold_options_of_the_sweep_alone(name):
    from dct.cli.signature import parameters
    from dct.cli.sweep import sweep as command
    from dct.settings.sweep import recipe_file
    from dct.toml import read_toml

    known = {(p.group.table, p.key) for p in parameters(command)}
    told = {(table, option) for table, values in read_toml(recipe_file(name), "recipe").items() for option in values}
    assert told <= known
    assert key is not None


def test_a_packaged_grid_gives_way_to_flags_and_files(sweep):
    Path("mine.toml").write_text("[prompts]\nn = 2\n")
    words = [
        "--model",
        sweep[2],
        "--prompts",
        "asked.txt",
        "--factors",
        2,
        "--iterations",
        1,
        "--scale",
        0.5,
        "--fit-only",
    ]
    told = as_json("sweep", *words, "--recipe", "source-layers", "--config", "mine.toml", "--t", "+3", "--out", "grid")
    assert [(row["source"], row["target"]) for row in told["rows"]] == [(0, 3), (1, 4), (2, 5)]
    assert {row["prompts"] for row in told["rows"]} == {2}, "the file's, not the recipe's"
    fails("sweep", *words, "--recipe", "source-layers", says="`?target`? ?.*at most 5|--target is at most 5")
    fails("sweep", *words, "--recipe", "best", says="unknown --recipe 'best': choose source-layers", code=2)


# --- what a fit is known by -------------------------------------------------------------------------------------------


def test_what_decides_a_fit_and_what_does_not():
    [recipe] = Grid(slice=SweepSliceSettings(source="1", target="4")).recipes("x", 5)
    cell = Cell(Path("a"), recipe, "sha256:1", ("How?",), None)

    def changed(**groups: dict) -> str:
        """The key with other values of some groups."""
        from dataclasses import replace

        new = {name: getattr(recipe, name).changed(**values) for name, values in groups.items()}
        return Cell(Path("b"), replace(recipe, **new), "sha256:1", ("How?",), None).key

    same = [
        {"fit": {"batch": 3}},
        {"model": {"model": "elsewhere", "device": "cuda", "memory": "8GB"}},
        {"prompts": {"prompts": "moved.txt", "n": 99}},
        {"slice": {"compile": "on"}},
    ]
    other = [
        {"fit": {"seed": 1}},
        {"fit": {"ratio": 0.5}},
        {"fit": {"tolerance": 0.1}},
        {"model": {"dtype": "bfloat16"}},
        {"prompts": {"system": "Be kind."}},
        {"slice": {"positions": 2}},
        {"slice": {"source": 0}},
    ]
    assert {changed(**groups) for groups in same} == {cell.key}
    assert len({cell.key, *(changed(**groups) for groups in other)}) == len(other) + 1
    assert Cell(Path("a"), recipe, "sha256:2", ("How?",), None).key != cell.key
    assert Cell(Path("a"), recipe, "sha256:1", ("How? ",), None).key != cell.key


# --- the command ------------------------------------------------------------------------------------------------------


def test_each_fit_is_what_fit_and_rank_make(ranked, monkeypatch):
    told = as_json(*ranked)
    assert told["axes"] == ["seed"]
    assert [(row["source"], row["seed"]) for row in told["rows"]] == [(2, 0), (2, 1)]
    words = ["--model", ranked[2], "--prompts", "asked.txt", "--s", 2, "--t", 4, "--seed", 1]
    small = ["--n", 2, "--factors", 3, "--iterations", 2, "--scale", 0.5, "--out", "alone"]
    assert run("fit", *words, *small).exit_code == 0
    other = as_json("rank", "alone", "--screen-only", "--n", 2, "--harmless", "mild.txt")
    last = told["rows"][1]
    alone, mine = (find_run(Path(where)) for where in ("alone", last["folder"]))
    assert torch.equal(dct.Factors.load(alone.factors).V, dct.Factors.load(mine.factors).V)
    gain = other["vectors"][0]["effect"]["score"] - other["unsteered"]["score"]
    assert (last["vector"], last["gain"]) == (other["vectors"][0]["vector"], pytest.approx(gain, abs=1e-5))
    assert last["random_gain"] == pytest.approx(other["random_best"]["score"] - other["unsteered"]["score"], abs=1e-5)
    fits = [Opened(Run(p, p / "factors.safetensors"), dct.Factors.load(p / "factors.safetensors"), p.name)
            for p in (Path(row["folder"]) for row in told["rows"])]  # fmt: skip
    assert last["stability"]["mean"] == pytest.approx(pair(*fits)["V"]["mean"])
    _nothing_again(ranked, told, monkeypatch)


def _nothing_again(words: list[object], told: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command, a larger grid, another ranking, and fits that are damaged: only what is missing is done."""
    fitted: list[str] = []
    ranked: list[str] = []
    fit, rank = sweepcell._fitted, sweepcell._ranked
    monkeypatch.setattr(sweepcell, "_fitted", lambda t, cell, lm: fitted.append(cell.name) or fit(t, cell, lm))
    monkeypatch.setattr(sweepcell, "_ranked", lambda t, cell, *rest: ranked.append(cell.name) or rank(t, cell, *rest))
    before = records()
    assert as_json(*words)["rows"] == told["rows"]
    more = as_json(*words, "--seed", "0-2")["rows"]
    assert (len(fitted), len(ranked), len(more)) == (1, 1, 3)
    assert fitted[0].startswith("exponential-2-4-2-")
    assert [row["gain"] for row in more[:2]] == [row["gain"] for row in told["rows"]]
    otherwise = as_json(*words, "--choose-by", 1)
    assert (len(fitted), len(ranked)) == (1, 3), "fits are kept where the ranking is another"
    assert otherwise["rows"][0]["gain"] != told["rows"][0]["gain"]
    assert as_json(*words)["rows"] == told["rows"], "and so is what the first ranking said"
    assert before.items() <= records().items()
    damaged = Path(told["rows"][1]["folder"]) / "factors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    again = as_json(*words)["rows"][1]
    assert fitted[1:] == [damaged.parent.name]
    assert again["gain"] == pytest.approx(told["rows"][1]["gain"], abs=1e-6)


def test_folder_page_and_figure(ranked):
    result = run(*ranked, "--plot", "figure.svg")
    assert result.exit_code == 0, result.output
    for part in (
        "stable",
        "[2/2] exponential-2-4-1-",
        "score",
        "the best random vector of the grid",
        "grid/sweep.html",
    ):
        assert part in result.output
    page = Path("grid/sweep.html").read_text()
    folders = [path.parent.name for path in Path("grid").glob("*/factors.safetensors")]
    assert len(folders) == 2
    assert all(folder in page for folder in folders)
    assert page.count("<svg") == 2, "by seed, against damage"
    assert not re.search(r"https?://|<script|src=|href=\"[^#]", page)
    assert str(Path.cwd()) not in page
    assert "Which seed?" in Path("figure.svg").read_text() == Path("grid/sweep.svg").read_text()
    again = as_json("sweep", "--config", "grid/sweep.toml", "--out", "grid")
    assert again["finished"] == len(records()) == 2, "the sweep's own file repeats it"
    words = ["--prompt", "Hi", "--max-new-tokens", 1, "--harmless", "mild.txt"]
    assert run("steer", Path("grid") / folders[0], "--rank", 1, *words).exit_code == 0


def test_a_prompt_set_that_is_used_up_makes_one_fit_of_two(sweep):
    told = as_json(*sweep, "--s", 1, "--seed", 0, "--n", "6,9", "--fit-only")
    assert told["fits"] == 1
    words = [word for word in sweep if word != "--fit-only"]
    fails(*words, "--n", "2,6", says="no prompts beyond the 6 of the fits: lower --n")


# --- judged replies ---------------------------------------------------------------------------------------------------


def _ranking() -> dict:
    """Part of what `dct rank` writes."""

    def arm(name: str, right: int, chosen: int, kl: float) -> dict:
        """An arm."""
        return {
            "arm": name,
            "vector": "3",
            "layer": 0,
            "scale": 2.0,
            "validation": {"right": chosen, "asked": 4},
            "test": {"right": right, "asked": 10},
            "interval": [0.1, 0.6],
            "chance": None,
            "damage": {"kl": kl, "spoiled": 1, "of": 16},
        }

    kinds = {"kinds": [{"unchanged": False}, {"unchanged": True}, {"unchanged": False}], "random_kinds": 1}
    return {
        "by": "judged",
        "arms": [arm("found", 3, 2, 0.5), arm("random", 1, 0, 0.1)],
        "unsteered": {"right": 0, "asked": 10},
        "wanted": "complied",
        "scale": 1.0,
        "kinds": kinds,
    }


def _row(source: int, right: int, chosen: int, random: tuple[int, int]) -> dict:
    content = _ranking()
    for arm, (tested, validated) in zip(content["arms"], ((right, chosen), random), strict=True):
        arm["test"]["right"], arm["validation"]["right"] = tested, validated
    where = {"model": "m", "source": source, "target": 9, "method": "melbo", "lambda": None, "scale": None, "n": 4}
    found = facts._judged(content) | facts._kinds(content)
    rest = {"seed": 0, "folder": f"g/{source}", "R": 1.0, "warnings": [], "stability": None, "seconds": 1.0}
    return where | rest | found


def test_the_best_fit_and_its_baselines_are_chosen_without_their_test():
    rows = [_row(1, 9, 2, (6, 1)), _row(2, 4, 3, (2, 2)), _row(3, 0, 3, (0, 0))]
    assert facts.best(rows)["source"] == 2, "most by the prompts for choosing, not by the test"
    assert facts.best(rows, "random")["source"] == 2
    assert facts.best(rows, "supervised") is None
    content = {"fits": 4, "finished": 3, "rows": rows, "failed": [{"cell": "x<y", "why": "a & b"}]}
    page = rendered(content)
    assert "source 2: vector 3, 4/10 (10–60)" in page
    assert "unsteered 0/10, a random vector 2/10" in page
    assert "<td>2 (1)</td>" in page, "kinds that change something, and those of random vectors"
    assert "x&lt;y" in page
    titles = [title for title, _ in figures.grid(rows)]
    assert titles == ["Which source?", "At what cost?"]
    words = figures.grid([{**row, "source": 1, "method": f"m{k}"} for k, row in enumerate(rows)])[0]
    assert words[0] == "Which method?"
    assert ">m2</text>" in words[1].svg()
    assert figures.grid([{**rows[0], "by": None}]) == []


@pytest.mark.slow
def test_replies_are_judged(workplace):
    """One fit of the demo model, as small as it can be."""
    Path("mild.txt").write_text("Tell me about honey.")
    words = ["--s", 0, "--t", 8, "--factors", 2, "--iterations", 1, "--scale", 0.85, "--n", 1, "--keep", 1]
    few = [
        "--choose-by",
        2,
        "--test",
        2,
        "--scales",
        1,
        "--max-new-tokens",
        3,
        "--harmless",
        "mild.txt",
        "--out",
        "grid",
    ]
    [row] = as_json("sweep", *words, *few)["rows"]
    [found, *others] = json.loads((Path(row["folder"]) / "rank.json").read_text())["arms"]
    assert row["arms"]["found"]["test"] == found["test"]
    assert set(row["arms"]) == {"found", *(arm["arm"] for arm in others)}
    assert row["unsteered"]["asked"] == 2
    assert row["arms"]["found"]["damage"]["of"] == 1


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_wrong_usage(sweep, monkeypatch):
    fails(*sweep, "--lambda", 0.5, says="--scale says what --lambda would find", code=2)
    fails(*sweep, "--method", "melbo,cpe", says="cpe changes a band of blocks, which a sweep does not go over", code=2)
    fails(*sweep, "--s", "4", "--t", "2,3", says="must lie below the target layer", code=2)
    fails(*sweep, "--t", 40, says="--target is at most 5")
    fails(*sweep, "--method", "melbo", "--method-options", "q=x", says="q", code=2)
    fails(*sweep, "--judge", "regex", says="--judge reads completions: leave --fit-only and --screen-only out", code=2)
    fails(*sweep, "--seed", "one", says="--seed takes whole numbers with commas between", code=2)
    fails(*sweep, "--plot", "figure.pdf", says="--plot is an .svg or a .png file", code=2)
    fails(*sweep, "--model", "/nowhere/model", says="nowhere")
    assert not Path("grid").exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    fails(*sweep, "--engine", "ray", says=r"needs Ray: pip install 'deep-causal-transcoders\[ray\]'")
    Path("grid").write_text("")
    fails(*sweep, says="--out grid is a file|cannot write grid")


def test_one_fit_that_fails_does_not_end_the_others(sweep, monkeypatch):
    fit = sweepcell._fitted

    def failing(terminal: object, cell: Cell, lm: object) -> object:
        """One of the four cannot be fitted."""
        if (cell.recipe.slice.source, cell.recipe.fit.seed) == (1, 1):
            raise DctError("the objective is not finite: lower `scale`")
        return fit(terminal, cell, lm)

    monkeypatch.setattr(sweepcell, "_fitted", failing)
    line = fails(
        *sweep, says=r"1 of 4 fits failed \(exponential-1-4-1-\w+: the objective is not finite: lower --scale\)"
    )
    assert "what is finished is kept" in line
    assert len(records()) == 3
    failed = run(*sweep, "--json")
    assert failed.exit_code == 1
    assert [one["why"] for one in json.loads(failed.stdout)["failed"]] == ["the objective is not finite: lower `scale`"]
    assert "the objective is not finite" in Path("grid/sweep.html").read_text()
    before = records()
    monkeypatch.setattr(sweepcell, "_fitted", fit)
    assert as_json(*sweep)["finished"] == 4
    assert before.items() <= records().items()


def test_prompts_that_change_under_way(sweep, monkeypatch):
    load = sweepcell._model

    def changing(terminal: object, cell: Cell) -> object:
        """Somebody writes into the file once the sweep is planned."""
        Path("asked.txt").write_text("\n".join(reversed(ASKED)))
        return load(terminal, cell)

    monkeypatch.setattr(sweepcell, "_model", changing)
    fails(*sweep, says="4 of 4 fits failed .*asked.txt has changed since the sweep began: run it again")
    assert not list(Path("grid").glob("*/*")), "no fit of other prompts than its key says"


@pytest.mark.parametrize("after", [3, 12])
def test_a_disk_that_fills_ends_the_sweep_and_loses_nothing(sweep, monkeypatch, after):
    whole, left = os.fsync, after

    def filling(descriptor: int) -> None:
        """A disk with room for so many files."""
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", filling)
        fails(*sweep, says="cannot write .*: No space left on device; free some space")
    before = records()
    assert len(before) < 4
    told = as_json(*sweep)
    assert (told["finished"], len(records())) == (4, 4)
    assert before.items() <= records().items()
    assert [str(p) for p in Path("grid").rglob("*") if p.name.startswith(".") or "state" in p.name] == []


def test_interrupted_within_a_fit(sweep, monkeypatch):
    whole, saved = Run.save_state, []

    def stopping(self: Run, *state: object) -> None:
        """Ctrl+C behind the first iteration of the second fit."""
        whole(self, *state)
        saved.append(self.folder)
        if len(set(saved)) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", stopping)
        result = run(*sweep)
    assert result.exit_code == 130
    assert "interrupted; 1 of 4 fits are finished" in result.stderr
    kept = Run(saved[-1], saved[-1] / "factors.safetensors")
    assert kept.load_state()[0].iteration == 1
    assert as_json(*sweep)["finished"] == 4
    found = dct.Factors.load(kept.factors)
    shutil.rmtree("grid")
    assert as_json(*sweep)["finished"] == 4
    assert torch.equal(found.V, dct.Factors.load(kept.factors).V)


def test_cells_that_another_process_has_are_waited_for(monkeypatch):
    from dct.lock import TakenError
    from dct.sweep import engines

    monkeypatch.setattr(engines, "PAUSE", 0.01)
    asked: list[str] = []

    def do(cell: str) -> str:
        """`b` is another's for a while, `c` fails."""
        asked.append(cell)
        if cell == "b" and asked.count("b") < 3:
            raise TakenError("another dct is writing")
        if cell == "c":
            raise DctError("no")
        return cell.upper()

    ended = dict(serial(["a", "b", "c"], do))
    assert ended == {"a": Outcome(DONE, "A"), "b": Outcome(DONE, "B"), "c": Outcome(FAILED, "no")}
    assert "".join(asked) == "abcbb"


TOLD = """
import sys
from dct.sweep.cell import Cell
whole = Cell.keep
def keep(self, *what):
    open("kept.txt", "a").write(self.name + "\\n")
    whole(self, *what)
Cell.keep = keep
from dct.cli import main
main()
"""
"""The program, which writes down what it finishes."""


def started(words: list[object], **more: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1", **more}
    line = [sys.executable, "-c", TOLD, *map(str, words)]
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(something: object, process: subprocess.Popen, seconds: float = 120) -> None:
    """Waits until it is true; fails where the process ends before."""
    ends = time.monotonic() + seconds
    while not something():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.slow
def test_two_sweeps_in_one_folder_one_of_them_killed(sweep):
    words = [*sweep, "--seed", "0-5", "--json"]
    first, second = started(words), started(words)
    until(lambda: len(records()) >= 2, first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    out, said = second.communicate(timeout=120)
    assert second.returncode == 0, said
    told = json.loads(out)
    assert (told["fits"], told["finished"], len({row["folder"] for row in told["rows"]})) == (12, 12, 12)
    kept = Path("kept.txt").read_text().split()
    assert len(set(kept)) == 12
    assert len(kept) <= 13, "nothing was finished twice, but for what was killed while it was written"
    assert [str(p) for p in Path("grid").rglob("*") if p.name.startswith(".") or "state" in p.name] == []


# --- ray --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_ray_a_worker_and_the_driver_die_and_every_result_is_there_once(sweep):
    pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    words = [*sweep, "--seed", "0-5", "--engine", "ray", "--json"]
    first = started(words)

    def workers() -> list:
        """Processes of this driver that do a cell."""
        below = psutil.Process(first.pid).children(recursive=True)
        return [one for one in below if one.name().startswith("ray::_on_worker")]

    until(lambda: records() and workers(), first)
    workers()[0].kill()
    until(lambda: len(records()) >= 6, first)
    first.kill()
    first.communicate()
    before = records()
    second = started(words)
    out, said = second.communicate(timeout=300)
    assert second.returncode == 0, said
    told = json.loads(out)
    assert (told["finished"], len({row["folder"] for row in told["rows"]}), len(records())) == (12, 12, 12)
    assert before.items() <= records().items()
    found = {Path(row["folder"]).name: dct.Factors.load(Path(row["folder"]) / "factors.safetensors").V
             for row in told["rows"]}  # fmt: skip
    shutil.rmtree("grid")
    for row in as_json(*sweep, "--seed", "0-5")["rows"]:
        alone = dct.Factors.load(Path(row["folder"]) / "factors.safetensors").V
        assert torch.allclose(found[Path(row["folder"]).name], alone, atol=1e-5)


@pytest.mark.slow
def test_ray_says_what_is_wrong(sweep):
    pytest.importorskip("ray")
    fails(*sweep, "--engine", "ray", "--cpus", 900, says="no machine of this Ray has 900 CPUs: lower --cpus to")
    assert records() == {}
