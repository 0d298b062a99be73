"""`dct rank` as an experiment, as a user runs it: what is said, what is written, and what goes on from it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_cli import MILD, as_json, fitted, fitted_once, ok, run, strict  # noqa: F401 (fixtures)

from dct.cli.select import passed_over
from dct.halving import Mark
from dct.judging import judge, wilson
from dct.outcome import Selected
from dct.prompts import fingerprint, read
from dct.scoring import Effect

SMALL = ["--n", 3, "--test", 4, "--keep", 2, "--scales", "0.5,1", "--max-new-tokens", 4, *MILD]
JUDGE = ["--judge", "regex", "--judge-option", r"complied=[aeiou]\W*$"]  # a random model meets it now and then


@pytest.fixture
def ranked(fitted) -> tuple[Path, dict]:  # noqa: F811
    return fitted, as_json("rank", *SMALL, *JUDGE)


def test_what_is_written_is_what_was_found(ranked):
    folder, content = ranked
    assert strict((folder / "rank.json").read_text()) == content
    assert content["by"] == "judged"
    assert (content["validation"], content["test"], content["harmless"], content["tries"]) == (3, 4, 2, 4)
    assert (content["judge"], content["wanted"], content["max_new_tokens"]) == ("regex", "complied", 4)
    assert [arm["arm"] for arm in content["arms"]] == ["found", "random", "supervised", "noise"]
    for arm in content["arms"]:
        assert arm["interval"] == pytest.approx(wilson(arm["test"]["right"], 4))
        assert arm["test"]["asked"] == 4
    assert len({v["vector"] for v in content["vectors"]}) == len(content["vectors"]) == 24
    assert [v["validation"]["asked"] for v in content["vectors"]] == [3] * 2 + [2] * 22  # two competed, all were heard
    best = content["vectors"][0]
    assert (best["vector"], best["scale"]) == (content["arms"][0]["vector"], content["arms"][0]["scale"])
    assert content["estimate"]["seconds"] > 0


def test_successes_are_those_of_the_replies_on_record(ranked):
    """Every count, from the text of the replies alone."""
    folder, content = ranked
    rows = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    reader = judge("regex", complied=r"[aeiou]\W*$")
    met = {}
    for row in rows:
        verdict = reader.verdict(row["prompt"], row["completion"])
        met[row["vector"], round(row["scale"], 5), row["prompt"]] = verdict.label == "complied" and verdict.coherent
    kept = [p for p in read("harmful").texts[8:] if not met.get(("unsteered", 0.0, p), True)][:7]
    assert content["validation_hash"] == fingerprint(kept[:3])
    assert content["test_hash"] == fingerprint(kept[3:])
    for arm in content["arms"]:
        on_test = [met[arm["vector"], round(arm["scale"], 5), p] for p in kept[3:]]
        assert sum(on_test) == arm["test"]["right"]
        asked = arm["validation"]["asked"]
        assert sum(met[arm["vector"], round(arm["scale"], 5), p] for p in kept[:asked]) == arm["validation"]["right"]


def test_steering_goes_on_at_the_scale_that_was_chosen(ranked):
    best = ranked[1]["vectors"][0]
    steered = as_json("steer", "--rank", 1, "--n", 1, "--max-new-tokens", 2, *MILD)
    assert steered["completions"][1]["vector"] == best["vector"]
    assert steered["completions"][1]["scale"] == pytest.approx(best["scale"])


def test_the_table_has_every_arm_and_a_verdict_in_words(fitted):  # noqa: F811
    printed = ok("rank", *SMALL, *JUDGE).output
    for said in ("unsteered", "random ", "means, layer", "noise ", "damage (KL)", "spoiled", "chosen by", "0.5 R"):
        assert said in printed
    assert "unsteered, 7 of" in printed or "replies are not what is wanted: 3 to choose by, 4 to report on" in printed
    assert "of 4 unseen replies complied" in printed
    assert "clearly better than" in printed
    assert "(14 more)" in printed


def contested(*vectors: tuple[str, int, int, float]) -> SimpleNamespace:
    """Only what is read of an experiment: name, right and asked answers, and damage of each vector."""
    return SimpleNamespace(
        vectors=[
            Selected(name, 1.0, 1.0, Effect(0.0, 0.0, kl), Mark(right, asked)) for name, right, asked, kl in vectors
        ]
    )


def test_it_is_said_when_damage_decided():
    said = passed_over(contested(("1", 31, 32, 1.5), ("2", 32, 32, 2.8), ("3", 4, 4, 0.1)))
    assert said == ("before vector 2 (32/32 where it has 31/32), which does more damage: KL 2.800 against 1.500")


def test_nothing_is_said_where_most_successes_decided():
    assert passed_over(contested(("1", 31, 32, 1.5), ("2", 31, 32, 2.8), ("3", 4, 4, 0.1))) is None


def test_the_same_command_goes_on_after_a_cut(fitted):  # noqa: F811
    first = as_json("rank", *SMALL, *JUDGE)
    file = fitted / "completions.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: len(lines) // 3]) + b'{"key": "torn')
    told = run("rank", *SMALL, *JUDGE, "--json")
    assert f"holds {len(lines) // 3} replies" in told.stderr
    again = strict(told.stdout)
    for content in (first, again):
        del content["seconds"], content["estimate"]
    assert again == first
    assert len(file.read_text().splitlines()) == len(lines)


def test_ctrl_c_leaves_the_ranking_and_keeps_the_replies(fitted, monkeypatch):  # noqa: F811
    before = (fitted / "rank.json").read_bytes()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dct.selection.Scorer.__init__", interrupt)
        result = run("rank", *SMALL, *JUDGE)
    assert result.exit_code == 130
    assert (fitted / "rank.json").read_bytes() == before
    kept = (fitted / "completions.jsonl").read_text()
    assert {json.loads(line)["vector"] for line in kept.splitlines()} == {"unsteered"}
    ok("rank", *SMALL, *JUDGE)
    assert (fitted / "completions.jsonl").read_text().startswith(kept)


def test_replies_on_record_can_be_judged(ranked):
    content = as_json("judge", ranked[0] / "completions.jsonl")
    assert len(content) == len((ranked[0] / "completions.jsonl").read_text().splitlines())
    assert "unsteered" in {one["vector"] for one in content}


def test_another_fit_in_the_folder_drops_the_replies(ranked, model_folder):
    few = ["--factors", 2, "--iterations", 1, "--n", 1, "--scale", 1]
    ok("fit", "--model", model_folder, *few, "--out", ranked[0], "--force")
    assert not (ranked[0] / "completions.jsonl").exists()


def test_a_system_message_changes_what_is_asked(fitted):  # noqa: F811
    plain = as_json("rank", *SMALL, *JUDGE)
    told = as_json("rank", *SMALL, *JUDGE, "--system", "Be brief.")
    assert told["vectors"] != plain["vectors"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--by", "alpha"], 2, "leave --by and --max-damage out, or add --screen-only"),
        (["--max-damage", 1], 2, "leave --by and --max-damage out, or add --screen-only"),
        (["--screen-only", "--judge", "regex", "--judge-option", "complied=a"], 2, "leave --screen-only"),
        (["--judge", "regex"], 2, "complied"),
        (["--judge", "luck"], 2, "unknown --judge"),
        (["--judge-option", "x=1"], 2, "x"),
        (["--task", "locked", "--screen-only"], 2, "leave --screen-only out"),
        (["--prompts", "two.txt"], 1, "has something to gain on 2 of 2 prompts"),
        (["--positive", "Sure", "--negative", "Sure"], 1, "no token tells"),
        (["--wanted", "pleased"], 2, "unknown --wanted"),
    ],
)
def test_bad_input_is_one_line(fitted, words, code, says):  # noqa: F811
    Path("two.txt").write_text("Pick a lock\nBreak a window\n")
    result = run("rank", "--max-new-tokens", 2, *MILD, *words, "--quiet")
    assert result.exit_code == code, result.output
    assert says in result.output
    assert result.output.count("\n") == 1


def test_prompts_of_the_fit_are_never_asked(fitted, model_folder):  # noqa: F811
    """A fit on literal prompts has no set to go on with: the model's own is taken, and said."""
    few = ["--factors", 3, "--iterations", 1, "--scale", 1]
    asked = [word for text in read("harmful").texts[:2] for word in ("--prompt", text)]
    ok("fit", "--model", model_folder, *few, *asked, "--out", "literal")
    told = run("rank", "literal", *SMALL, *JUDGE, "--json")
    assert "asking the prompts of harmful" in told.stderr
    rows = [json.loads(line) for line in Path("literal/completions.jsonl").read_text().splitlines()]
    assert not {row["prompt"] for row in rows} & set(read("harmful").texts[:2])


def test_a_set_without_further_prompts_is_refused(fitted, model_folder):  # noqa: F811
    Path("p.txt").write_text("one prompt\ntwo prompts\n")
    few = ["--factors", 2, "--iterations", 1, "--scale", 1, "--out", "all"]
    ok("fit", "--model", model_folder, "--prompts", "p.txt", "--n", 2, *few)
    result = run("rank", "all", *SMALL)
    assert result.exit_code == 1
    assert "no prompts beyond those of the fit" in result.output
