"""`dct bench` as a user runs it: fresh folders, resuming, damage, and everything that can be asked wrongly."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_cli import ROOT, as_json, ok, run

from dct.bench import figures

SMALL = ["--quick", "--factors", 4, "--prompts", "harm.txt", "--harmless", "mild.txt", "--scale", 0.9]
CURVES = [*SMALL, "--only", "vi"]


@pytest.fixture
def bench(workplace, model_folder) -> list[object]:
    """The command on a small model, in a fresh folder with prompts of its own."""
    nouns = ("bread", "the sea", "a lock", "the moon", "a child", "flour")
    Path("harm.txt").write_text("".join(f"How do I pick {noun}?\n" for noun in nouns))
    Path("mild.txt").write_text("".join(f"Write a poem about {noun}\n" for noun in nouns))
    return ["bench", "--model", model_folder]


def test_tables_files_and_figures(bench):
    content = as_json(*bench, *SMALL, "--only", "v,vi", "--out", "results")
    assert json.loads(Path("results/results.json").read_text())["experiments"] == content["experiments"]
    assert list(content["experiments"]) == ["v", "vi"]
    with Path("results/vi-training-curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["m"] for row in rows] == ["4", "16"]
    assert [float(row["last"]) for row in rows] == [row["last"] for row in content["experiments"]["vi"]["rows"]]
    assert "## (vi) Training curves" in Path("results/report.md").read_text()
    drawn = {p.name for p in Path("results").glob("*.*g")}
    names = ("v-feature-multiplicity", "vi-training-curves")
    assert drawn == ({f"{n}.{e}" for n in names for e in ("svg", "png")} if figures.available() else set())
    assert set(content["files"]) == {str(p) for p in Path("results").iterdir() if p.is_file()}


def test_what_cannot_be_measured_is_said(bench):
    printed = ok(*bench, *SMALL, "--only", "iii", "--no-figures").output
    assert "no questions with answers (give a task)" in printed
    assert Path("runs/bench-tiny-llama-quick/report.md").exists()


def test_the_judge_can_be_chosen(bench):
    """One that calls everything a refusal hears no answer; one that does not exist is no judge."""
    words = [*SMALL, "--only", "iv", "--no-figures", "--judge", "regex"]
    rows = as_json(*bench, *words, "--judge-option", "refused=.*")["experiments"]["iv"]["rows"]
    assert all("complied" not in row["elicited by"] and "other" not in row["elicited by"] for row in rows)
    assert run(*bench, *words[:-1], "nobody").exit_code == 2


def test_a_task_makes_the_locked_skill_measurable(bench):
    rows = [{"prompt": f"How do I bake bread in {k} steps?", "regex": "^"} for k in range(12)]
    Path("task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [*SMALL, "--only", "iii", "--task", "task.jsonl", "--unlock", "Now: {prompt}", "--no-figures"]
    found = {row["method"]: row for row in as_json(*bench, *words)["experiments"]["iii"]["rows"]}
    assert found["exponential"]["share"] == found["unsteered"]["share"] == found["unlocked"]["share"] == 1.0


def test_the_same_command_goes_on_and_force_starts_over(bench):
    first = ok(*bench, *CURVES, "--no-figures").output
    assert "2 measured now, 0 were on record" in first
    assert "[1/2] (vi) m 4" in first
    [folder] = Path("runs").iterdir()
    before = {p.name: p.stat().st_mtime_ns for p in (folder / "cells").iterdir()}
    assert "0 measured now, 2 were on record" in ok(*bench, *CURVES, "--no-figures").output
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "cells").iterdir()} == before
    assert "2 measured now, 0 were on record" in ok(*bench, *CURVES, "--seed", 1, "--no-figures").output
    assert "2 measured now" in ok(*bench, *CURVES, "--force", "--no-figures").output
    assert len(list((folder / "cells").iterdir())) == 2


def test_damaged_records_are_measured_again_and_that_is_said(bench):
    once = as_json(*bench, *CURVES, "--no-figures")
    [folder] = Path("runs").iterdir()
    next((folder / "cells").iterdir()).write_text("{")
    for path in (folder / "fits").iterdir():
        path.write_bytes(b"no factors")
    printed = ok(*bench, *CURVES, "--no-figures").output
    assert "warning: 2 damaged files" in printed
    assert "1 measured now, 1 were on record" in printed
    again = as_json(*bench, *CURVES, "--no-figures")
    assert again["experiments"] == once["experiments"]


SLOW_BENCH = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import torch
torch.set_num_threads(int(sys.argv.pop(1)))
from dct.cli import main
from dct.bench.records import Records
keep = Records.save
def slow(self, *args):
    keep(self, *args)
    open("log", "a").write("x")  # one letter for every measurement kept
    time.sleep(0.5)
Records.save = slow
main()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_benchmark_that_is_killed_loses_at_most_one_measurement(bench, how):
    words = [*bench, *SMALL, "--only", "ii", "--no-figures", "--out", "cut"]
    threads = str(torch.get_num_threads())
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_BENCH, threads, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    began = time.monotonic()
    while len(list(Path("cut/cells").glob("ii-*.json"))) < 2:
        assert child.poll() is None, child.communicate()
        assert time.monotonic() - began < 300
        time.sleep(0.02)
    child.send_signal(how)
    _, said = child.communicate(timeout=120)
    done = len(Path("log").read_text())
    assert done <= len(list(Path("cut/cells").glob("*.json"))) <= done + 1
    kept = len(list(Path("cut/cells").glob("ii-*.json")))  # beside what the model says unsteered
    if how == signal.SIGINT:
        assert child.returncode == 130
        assert said.splitlines()[-1].startswith("error: interrupted; ")
    again = ok(*words).output
    assert f"{kept} were on record" in again


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--only", "vii"], 2, "unknown experiment 'vii'"),
        (["--only", ""], 2, "choose from i, ii"),
        (["--match", "{answer}"], 2, "belong to --task"),
        (["--unlock", "{prompt}"], 2, "belong to --task"),
        (["--task", "nowhere.jsonl"], 1, "no prompt set"),
        (["--task", "harm.txt"], 1, "neither `answer` nor `regex`"),
        (["--prompts", "two.txt"], 1, "needs 3 and 2 at least"),
        (["--prompts", "empty.txt"], 1, "holds no prompts"),
        (["--s", "4", "--t", "2"], 2, "must lie below"),
        (["--t", "99"], 1, "--target is at most 5"),
        (["--out", "harm.txt"], 1, "is a file"),
    ],
)
def test_bad_input_is_one_line(bench, words, code, says):
    Path("two.txt").write_text("How?\nWhy?\n")
    Path("empty.txt").write_text("")
    result = run(*bench, *SMALL, *words, "--no-figures", "--quiet")
    assert result.exit_code == code, result.output
    assert says in result.output
    assert result.output.count("\n") == 1
    assert not Path("runs").exists()


def test_without_matplotlib_the_tables_are_there_and_the_cure_is_said(bench, monkeypatch):
    monkeypatch.setattr(figures, "available", lambda: False)
    printed = ok(*bench, *CURVES, "--out", "bare").output
    assert "pip install 'deep-causal-transcoders[bench]'" in printed
    assert Path("bare/vi-training-curves.csv").exists()
    assert not list(Path("bare").glob("*.png"))


def test_quiet_is_silent(bench):
    assert ok(*bench, *CURVES, "--no-figures", "--quiet").output == ""
