"""`dct chat`: each side says what the model itself says, alone, in its own history; and a person can talk to it."""

import copy
import json
import os
import re
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import PROMPTS, WIDTH
from typer.testing import CliRunner

import dct
from dct import DctError, talkcommands
from dct.cli.app import app
from dct.cli.columns import Columns, broken
from dct.cli.console import SafeConsole
from dct.guide import Guide
from dct.mixture import Mixtures, Term
from dct.runs import Run
from dct.talk import STEERED, UNSTEERED, Push, Said, Talk
from dct.talkcommands import COMMANDS, Commands

LAYER, R, NEW = 2, 1.0, 10
RANKING = {
    "scale": R,
    "vectors": [
        {"vector": "4", "scale": 1.4 * R, "effect": {"score": 1.0, "flipped": 0.5, "kl": 0.25}},
        {"vector": "1", "effect": {"score": 0.5, "flipped": 0.5, "kl": 3.0}},
    ],
    "scales": [1.0, 1.4],
    "kinds": {
        "scale": 2 * R,
        "vectors": 6,
        "random_kinds": 1,
        "prompts": ["a"],
        "kinds": [{"vectors": ["0"], "unchanged": True}, {"vectors": ["5", "4"], "unchanged": False}],
        "samples": [
            {"vector": "5", "completions": ["b"], "verdicts": [{"label": "other", "coherent": True}], "damage": 0.5}
        ],
        "names": {"4": {"more": ["[red]\x1b[31mSure", "Yes"], "less": []}, "5": {"more": ["Ahoy"], "less": []}},
    },
}


def factors() -> dct.Factors:
    V = torch.nn.functional.normalize(torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(3)), dim=1)
    return dct.Factors(V, V.flip(0), torch.ones(6), torch.zeros(0, 3), R, {"source": LAYER, "signed": True})


V = factors().V


def printable(lm: dct.LanguageModel) -> dct.LanguageModel:
    """A model that says what can be printed in a line: its other tokens have no logit."""
    with torch.no_grad():
        for k, row in enumerate(lm.model.lm_head.weight):
            text = lm.decode([k])
            if not text.isprintable() or not text.strip() or "\ufffd" in text:
                row.zero_()
    return lm


@pytest.fixture(scope="module")
def lm(make_lm) -> dct.LanguageModel:
    return printable(make_lm("llama"))


def talking(lm: dct.LanguageModel, ranking: dict | None = RANKING, **options) -> tuple[Talk, Commands]:
    guide = Guide(ranking)
    talk = Talk(lm, Mixtures("tiny", factors(), guide.ranked), LAYER, guide, **{"most": NEW, **options})
    return talk, Commands(talk)


def say(talk: Talk, question: str) -> dict[str, str]:
    """What each side replies."""
    return {one.side: one.completion for one in talk.ask(question).keep()}


def own(lm: dct.LanguageModel, text: str, model: torch.nn.Module | None = None, new: int = NEW) -> str:
    """What a model says by transformers' own `generate`, behind a text that is read as it stands."""
    ids = torch.tensor([lm.tokenizer(text, add_special_tokens=False)["input_ids"]])
    mask = torch.ones_like(ids)
    out = (model or lm.model).generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=0, eos_token_id=2
    )
    return lm.decode([k for k in out[0, ids.shape[1] :].tolist() if k != 2])


def asked(*turns: str, system: str | None = None) -> str:
    """The template's text, by hand."""
    roles = ["<user>", "<assistant>"] * len(turns)
    spoken = "".join(role + words for role, words in zip(roles, turns, strict=False))
    return "<s>" + (f"<system>{system}" if system else "") + spoken + "<assistant>"


# --- what is said -----------------------------------------------------------------------------------------------------


def test_both_sides_say_what_the_model_says_in_their_own_histories(lm):
    talk, commands = talking(lm)
    theta, histories = 1.5 * R * V[3] - 0.5 * R * V[5], {UNSTEERED: [], STEERED: []}
    commands.obey("/vector 3 1.5")
    assert commands.obey("/add 5 -0.5") == "vector 3 at 1.5 R + 5 at -0.5 R (Ahoy), damage not measured"
    for question in PROMPTS[:3]:
        for history in histories.values():
            history.append(question)
        wanted = {UNSTEERED: own(lm, asked(*histories[UNSTEERED]))}
        with dct.steer(lm, theta, LAYER):
            wanted[STEERED] = own(lm, asked(*histories[STEERED]))
        got = say(talk, question)
        assert got == wanted
        assert got[UNSTEERED] != got[STEERED]
        for side, history in histories.items():
            history.append(got[side])


def test_the_system_message_is_read_by_both_sides(lm):
    talk, commands = talking(lm)
    commands.obey("/off")
    assert commands.obey("/system Be brief") == "system: Be brief"
    wanted = own(lm, asked("Hi", system="Be brief"))
    assert wanted != own(lm, asked("Hi"))
    assert say(talk, "Hi") == {UNSTEERED: wanted, STEERED: wanted}
    commands.obey("/new")
    assert commands.obey("/system -") == "no system message"
    assert say(talk, "Hi")[UNSTEERED] == own(lm, asked("Hi"))


def test_ablation_is_that_of_the_weights_and_off_restores_them_to_the_bit(lm):
    """Against a copy whose matrices were projected by hand, W - v v'W in float64."""
    talk, commands = talking(lm)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    edited, v = copy.deepcopy(lm.model), V[3].double()
    for block in edited.model.layers:
        for part in (block.self_attn.o_proj, block.mlp.down_proj):
            W = part.weight.data.double()
            part.weight.data = (W - torch.outer(v, v @ W)).float()
    commands.obey("/vector 4")
    assert commands.obey("/ablate 3") == "without vector 3, damage not measured"
    wanted = {UNSTEERED: own(lm, asked("Hi"), before_model(lm, before)), STEERED: own(lm, asked("Hi"), edited)}
    assert wanted[UNSTEERED] != wanted[STEERED]
    assert say(talk, "Hi") == wanted
    commands.obey("/ab off")
    commands.obey("/new")
    assert say(talk, "Hi") == {STEERED: wanted[STEERED]}
    assert not torch.equal(lm.model.model.layers[0].mlp.down_proj.weight, before["model.layers.0.mlp.down_proj.weight"])
    with pytest.raises(DctError, match="out of range"):
        commands.obey("/ablate 3 99")
    assert talk.push == Push(ablated=("3",))
    commands.obey("/off")
    now = lm.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in before.items())


def before_model(lm: dct.LanguageModel, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = copy.deepcopy(lm.model)
    model.load_state_dict(state)
    return model


def test_a_vector_is_added_to_ablated_weights(lm):
    talk, commands = talking(lm)
    commands.obey("/ablate 3")
    commands.obey("/add 4 2")
    with dct.ablate(lm, V[3]), dct.steer(lm, 2 * R * V[4], LAYER):
        wanted = own(lm, asked("Hi"))
    assert say(talk, "Hi")[STEERED] == wanted
    talk.close()


def test_damage_is_the_divergence_of_the_models_own_distributions(lm):
    talk, commands = talking(lm, harmless=PROMPTS[:2])

    def logs() -> torch.Tensor:
        rows = [torch.tensor([lm.tokenizer(asked(p), add_special_tokens=False)["input_ids"]]) for p in PROMPTS[:2]]
        with torch.no_grad():
            return torch.stack([lm.model(row).logits[0, -1].log_softmax(-1) for row in rows])

    p = logs()
    for line, acting in (
        ("/vector 3 1.5", dct.steer(lm, 1.5 * V[3], LAYER)),
        ("/ablate 3", dct.ablate(lm, V[3])),
    ):
        with acting:
            q = logs()
        commands.obey(line)
        assert talk.damage() is None
        told = commands.obey("/damage")
        assert talk.damage() == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
        assert told.endswith(f"damage {talk.damage():.3f}")
    commands.obey("/off")
    with pytest.raises(DctError, match="nothing acts"):
        commands.obey("/damage")


def test_both_sides_are_made_in_one_batch_unless_their_weights_differ(lm, monkeypatch):
    sizes, answer = [], dct.talk.answer
    monkeypatch.setattr("dct.talk.answer", lambda lm, layer, some: sizes.append(len(some)) or answer(lm, layer, some))
    talk, commands = talking(lm)
    commands.obey("/vector 3")
    say(talk, "Hi")
    commands.obey("/ablate 3")
    say(talk, "Hi")
    assert sizes == [2, 1, 1]
    talk.close()


def test_a_reply_that_is_stopped_stays_as_far_as_it_came(lm):
    talk, _ = talking(lm, most=200)
    exchange = talk.ask("Hi")
    while not all(reply.text for reply in exchange.replies.values()):
        exchange.wait(0.001)
    exchange.stop()
    kept = exchange.keep()
    assert [one.finish for one in kept] == ["stopped", "stopped"]
    whole = own(lm, asked("Hi"), new=200)
    assert 0 < len(kept[0].completion) < len(whole)
    assert whole.startswith(kept[0].completion)
    assert talk.turns(UNSTEERED) == [("user", "Hi"), ("assistant", kept[0].completion)]


def test_the_unsteered_side_that_is_not_asked_hears_nothing(lm):
    talk, commands = talking(lm)
    commands.obey("/ab")
    assert set(say(talk, "Hi")) == {STEERED}
    assert talk.turns(UNSTEERED) == []
    assert "has not heard 1 of the questions" in commands.obey("/ab")
    assert say(talk, "And now?")[UNSTEERED] == own(lm, asked("And now?"))


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "push"),
    [
        (["/vector 4"], Push((Term("4"),))),
        (["/vector 017"], None),
        (["/vector 004 2"], Push((Term("4", 2.0),))),
        (["/vector -3"], Push((Term("-3"),))),
        (["/rank 2"], Push((Term("1"),))),
        (["/rank 1 3"], Push((Term("4", 3.0),))),
        (["/kind 1"], Push((Term("5", 2.0),))),
        (["/kind 2"], None),
        (["/rank 3"], None),
        (["/vector 1", "/add 5 0.5", "/add 1 2"], Push((Term("5", 0.5), Term("1", 2.0)))),
        (["/vector 1", "/add 5", "/add 1 0"], Push((Term("5"),))),
        (["/vector 1", "/add 2", "/scale -1.5"], Push((Term("1", -1.5), Term("2", -1.5)))),
        (["/ablate 1, 2"], Push((), ("1", "2"))),
        (["/ablate 1", "/add 2 1"], Push((Term("2", 1.0),), ("1",))),
        (["/ablate 1", "/vector 2"], Push((Term("2"),))),
        (["/vector 1", "/ablate 2", "/off"], Push()),
        (["/off", "/scale 2"], None),
        *[([line], None) for line in ("/vector", "/vector x", "/vector 1 nan", "/vector 1 2 3", "/vector 1 1e4")],
        *[
            ([line], None)
            for line in ("/scale", "/scale inf", "/ablate", "/ab maybe", "/save", "/nothing", "/", "/add")
        ],
        *[([line], None) for line in ("/save x.txt", "/save x.md", "/vector ٣", "/vector 1234567890")],
    ],
)
def test_what_commands_make_act(lm, lines, push):
    """Where the last line is wrong, an error of one line says what is right, and all stays as it was."""
    talk, commands = talking(lm)
    for line in lines[: None if push else -1]:
        commands.obey(line)
    if push is None:
        before = talk.push, talk.both
        with pytest.raises(DctError) as told:
            commands.obey(lines[-1])
        assert re.search(r": .|, such as|write /|out of range|ranking holds|a number such as", str(told.value))
        assert "\n" not in str(told.value)
        push, _ = before
        assert (talk.push, talk.both) == before
    assert talk.push == push
    talk.close()


def test_labels_tell_names_scales_and_known_damage(lm):
    talk, commands = talking(lm)
    assert talk.label() == "nothing added"
    assert commands.obey("/rank 1") == "vector 4 at 1.4 R ([red]\x1b[31mSure Yes), damage 0.250"
    assert commands.obey("/vector 1") == "vector 1 at 1 R, damage 3.000"
    assert commands.obey("/kind 1") == "vector 5 at 2 R (Ahoy), damage 0.500"
    assert commands.obey("/scale 1") == "vector 5 at 1 R (Ahoy), damage not measured"
    assert "2 vectors, such as 5: Ahoy" in commands.obey("/kind")
    assert commands.obey("/rank").splitlines()[1] == "  2  vector 1"


def test_a_run_without_a_ranking_says_so(lm):
    _, commands = talking(lm, None)
    assert commands.obey("/vector 0") == "vector 0 at 1 R, damage not measured"
    for line in ("/rank 1", "/rank", "/kind 0"):
        with pytest.raises(DctError, match="dct rank"):
            commands.obey(line)


def test_words_are_completed(lm):
    _, commands = talking(lm)
    assert [word for word, _ in commands.completions("/s")] == ["/scale ", "/system ", "/save "]
    assert [word for word, _ in commands.completions("/")] == [
        f"/{name} " if COMMANDS[name].usage else f"/{name}" for name in COMMANDS
    ]
    assert list(commands.completions("/vector 5")) == [("5", "Ahoy")]
    assert [word for word, _ in commands.completions("/ablate 5 ")] == [*"012345"]
    assert list(commands.completions("/kind 1")) == [("1", "2 vectors, such as 5: Ahoy")]
    assert [word for word, _ in commands.completions("/rank ")] == ["1", "2"]
    for line in ("/vector 5 ", "a /vec", "", "/off ", "/scale "):
        assert list(commands.completions(line)) == []
    assert set(COMMANDS) == {name[1:] for name in vars(Commands) if name[1:] in COMMANDS}


def test_what_cannot_go_on_is_told_with_its_cure(lm):
    talk, commands = talking(lm)
    talk.said.append(Said(STEERED, None, "word " * 60, "word " * 60, "stop"))
    with pytest.raises(DctError, match=r"steered conversation has \d+ tokens and llama reads 256: /new"):
        talk.ask("Hi")
    commands.obey("/new")
    talk.lm = copy.copy(lm)
    talk.lm.tokenizer = copy.copy(lm.tokenizer)
    talk.lm.tokenizer.chat_template = None
    say(talk, "Hi")
    with pytest.raises(DctError, match="no chat template, and knows one question at a time: /new"):
        talk.ask("And now?")
    assert len(talk.said) == 2


def test_a_reply_that_cannot_be_made_leaves_no_trace(lm, monkeypatch):
    talk, _ = talking(lm)

    def fail(*_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr("dct.talk.answer", fail)
    with pytest.raises(RuntimeError, match="no such thing"):
        talk.ask("Hi").keep()
    assert talk.said == []


def test_a_saved_conversation_is_what_was_said(lm, workplace):
    talk, commands = talking(lm)
    commands.obey("/rank 1")
    talk.said += [
        Said(UNSTEERED, "Be brief", "Hi # there", "````\n# no heading\x1b[31m", "stop"),
        Said(STEERED, "Be brief", "Hi # there", "<b>x</b>", "length", talk.push, 0.25),
    ]
    assert commands.obey("/save talk.jsonl") == "2 replies written to talk.jsonl"
    first, second = map(json.loads, Path("talk.jsonl").read_text().splitlines())
    assert (first["side"], first["completion"], first["vectors"]) == (UNSTEERED, "````\n# no heading\x1b[31m", [])
    assert second["vectors"] == [{"vector": "4", "scale": 1.4}]
    assert second["damage"] == 0.25
    assert second["unsteered"] == first["completion"]
    commands.obey("/save talk.jsonl")  # its own file is brought up to date
    Path("mine.md").write_text("mine")
    with pytest.raises(DctError, match="there already"):
        commands.obey("/save mine.md")
    talkcommands.Commands(talk, lambda text: text.replace("\x1b", "ESC")).obey("/save talk.md")
    page = Path("talk.md").read_text()
    assert "`````text\n````\n# no heading" in page
    assert "\x1b" not in page
    assert "**vector 4 at 1.4 R, damage 0.250**, cut" in page


# --- the terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 7, 20])
def test_lines_that_are_settled_never_change(width):
    text = "a longer  word-that-is-broken 漢字漢字漢字 and  then some,\n\n more of it\n" * 2
    before: list[str] = []
    for end in range(len(text) + 1):
        lines = [line for paragraph in text[:end].split("\n") for line in broken(paragraph, width)]
        assert lines[: len(before) - 1] == before[:-1]
        before = lines
    from rich.cells import cell_len

    assert max(map(cell_len, before)) <= width
    assert "".join(before).replace(" ", "") == text.replace(" ", "").replace("\n", "")


def test_columns_show_every_line_of_every_side_once(capsys):
    columns = Columns(SafeConsole(width=30, force_terminal=False), ["left", "right"], ["", ""], 13)
    left, right = "one two three four five six seven", "[red]\x1b[31mhostile"
    with columns:
        for k in range(len(left) + 1):
            columns.grow([left[:k], right[: k // 2]], [False, False])
        columns.grow([left, right], [True, True])
    columns.foot(["", "(stopped)"])
    rows = [tuple(cell.strip() for cell in line.split("│")) for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ("left", "right"),
        ("one two three", "[red]\\x1b[31m"),
        ("four five six", "hostile"),
        ("seven", ""),
        ("", "(stopped)"),
    ]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tokenizer) -> Path:
    """A ranked run of a model that is on disk."""
    from conftest import random_model

    home = tmp_path_factory.mktemp("chat")
    lm = printable(dct.LanguageModel(random_model("llama"), tokenizer))
    lm.model.save_pretrained(home / "tiny")
    tokenizer.save_pretrained(home / "tiny")
    made = factors()
    made.info |= {"model": str(home / "tiny"), "fingerprint": dct.load(str(home / "tiny")).fingerprint, "target": 4}
    made.info |= {"method": "exponential", "prompts": [], "width": WIDTH}
    run = Run(home / "run", home / "run" / "factors.safetensors")
    run.folder.mkdir()
    made.save(run.factors)
    run.save_ranking(RANKING, made)
    return run.folder


def expected(run: Path, theta: torch.Tensor, *questions: str) -> list[tuple[str, str]]:
    """What both sides of a run's model say to the first question, by `generate` alone."""
    lm = dct.load(str(run.parent / "tiny"))
    found = []
    for question in questions:
        alone = own(lm, asked(question))
        with dct.steer(lm, theta, LAYER):
            found.append((alone, own(lm, asked(question))))
    return found


def test_a_pipe_is_answered_line_by_line(run_folder):
    lines = "Hi there\n\n//etc is a folder\n/nothing\n/vector 77\n/quit\nnever asked\n"
    words = ["chat", str(run_folder), "--max-new-tokens", str(NEW)]
    [(alone, steered)] = expected(run_folder, 1.4 * R * V[4], "Hi there")
    result = CliRunner().invoke(app, words, input=lines)
    assert result.exit_code == 1
    assert "2 of the lines could not be answered" in result.stderr
    out = result.stdout.splitlines()
    at = out.index("> Hi there")
    label = "vector 4 at 1.4 R ([red]\\x1b[31mSure Yes), damage 0.250"
    shown = [line for line in out[at + 1 : out.index("> //etc is a folder")] if not line.startswith("(cut")]
    assert shown == ["unsteered", alone, "", label, steered, ""]
    assert "never asked" not in result.stdout
    assert len(result.stderr.splitlines()) == 3
    result = CliRunner().invoke(app, [*words, "--json"], input="Hi there\n/off\n")
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["side"], one["completion"]) for one in told] == [(UNSTEERED, alone), (STEERED, steered)]


SLOW = """
import sys, time
from dct.answering import Reply
take = Reply.take
def slowly(self, *rest):
    time.sleep(0.05)
    take(self, *rest)
Reply.take = slowly
if sys.argv[1] == "dumb":
    sys.modules["prompt_toolkit"] = None
sys.argv = ["dct", "chat", *sys.argv[2:]]
from dct.cli import main
main()
"""


@pytest.mark.parametrize(("kind", "columns"), [("xterm", 150), ("dumb", 90)])
def test_a_person_talks_in_a_real_terminal(run_folder, kind, columns):
    pexpect = pytest.importorskip("pexpect")
    if not hasattr(pexpect, "spawn"):
        pytest.skip("no pseudo-terminals on this platform")
    [(alone, steered), (other, pushed)] = (
        expected(run_folder, theta, question)[0]
        for theta, question in ((1.4 * R * V[4], "Hi there"), (0.5 * R * V[2], "And now?"))
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    env |= {"TERM": kind, "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": str(columns)}
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests may ignore Ctrl+C
    words = ["-c", SLOW, kind, str(run_folder), "--max-new-tokens", str(NEW)]
    child = pexpect.spawn(
        sys.executable, words, env=env, encoding="utf-8", timeout=120, dimensions=(40, columns), preexec_fn=heeds
    )
    child.expect("damage 0.250; /help")
    ready = "\\[\\?25h" if kind == "xterm" else "> "  # the cursor is shown when there is something to be typed
    child.expect(ready)
    child.sendline("Hi there")
    child.expect_exact("unsteered")
    child.expect_exact("vector 4 at 1.4 R ([red]\\x1b[31mSure Yes), damage 0.250")
    child.expect_exact(steered)
    child.expect(ready)
    child.sendline("/new")
    child.expect("forgotten")
    child.send("/vec")
    child.send("\t" if kind == "xterm" else "tor ")
    child.expect_exact("tor")
    child.send("2 0.5\r")
    child.expect_exact("vector 2 at 0.5 R, damage not measured")
    child.sendline("/nothing")
    child.expect_exact("no command /nothing: /help lists them")
    child.sendline("And now?")
    child.expect_exact(pushed)
    child.sendline("Tell me")
    child.expect_exact("Tell me")
    child.expect_exact("unsteered")
    child.sendintr()
    child.expect_exact("(stopped)")
    child.sendline("/off")
    child.expect_exact("nothing added")
    child.expect(ready)  # between two questions the terminal would keep the end of the input to itself
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert other != pushed
    assert alone != steered
