"""Prompt sets: every reader gives back what was written, and says in one line why it cannot."""

import csv
import io
import json
import math
import os
import re
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dct import prompt_files
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
        ("a.csv", "x,y\n1,2\n", "it has x, y: pass `column`"),
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


# --- files that would be misread --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["P.TXT", "p.JSONL", "p.JsOn", "p.CSV", "p.Tsv", "p.ndjson", "p.JSONLINES", "p.tab"])
def test_endings_count_in_any_case_of_letters(workplace, name):
    kind = name.lower().rsplit(".")[-1]
    rows = ["a, b", "c"]
    delimiter = {"csv": ",", "tsv": "\t", "tab": "\t"}.get(kind)
    if kind == "txt":
        content = "\n".join(rows)
    elif kind == "json":
        content = json.dumps([{"prompt": r} for r in rows])
    elif delimiter:
        out = io.StringIO()
        csv.writer(out, delimiter=delimiter).writerows([["prompt"], *([r] for r in rows)])
        content = out.getvalue()
    else:
        content = "\n".join(json.dumps({"prompt": r}) for r in rows)
    (workplace / name).write_text(content)
    assert read(name).texts == tuple(rows)


@pytest.mark.parametrize(
    "coding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_byte_order_marks_and_line_ends(workplace, coding, ends, name):
    rows = ["héllo 中文 😀", "second"]
    lines = {"p.txt": rows, "p.csv": ["prompt", *rows], "p.jsonl": [json.dumps({"prompt": r}) for r in rows]}[name]
    mark = "\ufeff" if coding.endswith(("le", "be")) else ""
    (workplace / name).write_bytes((mark + ends.join(lines) + ends).encode(coding))
    assert read(name).texts == tuple(rows)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('prompt\n"first\nsecond\nthird\n', 2),
        ('prompt,x\nfine,1\n"also\nfine",2\n"not,3\nmore,4\n', 5),
        ('prompt,x\n"two\nlines","open\nfor ever\n', 3),
        ('prompt\n"first\nsecond "quoted" word\n', 2),
        ('prompt\n"an ""escaped"" quote\nand no end', 2),
        ('prompt\nfine\n"closed" too early\n', 3),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_an_open_quote_is_refused_with_its_line(workplace, content, line, ends):
    (workplace / "a.csv").write_bytes(content.replace("\n", ends).encode())
    with pytest.raises(DctError, match=rf"cannot read a\.csv: the quote that opens on line {line} is not closed"):
        read("a.csv")


def test_quotes_inside_of_plain_fields_are_text(workplace):
    (workplace / "a.csv").write_text('prompt,x\nHe said "no" and left,1\n5" wide,2\n')
    assert read("a.csv").texts == ('He said "no" and left', '5" wide')


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": "b"}, "an object"),
        (["a"], "a list"),
        (7, "a number"),
        (0.5, "a number"),
        (True, "true"),
        (False, "false"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_values_that_are_no_text_are_refused(workplace, value, shown, name):
    records = [{"prompt": "fine"}, {"prompt": value}]
    lines = "\n".join(map(json.dumps, records)) if name == "a.jsonl" else json.dumps(records)
    (workplace / name).write_text(lines)
    with pytest.raises(DctError, match=rf"prompt 2 of {name} is {shown} and no text"):
        read(name)
    (workplace / name).write_text(json.dumps(value) if name == "a.jsonl" else json.dumps([value]))
    if not isinstance(value, dict):
        with pytest.raises(DctError, match=rf"record 1 is {shown}"):
            read(name)


def test_null_is_an_empty_prompt(workplace):
    (workplace / "a.json").write_text('[{"prompt": "a"}, {"prompt": null}]')
    with pytest.raises(DctError, match=r"prompt 2 of a\.json is empty: it is null"):
        read("a.json")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"prompt": "a"}\n\n\n{"prompt": \n', "line 4: "),
        ("a.jsonl", '\n{"prompt": "a"} {"prompt": "b"}\n', "line 2: Extra data"),
        ("a.jsonl", '[\n"a"\n]\n', "line 1: .*over several lines is .json"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}\n', "line 2: 'prompt' stands twice"),
        ("a.json", '{"prompt": "a"}\n{"prompt": "b"}\n', "line 2: Extra data.*one value a line is .jsonl"),
        ("a.json", '["a",\n\n"b"', "line 3: "),
        ("a.json", "[" * 200_000, "nested too deeply"),
        ("a.json", '"prompt"', "no list of prompts but a text"),
        ("a.json", "{}", "no list of prompts but an object"),
        ("a.json", '[{"prompt": "a\\u0000b"}]', "prompt 1 of a.json holds a NUL"),
        ("a.json", '["x\\ud800"]', "prompt 1 of a.json holds half of a character"),
        ("a.json", '[{"prompt": "a"}, "b"]', "record 2 is a text"),
        ("a.json", '[{"prompt": "a", "answer": {}}]', "the answer of prompt 1 of a.json is an object"),
        ("a.txt", '{"prompt": "a"}\n{"prompt": "b"}\n', "call it .jsonl"),
        ("a", '{"prompt": "a"}\n', "call it .jsonl"),
        ("a.csv", "prompt\nHello, world\n", "row 1 of a.csv has more fields than the heading"),
        ("a.csv", "prompt,x,prompt\na,b,c\n", "two columns named 'prompt'"),
        (
            "a.csv",
            "How do I bake bread?\nHow do I swim?\n",
            "has How do I bake bread\\?: .*first line .* is its heading",
        ),
        ("a.csv", "prompt;x\na;b\n", "it has prompt;x: pass `column`"),
        ("a.csv", "prompt\n", "a.csv: behind its heading .* holds no prompts"),
        ("a.csv", "", "holds no prompts"),
    ],
)
def test_a_file_that_would_be_misread_is_refused(workplace, name, content, says):
    (workplace / name).write_text(content)
    with pytest.raises(DctError, match=says) as caught:
        read(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"fine\nbad\0line\n", "line 2 holds a NUL character"),
        ("fine\nlines\n".encode("utf-16-le"), "line 1 holds a NUL"),
        (b"caf\xe9 au lait\n", r"byte 3 \(0xe9\) is not utf-8 text"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "is not utf-8 text"),
        (b"PAR1\x15\x04\x15\x00", "NUL"),
        (b"\xff\xfea", "is not utf-16"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json", "a.jsonl"])
def test_what_is_no_text_is_refused(workplace, name, content, says):
    (workplace / name).write_bytes(content)
    with pytest.raises(DctError, match=rf"cannot read {name}: .*{says}"):
        read(name)


def test_huge_files_are_refused_without_being_read(workplace, monkeypatch):
    with (workplace / "a.txt").open("wb") as file:
        file.truncate(prompt_files.MOST_BYTES + 1)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: pytest.fail("was read"))
    with pytest.raises(DctError, match=r"cannot read a\.txt: it has 256 MB"):
        read("a.txt")


def test_folders_and_pipes_are_no_prompt_sets(workplace):
    (workplace / "folder.txt").mkdir()
    os.mkfifo(workplace / "pipe.txt")
    with pytest.raises(DctError, match=r"no prompt set 'folder\.txt': it is a folder"):
        read("folder.txt")
    with pytest.raises(DctError, match=r"no prompt set 'pipe\.txt': it is a pipe"):
        read("pipe.txt")


def test_a_field_longer_than_csv_reads_by_itself(workplace):
    (workplace / "a.csv").write_text(f'prompt\n"{"word " * 100_000}"\n')
    before = csv.field_size_limit()
    assert read("a.csv").texts == ("word " * 100_000,)
    assert csv.field_size_limit() == before


def test_headings_with_spaces_around(workplace):
    (workplace / "a.csv").write_text("id, Prompt \n1,a\n")
    assert read("a.csv").texts == ("a",)


def test_hub_values_that_are_no_text(monkeypatch):
    class Datasets:
        @staticmethod
        def load_dataset(name, split):
            return {"question": ["q1", {"en": "q2"}]}

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    with pytest.raises(DctError, match=r"record 2 is an object"):
        read("hf:owner/set:train:question")


def test_repeated_prompts_are_named():
    assert PromptSet(("a", "b", "c")).repeated is None
    assert PromptSet(("a", "b", "a ", "b", "a"), origin="p.txt").repeated == (
        "prompts of p.txt are the same and count as often: 1 and 3 and 5; 2 and 4"
    )
    assert PromptSet(("a", "b", "a")).first(2).repeated is None
