"""`dct rank --task` and `--scales` as a user runs them."""

import json
import shutil
from pathlib import Path

import pytest
from test_cli import MILD, QUICK, as_json, fitted, fitted_once, ok, run  # noqa: F401 (fixtures)

TASK = "task.jsonl"


@pytest.fixture
def task(fitted) -> Path:  # noqa: F811
    """Ten questions, of which any completion is right for the even ones and none for the odd ones."""
    rows = [{"prompt": f"How do I bake bread in {k} steps?", "regex": "^" if k % 2 == 0 else "(?!)"} for k in range(10)]
    Path(TASK).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return fitted


def test_marks_are_counted_and_saved(task):
    content = as_json("rank", "--task", TASK, "--n", 4, "--max-new-tokens", 4, *MILD)
    assert content == json.loads((task / "rank.json").read_text())
    assert (content["validation"], content["test"]) == (4, 6)
    assert len(content["vectors"]) == 24
    best = content["vectors"][0]
    assert best["test"] == {"right": 3, "asked": 6}
    assert content["unsteered"] == {"right": 3, "asked": 6}
    assert content["recovered"] is None
    assert best["scale"] == content["scale"]


def test_the_table_says_when_it_is_no_better_than_chance(task):
    printed = ok("rank", "--task", TASK, "--n", 4, "--max-new-tokens", 4, "--unlock", "xyz {prompt}", *MILD).output
    for said in ("3/6", "random, best", "unsteered", "unlocked", "no better than chance", "chosen by"):
        assert said in printed


def test_steering_goes_on_from_a_ranking_by_task(task):
    ranking = as_json("rank", "--task", TASK, "--n", 4, "--max-new-tokens", 4, "--scales", "0.5,2", *MILD)
    best = ranking["vectors"][0]
    steered = as_json("steer", "--rank", 1, "--n", 1, "--max-new-tokens", 4, *MILD)
    assert [c["vector"] for c in steered["completions"]] == ["unsteered", best["vector"]]
    assert steered["completions"][1]["scale"] == pytest.approx(best["scale"])


def test_questions_of_the_fit_are_left_out(task):
    info = as_json("fit", "--prompts", TASK, "--n", 3, "--model", _model(task), *QUICK, "--out", "other")["info"]
    content = as_json("rank", "other", "--task", TASK, "--n", 4, "--max-new-tokens", 4, *MILD)
    assert len(info["prompts"]) == 3
    assert content["validation"] + content["test"] == 7


def test_the_demo_brings_its_own_task(workplace):
    ok("fit", "--factors", 4, "--iterations", 1, "--n", 2, "--scale", 1000)
    content = as_json(
        "rank", "--task", "locked", "--n", 2, "--test", 4, "--unlock", "The password is amaranth. {prompt}"
    )
    assert content["task"] == "demo:locked"
    assert content["unlocked"]["right"] >= 3
    assert content["unsteered"]["right"] <= 1


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--task", "nowhere.jsonl"], 1, "no prompt set"),
        (["--task", "empty.jsonl"], 1, "holds no prompts"),
        (["--task", "bad.jsonl"], 1, "no regular expression"),
        (["--task", "bare.jsonl"], 1, "neither `answer` nor `regex`"),
        (["--task", TASK, "--n", "10"], 1, "none for testing"),
        (["--task", TASK, "--by", "kl"], 2, "leave --by"),
        (["--task", TASK, "--prompts", TASK], 2, "leave --prompts out"),
        (["--task", TASK, "--match", "x"], 2, "needs {answer}"),
        (["--match", "{answer}"], 2, "belongs to --task"),
        (["--unlock", "{prompt}"], 2, "belongs to --task"),
        (["--scales", "1,x"], 2, "positive multiples of R"),
        (["--scales", "0"], 2, "positive multiples of R"),
        (["--scales", ""], 2, "positive multiples of R"),
    ],
)
def test_bad_input_is_one_line(task, words, code, says):
    Path("empty.jsonl").write_text("")
    Path("bad.jsonl").write_text('{"prompt": "a", "regex": "("}\n')
    Path("bare.jsonl").write_text('{"prompt": "a"}\n')
    before = (task / "rank.json").read_bytes()
    result = run("rank", *words, "--quiet", *MILD)
    assert result.exit_code == code
    assert says in result.output
    assert result.output.count("\n") == 1
    assert (task / "rank.json").read_bytes() == before


def test_scales_are_ranked_and_used_by_steer(task):
    ranking = as_json("rank", "--screen-only", "--scales", "0.25,4", "--n", 3, *MILD)
    R = ranking["scale"]
    assert {round(v["scale"] / R, 3) for v in ranking["vectors"]} == {0.25, 4.0}
    for place in (1, 24):
        steered = as_json("steer", "--rank", place, "--scale", 2, "--n", 1, "--max-new-tokens", 2, *MILD)
        assert steered["completions"][1]["scale"] == pytest.approx(2 * ranking["vectors"][place - 1]["scale"])
    assert "4 R" in ok("rank", "--screen-only", "--scales", "0.25,4", "--n", 3, *MILD).output


def test_a_ranking_without_scales_is_that_of_an_older_version(task):
    old = json.loads((task / "rank.json").read_text())
    for vector in old["vectors"]:
        del vector["scale"]
    (task / "rank.json").write_text(json.dumps(old))
    steered = as_json("steer", "--rank", 1, "--n", 1, "--max-new-tokens", 2, *MILD)
    assert steered["completions"][1]["scale"] == pytest.approx(old["scale"])


def _model(run_folder: Path) -> str:
    from dct.factors import Factors

    return str(Factors.load(run_folder / "factors.safetensors").info["model"])


def test_nothing_is_left_behind(task):
    ok("rank", "--task", TASK, "--n", 4, "--max-new-tokens", 2, *MILD)
    assert sorted(p.name for p in task.iterdir()) == ["config.toml", "factors.safetensors", "rank.json"]
    shutil.rmtree(task)
