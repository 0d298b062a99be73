"""What reaches the terminal: whatever it can show and nothing that it would obey, on any encoding, open or closed."""

import io
import json
import os
import pty
import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from click.testing import Result
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from dct.cli.app import app
from dct.cli.characters import encodable, one_line, visible
from dct.cli.console import SafeConsole
from dct.cli.terminal import Terminal, escape
from dct.plainjson import dumps

ROOT = Path(__file__).parents[1]
HOSTILE = "a\x1b]0;title\x07b\x00c\x9b31md\x7fe\u202ef\u2066g\u200bh\ufeffi\U000e0041j\rk\u2028l\x08m\u061cn\udc80o"
STYLES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[ABGKJ]|\r")
"""Rich's own: colours, the cursor hidden and shown, moved over lines that are drawn again."""


def raw(text: str) -> set[str]:
    """The characters of a text that act on a terminal or show nothing on it."""
    return {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs")}


def run(*words: object, columns: int = 250) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": str(columns)})


def process(*words: object, code: str | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`dct` (or `code`) in a process of its own; variables set to nothing are taken away."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", **environment}
    env = {name: value for name, value in env.items() if value}
    start = ["-c", code] if code else ["-m", "dct"]
    return subprocess.run([sys.executable, *start, *map(str, words)], capture_output=True, env=env, timeout=250)


# --- characters -------------------------------------------------------------------------------------------------------


def test_what_acts_or_hides_is_written_out():
    shown = visible(HOSTILE)
    assert not raw(shown)
    for said in (r"\x1b]0;title\x07", r"\x00", r"\x9b31m", r"\x7f", "<U+202E>", "<U+2066>", "<U+200B>", "<U+FEFF>"):
        assert said in shown
    assert "<U+E0041>" in shown
    assert "<U+DC80>" in shown
    assert visible("a\nb\tc é 漢字 🙂 ❤️ שלום") == "a\nb\tc é 漢字 🙂 ❤️ שלום"


def test_every_character_of_unicode_is_shown_or_written_out():
    everything = "".join(map(chr, range(0x110000)))
    assert raw(visible(everything)) == {"\t"}
    for code in (0x115F, 0x3164, 0xFE00, 0xE0100, 0x34F):
        assert f"<U+{code:04X}>" in visible(chr(code))


def test_one_line_keeps_what_would_be_lost_as_white_space():
    assert one_line("a\n b\x1c\x85\u2028c") == r"a b\x1c\x85<U+2028>c"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "✓ é → ▁█ 漢 – …"),
        ("cp1252", "* é -> _# \\u6f22 – …"),
        ("ascii", "* \\xe9 -> _# \\u6f22 - ..."),
        ("no such encoding", "* \\xe9 -> _# \\u6f22 - ..."),
        (None, "✓ é → ▁█ 漢 – …"),
    ],
)
def test_stand_ins_for_what_an_encoding_lacks(encoding, shown):
    assert encodable("✓ é → ▁█ 漢 – …", encoding) == shown


def test_escaped_text_is_shown_as_it_is_wherever_it_stands():
    """Against Rich's own reading of it, over random pieces of markup."""
    draw = random.Random(0)
    pieces = ["[", "]", "\\", "/", "red", "b", "#", "@", "1", " ", "[/]", "[red]", "[a[b]", ":smile:", "=", "é"]
    for _ in range(3000):
        text = "".join(draw.choice(pieces) for _ in range(draw.randrange(1, 9)))
        for before, after in (("", ""), ("[bold]", "[/bold]"), ("x [dim]", "[/dim] y")):
            shown = Text.from_markup(f"{before}{escape(text)}{after}", emoji=False).plain
            around = [re.sub(r"\[.*?]", "", part) for part in (before, after)]
            assert shown == f"{around[0]}{text}{around[1]}"


def test_json_holds_no_number_that_json_lacks():
    text = dumps({"a": [float("nan"), float("inf"), {"b": (-float("inf"), 1.5)}], "c": "\x1b\udc80"}, strict=False)
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, None, {"b": [None, 1.5]}], "c": "\x1b\udc80"}
    assert text.isascii()


# --- everything that is printed ---------------------------------------------------------------------------------------


def printed(monkeypatch, terminal: bool, encoding: str = "utf-8") -> str:
    """What every way of printing makes of a hostile text."""
    from dct.cli.completions import completions_table, growing

    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, errors="strict", write_through=True)
    monkeypatch.setattr("sys.stdout", stream)
    shown = Terminal()
    shown.console = SafeConsole(file=stream, force_terminal=terminal, width=90)
    shown.note(HOSTILE)
    shown.warn(HOSTILE)
    shown.show(HOSTILE.replace("[", ""))
    shown.show(Text(HOSTILE))
    shown.summary(HOSTILE, [("row", escape(HOSTILE)), (HOSTILE.replace("[", ""), "value")])
    shown.show(completions_table(HOSTILE, ["unsteered", HOSTILE.replace("[", "")], [HOSTILE, HOSTILE + "\n漢字"]))
    shown.show(completions_table(HOSTILE, ["a", "b", "c", "d"], [HOSTILE] * 4))
    with shown.progress(HOSTILE) as advance:
        advance(HOSTILE, 1, 2)
    with shown.busy(HOSTILE):
        pass
    with growing(shown, HOSTILE, ["a", HOSTILE]) as grow:
        if grow is not None:
            grow(1, HOSTILE)
    return buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_nothing_printed_acts_on_the_terminal(monkeypatch, terminal, encoding):
    text = printed(monkeypatch, terminal, encoding)
    assert r"\x1b]0;title\x07" in text
    assert not raw(STYLES.sub("", text) if terminal else text)


def test_borders_stay_straight_around_what_is_written_out(monkeypatch):
    lines = printed(monkeypatch, terminal=False).splitlines()
    assert {cell_len(line) for line in lines if line.startswith(("│", "├", "╭", "╰"))} == {90}


def test_a_plain_console_would_send_it():
    """What is guarded against is real."""
    out = io.StringIO()
    Console(file=out, width=90).print(Text(HOSTILE.replace("\udc80", "")))
    assert raw(out.getvalue())


def test_errors_of_any_kind_are_one_line_without_control_characters(workplace):
    for words in (
        ["fit", "--model", "./no\x1b[31m\u202esuch\n\x07model"],
        ["fit", f"--bo{HOSTILE}gus"],
        [f"com{HOSTILE}mand"],
        ["fit", "--method", HOSTILE],
        ["fit", "--factors", HOSTILE],
        ["fit", "--prompts", HOSTILE],
        ["rank", HOSTILE.replace("\x00", "")],
        ["steer", "--vector", HOSTILE],
        ["fit", "--scale", HOSTILE],
    ):
        result = run(*words)
        assert result.exit_code in (1, 2)
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1
        assert not raw(result.output), words
        under_json = run(*words, "--json")
        assert json.loads(under_json.stdout)["exit_code"] == result.exit_code
        assert not raw(under_json.output)


def hostile(draw: random.Random) -> str:
    """A prompt or name of ordinary letters with something hostile among them."""
    pool = [
        "\x1b[2J",
        "\x1b]0;x\x07",
        "\u202e",
        "\u200d",
        "\ufeff",
        "\x9b5n",
        "\x7f",
        "\b",
        "\U000e0061",
        "\u2028",
    ]
    return "".join(draw.choice(["word ", "é", "[red]", *pool]) for _ in range(8)) + "end"


def test_commands_on_hostile_prompts_and_names(workplace, model_folder):
    draw = random.Random(1)
    texts = [hostile(draw) for _ in range(12)]
    Path("prompts.json").write_text(json.dumps(texts))
    name = "run \x1b[31m\u202e[b]\x07"
    fit = ["fit", "--model", model_folder, "--factors", 3, "--iterations", 1, "--scale", 1, "--out", name]
    sets = ["--prompts", "prompts.json"]
    mild = ["--harmless", "prompts.json", "--n", 3]
    for words in (
        [*fit, *sets, "--n", 4, "--prompt", hostile(draw)],
        ["rank", name, *sets, *mild, "--screen-only", "--positive", hostile(draw), "--negative", "no"],
        ["steer", name, "--vector", 1, *sets, *mild, "--max-new-tokens", 12],
        ["steer", name, *[w for k in range(3) for w in ("-v", k)], "--prompt", texts[0], *mild, "--max-new-tokens", 12],
        ["ablate", name, "--vector", 1, *sets, *mild, "--max-new-tokens", 12, "--save", "edited \x1b[31m"],
        [
            "fit",
            "--model",
            "edited \x1b[31m",
            "--factors",
            1,
            "--iterations",
            1,
            "--scale",
            1,
            "--n",
            1,
            "--out",
            "c\x07d",
        ],
        ["models", "edited \x1b[31m"],
    ):
        for more in ([], ["--json"]):
            result = run(*words, *more, *(["--force"] if words[0] == "fit" else []), columns=100)
            if "--save" in words and more:
                assert "not empty" in result.stderr
            else:
                assert result.exit_code == 0, result.output
            assert not raw(result.output), (words[0], raw(result.output))


PTY = """
import sys
from dct.cli.completions import completions_table, growing
from dct.cli.terminal import Terminal
from test_terminal import HOSTILE
terminal = Terminal()
assert terminal.live
terminal.note(HOSTILE)
with terminal.progress(HOSTILE) as advance:
    advance(HOSTILE, 1, 2)
with growing(terminal, HOSTILE, ["a", HOSTILE]) as grow:
    grow(0, HOSTILE)
    grow(1, HOSTILE)
terminal.show(completions_table(HOSTILE, ["a", "b"], [HOSTILE, HOSTILE]))
sys.argv = ["dct", "fit", "--method", HOSTILE.replace("\\0", "")]
from dct.cli import main
main()
"""


def test_a_real_terminal_gets_rich_styles_and_nothing_else():
    """A pseudo-terminal: what is written to it, byte for byte."""
    controller, side = pty.openpty()
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TERM": "xterm-256color", "COLUMNS": "90"}
    with subprocess.Popen([sys.executable, "-c", PTY], stdout=side, stderr=side, env=env) as child:
        os.close(side)
        sent = b""
        while True:
            try:
                some = os.read(controller, 65536)
            except OSError:  # the other end is closed
                break
            if not some:
                break
            sent += some
    os.close(controller)
    text = sent.decode()
    assert child.returncode == 2, text
    assert "Traceback" not in text
    assert r"\x1b]0;title\x07" in text
    assert "\x1b[" in text
    assert not raw(STYLES.sub("", text))


# --- encodings --------------------------------------------------------------------------------------------------------

POOR = {
    "cp1252": {"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"},
    "ascii": {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
    "C": {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": ""},
}

SEVERAL = """
import json, sys
from dct.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["dct", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
"""


def commands(model: object, out: str) -> list[list[str]]:
    """One of every kind, small."""
    mild = ["--harmless", "mild.txt", "--n", "1"]
    words = [
        ["fit", "--model", model, "--factors", 3, "--iterations", 2, "--n", 2, "--out", out, "--scale", 1],
        ["calibrate", "--model", model, "--n", 1, "--lambda", 0.1],
        ["rank", out, *mild, "--screen-only", "--scales", "1,2", "--top", 2],
        ["steer", out, "--vector", 1, "--prompt", "café 漢字 – “x”", *mild[:2], "--max-new-tokens", 8],
        ["ablate", out, "--vector", 1, "--prompt", "naïve ✓", *mild[:2], "--max-new-tokens", 8],
        ["models", model],
        ["models"],
    ]
    return [[str(word) for word in line] for line in words]


@pytest.mark.parametrize("kind", POOR)
def test_terminals_without_unicode(workplace, model_folder, kind):
    (workplace / "mild.txt").write_text("Write a poem\n")
    done = process(json.dumps(commands(model_folder, "run")), code=SEVERAL, **POOR[kind])
    text = (done.stdout + done.stderr).decode("cp1252" if kind == "cp1252" else "ascii")
    assert done.returncode == 0, text
    assert "Traceback" not in text
    assert "* 3 exponential factors" in text  # the tick
    assert "layers 1 -> 3" in text
    assert ("caf\\xe9" if kind != "cp1252" else "café") in text


@pytest.mark.parametrize("kind", POOR)
@pytest.mark.parametrize(
    "words", [["--help"], ["fit", "--help"], ["--version"], ["models", "--json"], ["fit", "--s", "é"]]
)
def test_help_and_errors_without_unicode(kind, words):
    done = process(*words, **POOR[kind])
    assert done.returncode == (2 if "--s" in words else 0)
    assert b"Traceback" not in done.stderr
    if "--help" in words:
        assert b"+- O" in done.stdout


# --- streams ----------------------------------------------------------------------------------------------------------


def shell(line: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    dct = f'"{sys.executable}" -m dct'
    return subprocess.run(
        ["bash", "-c", line.replace("dct", dct, 1)], capture_output=True, text=True, env=env, timeout=120
    )


@pytest.mark.parametrize(
    ("where", "says"),
    [
        (">&-", "stdout is closed"),
        ("> /dev/full", "No space left on device"),
        ("| true", None),
    ],
)
@pytest.mark.parametrize(
    "words", ["models --json --quiet", "fit --model ./nothing --json --quiet", "fit --bogus --json"]
)
def test_json_that_cannot_be_written(where, says, words):
    """One line on stderr and an exit code; where the pipe is read by nobody, the shell reports its reader's."""
    line = f"set -o pipefail; dct {words} {where}" if "|" in where else f"dct {words} {where}"
    for _ in range(3):
        done = shell(line)
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        if says is None and done.returncode == 0:
            continue  # written before the reader had gone
        assert done.returncode == (2 if "bogus" in words else 1)
        assert len(done.stderr.splitlines()) == 1
        if says is not None and "models" in words:
            assert says in done.stderr


@pytest.mark.parametrize("streams", ["2>&-", "2> /dev/full", ">&- 2>&-", "> /dev/full 2> /dev/full", "<&- >&- 2>&-"])
def test_nobody_to_tell_is_no_crash(streams):
    for words, code in (("models --json", None), ("fit --bogus", 2), ("models", None), ("--help", None)):
        done = shell(f"dct {words} {streams}")
        assert done.returncode in ((code,) if code else (0, 1)), (words, done.returncode)
        assert "Traceback" not in done.stdout + done.stderr


def test_a_file_opened_later_is_not_taken_for_a_closed_stdout(workplace):
    done = shell("dct fit --model ./nothing >&- 2> err.txt")
    assert done.returncode == 1
    assert Path("err.txt").read_text().startswith("error: no model folder")


# --- other libraries --------------------------------------------------------------------------------------------------

OURS = re.compile(  # with the prompts, which are titles
    r"^(expected: |café|naïve|slice |"
    r"scale R|tiny-llama|.*tiny-llama: llama|run/factors|[a-z ]+  |\s|✓|$|\S*\d|logit|rank |next|"
    r"warning: the factors have not settled|"
    r"'\w+' is|'.*' and|[╭│├╰┬┴]|no prompts beyond|alias|Any |unsteered|vector |without |a random|model |\w[\w-]* +\w)"
)


def test_libraries_say_nothing(workplace, model_folder):
    """Bars, warnings and logs; whatever is on the screen stands in this program's own words."""
    (workplace / "mild.txt").write_text("Write a poem\n")
    quiet = process(json.dumps(commands(model_folder, "run")), code=SEVERAL, COLUMNS="200")
    text = quiet.stdout.decode() + quiet.stderr.decode()
    assert quiet.returncode == 0, text
    assert quiet.stderr == b""
    for sign in (
        "Loading",
        "it/s",
        "%|",
        "Warning",
        "warnings",
        "generation flags",
        "TRANSFORMERS_",
        "\r",
        "[W",
        "UNEXP",
    ):
        assert sign not in text, sign
    assert [line for line in text.splitlines() if not OURS.match(line)] == []


def test_a_users_own_settings_are_left_to_rule(monkeypatch):
    from dct.cli import quiet

    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "debug")
    for name in quiet.ENVIRONMENT:
        if name != "TRANSFORMERS_VERBOSITY":
            monkeypatch.delenv(name, raising=False)
    quiet.hush_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
