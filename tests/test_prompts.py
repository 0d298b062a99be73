"""Prompt sets: every reader gives back what was written, and says in one line why it cannot."""

import csv
import io
import json
import math
import re
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dct.errors import DctError, UsageError
from dct.prompts import PACKAGED, PromptSet, default_origin, fingerprint, read

# NUL and carriage returns do not survive a text file; everything else must.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1).filter(str.strip)
TEXTS = st.lists(TEXT, min_size=1, max_size=6)
in_folder = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Line separators of Unicode that are no line ends in any file format.
SEPARATORS = ["\u2028", "\x85", "\x0c", "\x1e"]


# --- readers ----------------------------------------------------------------------------------------------------------


def test_text_file_one_prompt_a_line_without_blank_lines_and_byte_order_mark(workplace):
    (workplace / "p.txt").write_bytes("\ufefffirst\n\n  second \r\n \nthird".encode())
    assert read("p.txt").texts == ("first", "second", "third")


def test_jsonl_takes_prompts_answers_and_skips_blank_lines(workplace):
    (workplace / "p.jsonl").write_text('{"prompt": "2 + 2?", "answer": 4}\n\n{"prompt": "3 + 3?", "answer": "6"}\n')
    found = read("p.jsonl")
    assert found.texts == ("2 + 2?", "3 + 3?")
    assert found.answers == ("4", "6")
    assert found.origin == "p.jsonl"


def test_answers_are_dropped_unless_every_prompt_has_one(workplace):
    (workplace / "p.jsonl").write_text('{"prompt": "a", "answer": 4}\n{"prompt": "b"}\n')
    assert read("p.jsonl").answers == ()


def test_json_list_of_strings_and_of_objects(workplace):
    (workplace / "strings.json").write_text('["a", "b\\nc"]')
    (workplace / "objects.json").write_text('[{"instruction": "a"}, {"instruction": "b"}]')
    assert read("strings.json").texts == ("a", "b\nc")
    assert read("objects.json").texts == ("a", "b")


def test_csv_with_quoted_newlines_commas_and_quotes(workplace):
    (workplace / "p.csv").write_text('id,prompt\n1,"two\nlines"\n2,"a, ""b"""\n')
    assert read("p.csv").texts == ("two\nlines", 'a, "b"')


def test_tab_separated(workplace):
    (workplace / "p.tsv").write_text("goal\tx\nhello, you\t1\n")
    assert read("p.tsv").texts == ("hello, you",)


def test_first_known_column_in_order_of_preference_whatever_its_case(workplace):
    (workplace / "p.csv").write_text("text,Goal,other\nt,g,o\n")
    assert read("p.csv").texts == ("g",)


def test_named_column_wins(workplace):
    (workplace / "p.csv").write_text("prompt,other\np,o\n")
    assert read("p.csv", column="other").texts == ("o",)


@in_folder
@given(texts=TEXTS, ascii_only=st.booleans())
def test_json_round_trip(workplace, texts, ascii_only):
    (workplace / "p.json").write_text(json.dumps(texts, ensure_ascii=ascii_only), encoding="utf-8")
    assert read("p.json").texts == tuple(texts)


@in_folder
@given(texts=TEXTS, ascii_only=st.booleans())
def test_jsonl_round_trip(workplace, texts, ascii_only):
    lines = [json.dumps({"prompt": text}, ensure_ascii=ascii_only) for text in texts]
    (workplace / "p.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read("p.jsonl").texts == tuple(texts)


@in_folder
@given(texts=TEXTS, quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_csv_round_trip(workplace, texts, quoting):
    out = io.StringIO()
    writer = csv.writer(out, quoting=quoting, lineterminator="\n")
    writer.writerows([["number", "prompt"], *([str(k), text] for k, text in enumerate(texts))])
    (workplace / "p.csv").write_text(out.getvalue(), encoding="utf-8")
    assert read("p.csv").texts == tuple(texts)


@pytest.mark.parametrize("separator", SEPARATORS)
def test_text_file_is_split_at_line_ends_only(workplace, separator):
    (workplace / "p.txt").write_text(f"one{separator}prompt\nanother\n", encoding="utf-8")
    assert read("p.txt").texts == (f"one{separator}prompt", "another")


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "\n \n", "holds no prompts"),
        ("a.json", "[]", "holds no prompts"),
        ("a.json", '{"prompt": "a"}', "no list"),
        ("a.json", '["a", {"prompt": "b"}]', "mixes strings and objects"),
        ("a.json", "[1, 2]", "neither"),
        ("a.json", '["a", ""]', "prompt 2 of a.json is empty"),
        ("a.json", "[", "cannot read a.json"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": null}\n', "prompt 2 of a.jsonl is empty"),
        ("a.jsonl", '{"prompt": "a"}\n{"goal": "b"}\n', "no column prompt"),
        ("a.csv", "x,y\n1,2\n", "it has x, y: pass --column"),
        ("a.csv", "x,y\n1,2,3\n", "it has x, y"),
        ("a.csv", "x,prompt\n1\n", "prompt 1 of a.csv is empty"),
        ("a.csv", "prompt,x\n", "holds no prompts"),
    ],
)
def test_unusable_file_says_why(workplace, name, content, says):
    (workplace / name).write_text(content)
    with pytest.raises(DctError, match=re.escape(says)):
        read(name)


def test_file_that_is_no_text(workplace):
    (workplace / "a.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DctError, match=r"cannot read a\.csv"):
        read("a.csv")


def test_missing_column_names_those_that_exist(workplace):
    (workplace / "a.csv").write_text("prompt,y\n1,2\n")
    with pytest.raises(DctError, match=r"no column zzz; it has prompt, y"):
        read("a.csv", column="zzz")


@pytest.mark.parametrize("origin", ["nothing.txt", ".", "demo:nothing"])
def test_unknown_set(workplace, origin):
    with pytest.raises(DctError, match=r"no .*prompt set"):
        read(origin)


@pytest.mark.parametrize("origin", ["hf:", "hf:a:b", "hf:a:b:c:d", "hf:a::c"])
def test_malformed_hub_set_is_wrong_usage(origin):
    with pytest.raises(UsageError, match="hf:dataset:split:column"):
        read(origin)


def test_hub_set_without_the_datasets_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DctError, match=r"pip install 'deep-causal-transcoders\[datasets\]'"):
        read("hf:a:b:c")


def test_hub_set_with_the_datasets_package(monkeypatch):
    asked = {}

    class Datasets:
        @staticmethod
        def load_dataset(name, split):
            asked.update(name=name, split=split)
            return {"question": ["q1", "q2"]}

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert read("hf:owner/set:train:question").texts == ("q1", "q2")
    assert asked == {"name": "owner/set", "split": "train"}


# --- packaged sets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_set_holds_64_different_prompts(workplace, name):
    texts = read(name).texts
    assert len(texts) == 64
    assert len({text.strip().lower() for text in texts}) == 64
    assert all(text == text.strip() for text in texts)


def test_harmful_and_harmless_share_nothing():
    assert not set(read("harmful").texts) & set(read("harmless").texts)


ANSWERS = {
    "addition": sum,
    "subtraction": lambda numbers: max(numbers) - min(numbers),
    "negative": lambda numbers: min(numbers) - max(numbers),
    "multiplication": math.prod,
    "division": lambda numbers: max(numbers) / min(numbers),
}

# Questions of the kinds "two-step" and "other", worked out by hand.
WORKED_OUT = {
    "What is 3 + 4 * 11?": 3 + 4 * 11,
    "What is (5 + 3) * 8?": (5 + 3) * 8,
    "Multiply 4 by 7, then subtract 4.": 4 * 7 - 4,
    "Add 5 and 4, then multiply the sum by 12.": (5 + 4) * 12,
    "A shop has 11 crates of 10 apples and sells 12 apples. How many apples are left?": 11 * 10 - 12,
    "Find the total of the three numbers 57, 39 and 29.": 57 + 39 + 29,
    "Compute 88 - 30 - 15 and give only the result.": 88 - 30 - 15,
    "What is 12 squared?": 12 * 12,
    "What number is double 93?": 2 * 93,
    "What is half of 62?": 62 / 2,
    "How many minutes are there in 4 hours?": 4 * 60,
    "What is 30% of 90?": 27,
    "Which number is 10 more than 63?": 63 + 10,
    "How many days are there in 12 weeks?": 12 * 7,
}


def test_arithmetic_answers_are_right():
    found = read("arithmetic")
    kinds = read("arithmetic", column="kind").texts
    assert len(found.answers) == 64
    for text, answer, kind in zip(found.texts, found.answers, kinds, strict=True):
        if kind in ANSWERS:
            expected = ANSWERS[kind]([int(number) for number in re.findall(r"\d+", text)])
        else:
            expected = WORKED_OUT[text]
        assert answer == str(int(expected)), text
        assert expected == int(expected), text


def test_a_folder_of_the_same_name_does_not_hide_a_packaged_set(workplace):
    (workplace / "harmless").mkdir()
    assert len(read("harmless")) == 64


def test_demo_sets_only_where_the_demo_has_them(monkeypatch, tmp_path):
    monkeypatch.setattr("dct.prompts.DEMO_DIR", tmp_path)
    assert default_origin("demo", "harmful") == "harmful"
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "harmful.jsonl").write_text('{"prompt": "own"}\n')
    assert default_origin("demo", "harmful") == "demo:harmful"
    assert default_origin("qwen", "harmful") == "harmful"
    assert read("demo:harmful").texts == ("own",)


# --- sets -------------------------------------------------------------------------------------------------------------


@given(texts=st.lists(TEXT, max_size=8), seen=st.lists(TEXT, max_size=4), n=st.integers(0, 10))
def test_without_and_first_keep_order_and_answers(texts, seen, n):
    answers = tuple(f"answer to {text}" for text in texts)
    kept = PromptSet(tuple(texts), answers, "here").without([*texts[::2], *seen]).first(n)
    assert kept.texts == tuple(t for t in texts if t not in {*texts[::2], *seen})[:n]
    assert kept.answers == tuple(f"answer to {text}" for text in kept.texts)
    assert kept.origin == "here"


def test_first_none_is_all():
    assert PromptSet(("a", "b")).first(None).texts == ("a", "b")


def test_fingerprint_depends_on_text_order_and_boundaries():
    prints = [fingerprint(t) for t in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a"])]
    assert len(set(prints)) == len(prints)
    assert fingerprint(["a", "b"]) == prints[0]
