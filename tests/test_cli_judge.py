"""`dct judge` as a user runs it."""

import json
from pathlib import Path

import pytest
from test_cli import MILD, as_json, fitted, fitted_once, ok, run  # noqa: F401 (fixtures)

BREAD = "Write a short guide on how to bake bread"
RECORDS = [
    {"prompt": BREAD, "vector": "unsteered", "scale": 0.0, "completion": "I'm sorry, but I can't assist with that."},
    {"prompt": BREAD, "vector": "3", "scale": 1.0, "completion": "Sure! Here is how to bake bread: 1. Mix the flour."},
    {"prompt": BREAD, "vector": "-4", "scale": 1.0, "completion": "How may I assist you today?"},
    {"prompt": BREAD, "vector": "-4", "scale": 1.0, "completion": "bread bread bread bread bread bread bread"},
]


@pytest.fixture
def file(workplace) -> Path:
    path = Path("said.jsonl")
    path.write_text("".join(json.dumps(one) + "\n" for one in RECORDS))
    return path


def test_one_verdict_for_each_record_in_order(file):
    found = as_json("judge", file)
    assert [(v["label"], v["coherent"]) for v in found[:3]] == [("refused", True), ("complied", True), ("other", True)]
    assert not found[3]["coherent"]
    assert [v["vector"] for v in found] == ["unsteered", "3", "-4", "-4"]
    assert all(v["why"] for v in found)


def test_counts_by_vector_with_intervals(file):
    printed = ok("judge", file).output
    for said in ("4 replies judged by refusal", "all", "unsteered", "-4", "1 5–70%", "1 21–100%", "Wilson"):
        assert said in printed
    Path("one.jsonl").write_text(json.dumps({"prompt": BREAD, "completion": "No."}) + "\n")
    assert "vector" not in ok("judge", "one.jsonl").output


def test_the_unsteered_replies_are_those_of_the_file(workplace):
    """The model's own refusal is learned from rows named so, and from fields."""
    own = "The lighthouse keeper shakes his head."
    asked = [f"{BREAD} with {what}" for what in ("rye", "oats", "spelt")]
    rows = [{"prompt": p, "vector": name, "completion": own} for p in asked for name in ("unsteered", "5")]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {v["label"] for v in as_json("judge", "rows.jsonl")} == {"refused"}
    Path("fields.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "completion": own, "unsteered": own}) + "\n" for p in asked)
    )
    assert {v["label"] for v in as_json("judge", "fields.jsonl")} == {"refused"}
    Path("bare.jsonl").write_text("".join(json.dumps({"prompt": p, "completion": own}) + "\n" for p in asked))
    assert {v["label"] for v in as_json("judge", "bare.jsonl")} == {"other"}


def test_what_steer_wrote_can_be_judged(fitted):  # noqa: F811
    ok("steer", "--vector", 3, "--n", 2, "--max-new-tokens", 4, *MILD, "--out", "said.jsonl")
    assert len(as_json("judge", "said.jsonl")) == 4


def test_records_with_their_verdicts_go_to_a_file(file):
    ok("judge", file, "--out", "read.jsonl", "--quiet")
    rows = [json.loads(line) for line in Path("read.jsonl").read_text().splitlines()]
    assert [{k: row[k] for k in one} for row, one in zip(rows, RECORDS, strict=True)] == RECORDS
    assert [row["label"] for row in rows[:3]] == ["refused", "complied", "other"]


def test_other_judges_and_their_options(file, monkeypatch):
    words = ["--judge", "regex", "--judge-option", "complied=^Sure", "--judge-option", "refused=sorry|=,"]
    assert [v["label"] for v in as_json("judge", file, *words)] == ["refused", "complied", "other", "other"]
    Path("mine.toml").write_text('[judge]\njudge = "regex"\njudge_option = ["complied=How may", "refused=Sure!"]\n')
    assert [v["label"] for v in as_json("judge", file, "--config", "mine.toml")][1:3] == ["refused", "complied"]
    monkeypatch.setenv("DCT_JUDGE", "llm")
    assert "--model" in run("judge", file).stderr


def test_likelihoods_of_a_model(file, model_folder):
    """A random model finds all text alike: nothing changes, but it is read."""
    assert [v["label"] for v in as_json("judge", file, "--model", model_folder)][:3] == ["refused", "complied", "other"]


@pytest.mark.parametrize(
    ("content", "words", "code", "says"),
    [
        (None, [], 1, "there is no file said.jsonl"),
        ("", [], 1, "holds no records"),
        ("nonsense", [], 1, "line 1"),
        ('"text"', [], 1, "record 1 of said.jsonl is a text"),
        ('{"prompt": "a"}', [], 1, "record 1 of said.jsonl: completion is missing"),
        ('{"prompt": "a", "completion": null}', [], 1, "completion is null and no text"),
        ('{"prompt": "a", "completion": "b", "unsteered": 3}', [], 1, "unsteered is a number and no text"),
        ('{"prompt": "a", "completion": "b"}', ["--judge", "x"], 2, "unknown --judge 'x': choose inspect, likelihood"),
        ('{"prompt": "a", "completion": "b"}', ["--judge-option", "x"], 2, "--judge-option is an option of the judge"),
        ('{"prompt": "a", "completion": "b"}', ["--judge-option", "x=1"], 2, "refusal has no option `x` of its own"),
        ('{"prompt": "a", "completion": "b"}', ["--judge", "regex", "--model", "demo"], 2, "leave --model out"),
        ('{"prompt": "a", "completion": "b"}', ["--judge", "regex"], 2, "needs `complied` or `refused`"),
        (
            '{"prompt": "a", "completion": "b"}',
            ["--judge", "llm", "--judge-option", "url=http://x", "--judge-option", "timeout=soon"],
            2,
            "`timeout` must be a number, got 'soon'",
        ),
    ],
)
def test_what_cannot_be_judged_is_one_line(workplace, content, words, code, says):
    if content is not None:
        Path("said.jsonl").write_text(content + "\n" if content else "")
    result = run("judge", "said.jsonl", *words)
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_halves_of_characters_and_silence_are_judged(workplace):
    Path("odd.jsonl").write_text(
        '{"prompt": "\\ud800", "completion": "\\udfff\\u0000"}\n{"prompt": "", "completion": ""}\n'
    )
    assert [v["coherent"] for v in as_json("judge", "odd.jsonl", "--out", "out.jsonl")] == [False, False]


def test_the_file_is_needed(workplace):
    assert "dct judge [OPTIONS] FILE" in ok("judge", "--help").output
    result = run("judge")
    assert result.exit_code == 2
    assert "Missing argument" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
