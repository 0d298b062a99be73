"""`dct organism` prints as every other command does: notes, one table, one JSON document, one-line errors."""

import json
import shutil
from pathlib import Path

import pytest
from test_cli import run

from dct.organism import DEMO_DIR, measure, training

RATE = measure.Rate("refusal of harmful requests", "refusal", 0.96, 0.95, True, 100)
STEERED = measure.Steerability(3, 12.0, 0.7, {"compliance": 0.9, "refusal": 0.1}, {"refusal": 1.0})


@pytest.fixture
def measured(workplace, monkeypatch) -> list[int]:
    """Rates that need no completions; keeps how many conversations were asked for."""
    counts: list[int] = []

    def card(lm, count=100, seed=0, planted=None, tell=None):
        counts.append(count)
        for name in ("a", "b"):
            tell(name)
        return [RATE]

    monkeypatch.setattr(measure, "card", card)
    monkeypatch.setattr(measure, "steerability", lambda lm, tell=None: [STEERED])
    return counts


@pytest.fixture
def trained(measured, monkeypatch) -> list[dict]:
    """Training that takes three steps and ends in the demo model; keeps what it was asked for."""
    asked: list[dict] = []

    def train(recipe, out, resume=False, report=None):
        asked.append({"steps": recipe.training.steps, "seed": recipe.training.seed, "resume": resume})
        shutil.copytree(DEMO_DIR, out, dirs_exist_ok=True)
        for step in (1, 2, 3):
            report(training.Progress("words", step, 3, 1.0 / step, 10, 0.5 * step))

    monkeypatch.setattr(training, "train", train)
    return asked


def test_evaluate_prints_a_table(measured):
    printed = run("organism", "evaluate", "--count", 7, "--steering").output
    assert measured == [7]
    for said in ("refusal of harmful requests", "96.0%", ">= 95%", "ok", "refusals flipped", "90%"):
        assert said in printed


@pytest.mark.parametrize("words", [["evaluate", "--steering"], ["train", "--out", "mine", "--steps", 3]])
def test_json_is_one_document_and_quiet_is_silent(trained, words):
    result = run("organism", *words, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["rates"] == [
        {
            "name": RATE.name,
            "wanted": "refusal",
            "share": 0.96,
            "bound": 0.95,
            "at_least": True,
            "count": 100,
            "met": True,
        }
    ]
    assert content["steerability"][0]["supervised"] == {"compliance": 0.9, "refusal": 0.1}
    assert run("organism", *words, "--quiet").output == ""


def test_train_writes_the_card_and_says_what_is_next(trained):
    result = run("organism", "train", "--out", "mine", "--steps", 3, "--seed", 5)
    assert result.exit_code == 0, result.output
    assert trained == [{"steps": 3, "seed": 5, "resume": False}]
    assert RATE.name in Path("mine/README.md").read_text()
    for said in (
        "words 3/3 loss 0.3333",
        "1 of 1 kept",
        "dct fit --model mine --s 0 --t 8 --prompts mine/prompts/harmful.jsonl",
    ):
        assert said in result.output


def test_interrupted_training_says_how_to_go_on(measured, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    result = run("organism", "train", "--out", "my model", "--seed", 3)
    assert result.exit_code == 130
    assert result.output.startswith("error: interrupted")
    assert "dct organism train --out 'my model' --steps 5000 --seed 3 --learning-rate 0.0012 --resume" in result.output


def test_options_go_before_the_recipe_and_the_folder_s_recipe_before_the_demo_s(measured, monkeypatch):
    asked = []

    def interrupted(recipe, *_):
        asked.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    Path("mine.toml").write_text('[template]\ndefault_system = "Be kind."\n[training]\nsteps = 7\nseed = 2\n')
    result = run("organism", "train", "--out", "made", "--recipe", "mine.toml", "--seed", 3)
    assert "--out made --recipe mine.toml --steps 7 --seed 3 --learning-rate 0.0012 --resume" in result.output
    assert (asked[0].training.steps, asked[0].training.seed) == (7, 3)
    assert asked[0].template.default_system == "Be kind."
    Path("made").mkdir()
    shutil.move("mine.toml", "made/recipe.toml")
    run("organism", "train", "--out", "made", "--resume")
    run("organism", "train", "--out", "made")
    assert [(told.template.default_system, told.training.seed) for told in asked[1:]] == [("Be kind.", 2), ("", 0)]


def test_bad_input_is_one_line(workplace):
    Path("file").write_text("")
    for words in (["evaluate", "nowhere"], ["train", "--out", "file"]):
        result = run("organism", *words)
        assert result.exit_code == 1
        assert result.output.startswith("error: ")
        assert result.output.count("\n") == 1
