"""Everything that can go wrong: one line that names cause and cure, the right exit code, and nothing left behind."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from click.testing import Result
from conftest import random_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import dct
from dct.cli.app import app
from dct.declaration import told
from dct.runs import Run
from dct.slice import Slice

ROOT = Path(__file__).parents[1]
SMALL = ["--factors", 3, "--iterations", 2, "--scale", 0.85, "--n", 1]


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "250"})


def fails(*words: object, says: str, code: int = 1) -> str:
    """Runs a command that must fail: with one line on stderr, no traceback, and no file made, changed or lost."""
    before = snapshot()
    result = run(*words)
    assert result.exit_code == code, result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("error: "), line
    assert "unexpected" not in line
    assert "Traceback" not in result.output
    assert re.search(says, line), line
    assert snapshot() == before
    return line


def snapshot() -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in Path().rglob("*")}


@pytest.fixture(scope="module")
def fitted_once(tmp_path_factory, model_folder) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    assert run("fit", "--model", model_folder, *SMALL, "--out", folder / "run").exit_code == 0
    return folder / "run"


@pytest.fixture
def fitted(fitted_once, workplace) -> Path:
    """A fresh folder with a small run in it, not yet ranked; gives the run's folder."""
    shutil.copytree(fitted_once, workplace / "runs" / "run")
    (workplace / "mild.txt").write_text("Write a poem\n")
    return Path("runs/run")


@pytest.fixture
def fit(model_folder) -> list[object]:
    return ["fit", "--model", model_folder]


def poisoned(folder: Path, name: str, to: Path, value: float = float("nan")) -> Path:
    """A copy of a model with one row of a weight spoilt."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    tensors[name][0] = value
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


# --- models, layers, options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["fit", "--model"], ["calibrate", "--model"], ["models"]])
def test_unknown_model(workplace, monkeypatch, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fails(*words, "nobody/nothing", says="cannot find model nobody/nothing: .*check the name and the network")
    fails(*words, "qwen", says=r"cannot find model qwen \(Qwen/Qwen1.5-7B-Chat\)")


def test_no_network_is_one_line_too(workplace):
    """The hub's library may try again, but its chatter is not the user's business."""
    code = "import time; time.sleep = lambda s: None\nfrom dct.cli import main; main()"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(workplace)}
    env.pop("HF_HUB_OFFLINE", None)
    words = [sys.executable, "-c", code, "models", "nobody/nothing"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: cannot find model nobody/nothing")


def test_folder_that_holds_no_model(workplace):
    (workplace / "empty").mkdir()
    fails("fit", "--model", "empty", says="cannot load the model in empty")
    fails("models", "empty", says="cannot load the model in empty")


def test_damaged_weights(workplace, model_folder):
    shutil.copytree(model_folder, "broken")
    Path("broken/model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage")
    fails("fit", "--model", "broken", says="cannot load the model in broken")


@pytest.mark.parametrize(("s", "t"), [(3, 3), (4, 2), (-1, 2)])
def test_source_not_below_target(workplace, fit, s, t):
    fails(*fit, "--s", s, "--t", t, says="source layer must lie below the target", code=2)


def test_target_outside_the_model(workplace, fit):
    fails(*fit, "--s", 1, "--t", 6, says="the model has 5 blocks, so --target is at most 5")


def test_unknown_block_list(workplace, fit):
    fails(
        *fit, "--layers", "model.nothing", says=r"no block list at 'model.nothing'; the model has: model.layers \(5\)"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["fit", "--method", "cubic", "--scale", "1"],
            "unknown --method 'cubic': choose cpe, exponential, linear, linear-projected",
        ),
        (["fit", "--orthogonalize", "gs", "--scale", "1"], "unknown --orthogonalize 'gs': choose qr, soft, none"),
        (["fit", "--start", "cold", "--scale", "1"], "unknown --start 'cold': choose projected, random"),
        (["fit", "--positions", "some"], "--positions must be a number or `all`.*'some'"),
        (["fit", "--positions", "0"], "--positions"),
        (["fit", "--positions", "-1"], "--positions"),
        (["fit", "--dtype", "int4"], "unknown --dtype 'int4': choose auto"),
        (["fit", "--device", "abacus"], "unknown --device 'abacus'"),
        (["fit", "--scale", "0"], "--scale must be positive"),
        (["fit", "--scale", "nan"], "--scale must be positive"),
        (["fit", "--beta", "0", "--scale", "1"], "--beta"),
        (["fit", "--factors", "33", "--scale", "1", "--orthogonalize", "qr"], "pass --orthogonalize soft"),
        (["fit", "--lambda", "0"], "lambda must be positive"),
        (["calibrate", "--lambda", "-1"], "lambda must be positive"),
        (["fit", "--prompts", "hf:a:b"], "hf:dataset:split:column"),
    ],
)
def test_wrong_usage(workplace, model_folder, words, says):
    fails(*words, "--model", model_folder, says=says, code=2)


@pytest.mark.parametrize("option", [["--method", "cubic"], ["--orthogonalize", "gs"], ["--factors", 0], ["--beta", 7]])
def test_wrong_usage_is_told_before_the_model_is_loaded(workplace, monkeypatch, option):
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("dct.loading.load", load)
    assert run("fit", "--model", "big", *option).exit_code == 2


ENDS = [
    *(f"fit {option}" for option in (
        "--factors 0", "--factors 1000000000000", "--iterations 0", f"--iterations {10**30}", "--n 0", f"--n {10**30}",
        "--batch 0", f"--batch {10**30}", "--seed -1", f"--seed {10**30}", "--seed 1.5", "--d-proj 0",
        f"--d-proj {10**30}", "--scale 0", "--scale -1", "--scale nan", "--scale inf", "--scale 1e-30", "--scale 1e39",
        "--lambda 0", "--lambda -1", "--lambda nan", "--lambda inf", "--lambda 1e-300", "--beta 0", "--beta -1",
        "--beta nan", "--beta 1.01", "--tolerance -1", "--tolerance nan", "--positions 0", f"--positions {10**30}",
        "--memory 0", "--memory -1GB", "--memory nan", "--memory infGB", "--memory much", "--dtype int4",
        "--compile yes", "--start cold", "--method cubic", "--orthogonalize gs",
    )),
    *(f"rank {option}" for option in (
        "--scale 0", "--scale -1", "--scale nan", "--scale inf", "--top 0", f"--top {10**30}", "--n 0", f"--n {10**30}",
        "--test 0", f"--test {10**30}", "--max-damage -1", "--max-damage nan", f"--max-new-tokens {10**12}",
        "--scales 0", "--scales nan", "--scales 1,inf", "--scales 1e-300", "--scales ,", "--by luck", "--seed -1",
    )),
    *(f"steer {option}" for option in (
        "--scale nan", "--scale inf", "--scale -inf", "--rank 0", "--rank -3", f"--rank {10**30}", f"--top {10**30}",
        "--max-new-tokens 0", f"--max-new-tokens {10**12}", "--temperature nan", "--temperature -1",
        "--temperature inf", "--temperature 1e-300", "--vector x", f"--vector {10**30}", "--tokens some",
        "--aggregate sum", f"--n {10**30}",
    )),
    *(f"ablate {option}" for option in ("--rank 0", f"--top {10**30}", "--site middle", "--vector 1.5", "--n 0")),
    *(f"bench {option}" for option in ("--factors 1", "--shuffles 0", "--scale nan", "--lambda 0")),
    *(f"calibrate {option}" for option in ("--lambda nan", "--seed -1", f"--batch {10**30}")),
    *(f"organism train --out x {option}" for option in (f"--steps {10**30}", "--learning-rate nan", "--seed -1")),
    "fit --bogus", "bogus", "fit --factors many", "fit extra", "organism train", "models --top 3", "fit --n",
]  # fmt: skip
"""Command lines that are refused for what stands in them, whatever the model."""


def test_options_at_their_ends_are_refused_before_anything_is_imported(workplace):
    """All in one process, which at the end has imported no library that takes its time."""
    code = """
import contextlib, io, json, sys
from dct.cli.app import app
from dct.cli.rank import rank
from dct.cli.signature import parameters
from dct.cli.steer import steer
for line in json.load(sys.stdin):
    for more in ([], ["--json"]):
        out, err, code = io.StringIO(), io.StringIO(), None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                app([*line.split(), *more])
            except SystemExit as end:
                code = end.code
        print(json.dumps([line, more, code, out.getvalue(), err.getvalue()]))
heavy = ("torch", "transformers", "numpy", "safetensors", "rich", "tokenizers", "huggingface_hub")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(ENDS), capture_output=True, text=True, env=env, timeout=250
    )
    assert done.returncode == 0, done.stderr
    *answers, heavy = map(json.loads, done.stdout.splitlines())
    assert len(answers) == 2 * len(ENDS)
    for line, more, status, out, err in answers:
        assert status == 2, line
        assert err.startswith("error: "), line
        assert len(err.splitlines()) == 1, err
        assert "unexpected" not in err
        if more:
            told = json.loads(out)
            assert told["exit_code"] == 2
            assert f"error: {told['error']}\n" == err
        else:
            assert out == ""
    assert heavy == []
    assert not snapshot()


def test_choices_of_the_settings_are_those_of_the_core():
    from dct import settings
    from dct.compilation import CHOICES
    from dct.loading import DTYPES
    from dct.ranking import ORDERS
    from dct.steering import TOKENS

    def among(group: type, name: str) -> set[str]:
        [field] = [one for one in fields(group) if one.name == name]
        return set(told(field).check.listed)

    assert among(settings.ModelSettings, "dtype") == {"auto", *DTYPES}
    assert among(settings.FitSliceSettings, "compile") == set(CHOICES)
    assert among(settings.RankSettings, "by") == set(ORDERS)
    assert among(settings.SteerSettings, "tokens") == set(TOKENS)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["fit", "--bogus"], "--bogus"),
        (["bogus"], "bogus"),
        (["fit", "--factors", "many"], "--factors"),
        (["steer", "--top", "0"], "--top"),
    ],
)
def test_unknown_option_or_command(workplace, words, names):
    result = run(*words)
    assert result.exit_code == 2
    assert names in result.stderr
    assert "Traceback" not in result.output
    assert not snapshot()


def test_debug_shows_the_traceback_and_the_line(workplace, fit):
    result = run(*fit, "--s", 3, "--t", 3, "--debug")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: the source layer")


def test_error_under_json_is_one_document(workplace, fit):
    result = run(*fit, "--s", 3, "--t", 3, "--json")
    assert json.loads(result.stdout)["exit_code"] == 2
    assert "source layer" in json.loads(result.stdout)["error"]
    assert len(result.stderr.splitlines()) == 1


def test_a_device_that_is_not_there(workplace, fit):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    fails(*fit, "--device", "cuda", says="--device cpu")


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.txt", b"\n\n", "p.txt holds no prompts"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": " "}\n', "prompt 2 of p.jsonl is empty: remove it"),
        ("p.csv", b"\xff\xfe\x00\x81", "cannot read p.csv"),
        ("p.csv", b"a,b\n1,2\n", "no column prompt/.*it has a, b: pass --column"),
        ("p.json", b'["a", {"prompt": "b"}]', "mixes strings and objects"),
    ],
)
def test_unusable_prompts(workplace, fit, name, content, says):
    Path(name).write_bytes(content)
    fails(*fit, "--prompts", name, says=says)


def test_missing_prompts_and_column(workplace, fit):
    Path("p.csv").write_text("prompt\nhello\n")
    fails(*fit, "--prompts", "nothing.txt", says="no prompt set 'nothing.txt': give a file")
    fails(*fit, "--prompts", "p.csv", "--column", "zzz", says="no column zzz; it has prompt")


def test_empty_literal_prompt(fitted, fit):
    fails(*fit, "--prompt", "", says="prompt 1 of 1 is empty")
    fails("steer", "--vector", 1, "--prompt", "a", "--prompt", " ", says="prompt 2 of 2 is empty")
    fails("ablate", "--vector", 1, "--prompt", "", says="prompt 1 of 1 is empty")


def test_prompt_shorter_than_the_positions(workplace, fit):
    line = fails(*fit, "--prompt", "hello", "--positions", 300, says="fewer than the 300 positions")
    cure = re.search(r"--positions (\d+)$", line)
    assert cure
    assert run(*fit, *SMALL, "--prompt", "hello", "--positions", cure[1]).exit_code == 0


def test_prompt_longer_than_the_context(workplace, fit):
    fails(*fit, "--prompt", "long " * 300, says="this model|reads 256: shorten it")


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_word_of_several_tokens_is_scored_whole(fitted, model_folder):
    pair = ["--positive", "Tellurium", "--negative", "Help"]
    said = run("rank", "--screen-only", "--n", 1, *pair, "--harmless", "mild.txt")
    assert said.exit_code == 0
    assert "log p(Tellurium) − log p(Help)" in said.stdout
    words = json.loads(Path("runs/run/rank.json").read_text())["words"]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert words["positive"] == tokenizer("Tellurium", add_special_tokens=False).input_ids
    assert words["shown_positive"] == "Tellurium"


def test_words_that_no_token_tells_apart(fitted):
    fails("rank", "--positive", "Sure", "--negative", "Sure", says="no token tells 'Sure' from 'Sure'.*--positive")
    fails("steer", "--vector", 1, "--prompt", "a", "--positive", "", says="choose another word")


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(workplace, model_folder, value):
    poisoned(model_folder, "model.layers.2.mlp.down_proj.weight", Path("sick"), value)
    fails("fit", "--model", "sick", *SMALL, says="NaN or infinity in model.layers.2.mlp.down_proj.weight")
    fails("calibrate", "--model", "sick", says="NaN or infinity in model.layers.2.mlp.down_proj.weight")


def test_weights_beyond_the_slice_that_are_no_numbers_are_found_by_rank_and_steer(workplace, model_folder):
    poisoned(model_folder, "model.layers.4.mlp.down_proj.weight", Path("sick"))
    assert run("fit", "--model", "sick", *SMALL).exit_code == 0
    fails("rank", says="NaN or infinity in model.layers.4.mlp.down_proj")
    fails("steer", "--vector", 0, "--prompt", "a", says="NaN or infinity in model.layers.4.mlp.down_proj")


def test_non_finite_logits_are_an_error_and_no_ranking(workplace, model_folder):
    poisoned(model_folder, "model.norm.weight", Path("sick"))
    assert run("fit", "--model", "sick", *SMALL).exit_code == 0
    fails("rank", "--n", 1, says="NaN|finite")
    fails("steer", "--vector", 0, "--prompt", "a", "--max-new-tokens", 1, says="NaN|finite")


def test_steering_vector_that_is_not_finite(fitted):
    fails("steer", "--vector", 1, "--prompt", "a", "--scale", "nan", "--harmless", "mild.txt", says="--scale", code=2)


def test_scale_at_which_responses_overflow_is_refused(workplace, fit):
    """The norm of a response beyond 2e19 is infinite in float32: its direction would be saved as zero."""
    fails(*fit, "--factors", 3, "--iterations", 1, "--n", 1, "--scale", 1e38, says="--scale")


def test_calibration_out_of_reach_names_what_can_be_reached(workplace, fit):
    line = fails(*fit, "--lambda", 1000, "--n", 1, says="never reaches lambda = 1000: it reaches .* at scale")
    cure = re.search(r"--lambda (\S+),", line)
    assert cure
    assert run("calibrate", *fit[1:], "--lambda", cure[1], "--n", 1).exit_code == 0
    shown = run("calibrate", *fit[1:], "--lambda", 1000, "--n", 1)
    assert shown.exit_code == 1
    assert "non-linearity ratio by scale" in shown.stdout


# --- memory -----------------------------------------------------------------------------------------------------------


def shortage(monkeypatch, name: str, most: int) -> list[int]:
    """Memory for `most` vectors at a time; gives the numbers of vectors that were tried."""
    really, tried = getattr(Slice, name), []

    def short(self: Slice, theta: torch.Tensor) -> torch.Tensor:
        tried.append(len(theta))
        if len(theta) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return really(self, theta)

    monkeypatch.setattr(Slice, name, short)
    return tried


def shortage_at_zero(monkeypatch, most: int, tried: list[int]) -> None:
    """The same for derivatives at 0, whose directions share one pass of the map."""
    really = torch.vmap

    def short(derivative, in_dims):
        def each(zero: torch.Tensor, *directions: torch.Tensor) -> torch.Tensor:
            tried.append(len(directions[0]))
            if len(directions[0]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return really(derivative, in_dims=in_dims)(zero, *directions)

        return each

    monkeypatch.setattr(torch, "vmap", short)


@pytest.mark.parametrize("method", ["exponential", "quadratic", "linear"])
def test_out_of_memory_halves_the_batch_and_changes_nothing_else(workplace, fit, monkeypatch, method):
    words = [*fit, "--method", method, "--factors", 12, "--iterations", 1, "--n", 1]
    assert run(*words, "--out", "enough").exit_code == 0
    tried = shortage(monkeypatch, "__call__", most=5)
    shortage_at_zero(monkeypatch, 5, tried)
    assert run(*words, "--out", "short").exit_code == 0
    assert max(tried) > 5
    last = max(k for k, number in enumerate(tried) if number > 5)
    assert 3 <= max(tried[last + 1 :]) <= 5  # halved until it fits, and no further
    enough, short = (load_file(f"{folder}/factors.safetensors") for folder in ("enough", "short"))
    for name in enough:
        torch.testing.assert_close(short[name], enough[name], rtol=1e-3, atol=1e-4)


def test_out_of_memory_while_ranking_halves_the_batch(fitted, monkeypatch):
    words = ["rank", "--screen-only", "--n", 2, "--json", "--harmless", "mild.txt"]
    enough = json.loads(run(*words).stdout)
    tried = shortage(monkeypatch, "streams", most=1)
    short = json.loads(run(*words).stdout)
    assert max(tried) > 1
    assert [v["vector"] for v in short["vectors"]] == [v["vector"] for v in enough["vectors"]]
    for a, b in zip(short["vectors"], enough["vectors"], strict=True):
        assert a["effect"]["score"] == pytest.approx(b["effect"]["score"], abs=1e-4)


def test_out_of_memory_with_one_vector_is_an_error(fitted, fit, monkeypatch):
    really = Slice.__call__

    def only_zero(self: Slice, theta: torch.Tensor) -> torch.Tensor:
        if len(theta) == 1 and not bool(theta.detach().any()) and not theta.requires_grad:
            return really(self, theta)  # the first look at the map's shape
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Slice, "__call__", only_zero)
    fails(*fit, *SMALL, "--out", "none", says="out of memory with a single row: use fewer or shorter prompts")


def test_out_of_memory_anywhere_else_is_an_error(fitted, fit, monkeypatch):
    def none(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("dct.slice.record", none)
    fails(*fit, *SMALL, "--out", "none", says="out of memory: use a smaller model")


# --- factors files ----------------------------------------------------------------------------------------------------


def rewritten(file: Path, metadata: dict[str, str] | None = None, **tensors: torch.Tensor | None) -> None:
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    kept = {name: t for name, t in (load_file(file) | tensors).items() if t is not None}
    save_file(kept, file, header | (metadata or {}))


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[9] ^= 0xFF
    file.write_bytes(data)


DAMAGE = {
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-100]), "is damaged"),
    "cut in the header": (lambda f: f.write_bytes(f.read_bytes()[:50]), "is damaged"),
    "empty": (lambda f: f.write_bytes(b""), "is damaged"),
    "random bytes": (lambda f: f.write_bytes(bytes(range(256)) * 20), "is damaged"),
    "flipped header": (flipped, "is damaged"),
    "other format": (lambda f: rewritten(f, {"format": "pt"}), "is not a dct-factors file"),
    "other version": (
        lambda f: rewritten(f, {"format_version": "3"}),
        "has format version 3 and this dct reads 1 and 2",
    ),
    "no config": (lambda f: rewritten(f, {"config": "{"}), "is damaged"),
    "no V": (lambda f: rewritten(f, V=None), "lacks V"),
    "no alpha": (lambda f: rewritten(f, alpha=None), "lacks alpha"),
    "NaN": (lambda f: rewritten(f, U=torch.full((3, 32), torch.nan)), "is damaged"),
    "shapes": (lambda f: rewritten(f, V=torch.ones(2, 32)), "is damaged"),
}


@pytest.mark.parametrize("command", ["rank", "steer", "ablate"])
@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_factors(fitted, command, how):
    damage, says = DAMAGE[how]
    damage(fitted / "factors.safetensors")
    fails(command, says=f"runs/run/factors.safetensors .*{says}|{says}")


def test_factors_of_another_model_are_refused_and_force_goes_on(fitted, tokenizer):
    random_model("llama", seed=1).save_pretrained("other")
    tokenizer.save_pretrained("other")
    for command in ("rank", "steer", "ablate"):
        words = [command, "--model", "other", *([] if command == "rank" else ["--vector", 1, "--prompt", "a"])]
        fails(*words, says="fitted on other weights .*or --force")
        few = ["--screen-only", "--n", 1] if command == "rank" else ["--max-new-tokens", 1]
        assert run(*words, *few, "--harmless", "mild.txt", "--force").exit_code == 0


def test_factors_of_a_model_whose_weights_changed_are_refused(workplace, model_folder):
    shutil.copytree(model_folder, "mine")
    assert run("fit", "--model", "mine", *SMALL).exit_code == 0
    shutil.rmtree("mine")
    poisoned(model_folder, "model.layers.0.mlp.up_proj.weight", Path("mine"), 0.0)
    fails("steer", "--vector", 1, "--prompt", "a", says="fitted on other weights")


def test_factors_of_another_width_are_refused_even_by_force(fitted):
    narrow = dct.Factors.load(fitted / "factors.safetensors")
    narrow.V = torch.eye(3, 16)
    narrow.save(fitted / "factors.safetensors")
    fails("steer", "--vector", 1, "--prompt", "a", "--force", says="width 16 .* has 32")


def test_factors_saved_from_python_say_what_they_lack(fitted, model_folder):
    loaded = dct.Factors.load(fitted / "factors.safetensors")
    loaded.info = {"method": "exponential"}
    loaded.save("bare.safetensors")
    words = ["--model", model_folder, "--force", "--harmless", "mild.txt"]
    fails("steer", "bare.safetensors", "--vector", 1, "--prompt", "a", *words, says="layer")
    fails("rank", "bare.safetensors", "--n", 1, *words, says="layer", code=2)


@pytest.mark.parametrize("command", ["steer", "ablate"])
def test_vector_out_of_range(fitted, command):
    for name in ("3", "-3", "99"):
        fails(command, "--vector", name, "--prompt", "a", says=f"vector {name} is out of range: .* vectors 0 to 2")
    fails(command, "--vector", "first", "--prompt", "a", says="a vector is a number such as 17", code=2)


@pytest.mark.parametrize("command", ["steer", "ablate"])
def test_rank_out_of_range_or_not_ranked(fitted, command):
    fails(command, "--rank", 1, "--prompt", "a", says="has not been ranked: run `dct rank runs/run` first")
    fails(command, "--prompt", "a", says="say which vector: --vector 17", code=2)
    assert run("rank", "runs/run", "--screen-only", "--n", 1).exit_code == 0
    fails(command, "--rank", 4, "--prompt", "a", says="rank 4 is out of range: the ranking holds 1 to 3")
    for place in (0, -1):
        fails(command, "--rank", place, "--prompt", "a", says="--rank must be from 1", code=2)
    (fitted / "rank.json").write_text("{")
    fails(command, "--rank", 1, "--prompt", "a", says="rank.json is damaged: run `dct rank` again")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rank", "--by", "luck"], "unknown --by 'luck': choose score, alpha, kl"),
        (
            ["steer", "--vector", 1, "--prompt", "a", "--aggregate", "sum"],
            "unknown --aggregate 'sum': choose mean, svd",
        ),
        (["ablate", "--vector", 1, "--site", "middle"], "unknown --site 'middle': choose source, target"),
        (["rank", "--positive", ""], "choose another word"),
    ],
)
def test_wrong_usage_on_a_run(fitted, words, says):
    fails(*words, says=says, code=1 if words[1] == "--positive" else 2)


@pytest.mark.parametrize("command", ["rank", "steer", "ablate"])
def test_no_run(workplace, command):
    fails(command, says="no run under runs/: make one with `dct fit`")
    fails(command, "nowhere", says="no run folder or factors file nowhere")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_factors_are_overwritten_only_by_force_and_lose_their_ranking(fitted, fit):
    assert run("rank", "--screen-only", "--n", 1).exit_code == 0
    fails(*fit, *SMALL, "--out", fitted, says="already holds factors: choose another --out, or --force")
    old = load_file(fitted / "factors.safetensors")["V"]
    assert run(*fit, *SMALL, "--seed", 5, "--out", fitted, "--force").exit_code == 0
    assert not torch.equal(load_file(fitted / "factors.safetensors")["V"], old)
    fails("steer", "--rank", 1, "--prompt", "a", says="has not been ranked")


@pytest.mark.parametrize("place", ["/proc/nowhere/run", "file/run"])
def test_unwritable_out(workplace, fit, place):
    Path("file").write_text("")
    fails(*fit, *SMALL, "--out", place, says="cannot write .*choose another --out")


def test_out_is_a_file(workplace, fit):
    Path("file").write_text("")
    fails(*fit, *SMALL, "--out", "file", says="--out file is a file: name a folder")


def test_unwritable_completions(fitted):
    fails("steer", "--vector", 1, "--prompt", "a", "--max-new-tokens", 1, "--harmless", "mild.txt",
          "--out", "/proc/nowhere/x", says="cannot write /proc/nowhere/x")  # fmt: skip


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("command", ["fit", "rank", "steer", "calibrate"])
def test_full_disk_leaves_what_was_there(fitted, fit, monkeypatch, command):
    words = {
        "fit": [*fit, *SMALL, "--out", fitted, "--force"],
        "rank": ["rank", "--screen-only", "--n", 1],
        "steer": ["steer", "--vector", 1, "--prompt", "a", "--max-new-tokens", 1, "--out", "old.jsonl"],
        "calibrate": ["calibrate", *fit[1:], "--n", 1, "--out", "old.json"],
    }
    for old in (fitted / "rank.json", Path("old.jsonl"), Path("old.json")):
        old.write_text("old")
    monkeypatch.setattr("os.fsync", full_disk)
    fails(*words[command], says="cannot write .*: No space left on device; free some space")


def test_disk_that_fills_while_an_edited_model_is_written(fitted):
    """A real limit on the size of files, which the weights exceed and nothing else does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        fails("ablate", "--vector", 1, "--prompt", "a", "--max-new-tokens", 1, "--harmless", "mild.txt",
              "--save", "edited", says="cannot write edited: .*choose another folder")  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_save_does_not_overwrite(fitted, model_folder):
    (Path.cwd() / "full").mkdir()
    Path("full/x").write_text("")
    words = ["ablate", "--vector", 1, "--prompt", "a", "--save"]
    fails(*words, "full", says="full exists and is not empty: name a new folder")
    fails(*words, "mild.txt", says="mild.txt exists")
    fails(*words, ".", says="\\. exists and is not empty")
    fails(*words, "new", "--save-dtype", "int4", says="unknown --save-dtype 'int4': choose auto, float32", code=2)
    fails(*words, "new", "--save-as", "gguf", says="unknown --save-as 'gguf': choose model, adapter", code=2)
    fails(*words[:-1], "--save-as", "adapter", says="say how to --save: give a folder too", code=2)


# --- interruption -----------------------------------------------------------------------------------------------------

LONG = ["--factors", 6, "--iterations", 5, "--scale", 0.85, "--n", 1]

SLOW_FIT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import torch
torch.set_num_threads(int(sys.argv.pop(1)))
from dct.cli import main
from dct.runs import Run
keep = Run.save_state
def slow(self, state, config):
    open("log", "a").write("x")  # one letter for every iteration done
    keep(self, state, config)
    time.sleep(0.4)
Run.save_state = slow
main()
"""


def same_factors(a: Path, b: Path) -> None:
    first, second = (load_file(folder / "factors.safetensors") for folder in (a, b))
    assert all(torch.equal(first[name], second[name]) for name in first)
    infos = []
    for folder in (a, b):
        with safe_open(folder / "factors.safetensors", framework="pt") as file:
            infos.append(json.loads(file.metadata()["config"]))
    changing = {"seconds", "fit_seconds", "peak_memory", "estimate"}
    assert {k: v for k, v in infos[0].items() if k not in changing} == {
        k: v for k, v in infos[1].items() if k not in changing
    }


def finish_as_told(said: str) -> None:
    """Runs the command that an error names."""
    command = re.search(r"`dct (fit --resume.*?)`", said)
    assert command, said
    result = run(*command[1].split())
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_fit_that_is_killed_loses_at_most_one_iteration(workplace, fit, how):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", SLOW_FIT, str(torch.get_num_threads()), *map(str, [*fit, *LONG, "--out", "cut"])]
    child = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    began = time.monotonic()
    while not (Path("log").exists() and len(Path("log").read_text()) >= 2):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() - began < 60
        time.sleep(0.02)
    child.send_signal(how)
    _, said = child.communicate(timeout=30)
    done = len(Path("log").read_text())
    assert done < 5
    assert not Path("cut/factors.safetensors").exists()
    state, _ = Run(Path("cut"), Path("cut/factors.safetensors")).load_state()
    assert done - 1 <= state.iteration <= done
    if how == signal.SIGINT:
        assert child.returncode in (1, 130)
        [line] = said.splitlines()
        assert line.startswith("error: interrupted")
        assert [p.name for p in Path("cut").iterdir()] == ["state.safetensors"]
    else:
        assert child.returncode == -signal.SIGKILL
        said = fails("rank", "cut", says="holds no factors.safetensors: finish it")
    finish_as_told(said)
    assert "state.safetensors" not in os.listdir("cut")
    assert run(*fit, *LONG, "--out", "whole").exit_code == 0
    same_factors(Path("cut"), Path("whole"))


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "quadratic"],
        ["--method", "melbo"],
        ["--orthogonalize", "soft", "--factors", 40],
        ["--beta", 0.5, "--start", "random", "--orthogonalize", "none"],
        ["--lambda", 0.4, "--system", "Be brief", "--positions", "all", "--seed", 7, "--s", 2, "--t", 5],
    ],
)
def test_resuming_restores_every_choice(workplace, fit, monkeypatch, options):
    words = [*fit, "--factors", 4, "--iterations", 3, "--n", 1, *options]
    words += [] if "--lambda" in options else ["--scale", 0.85]
    keep, saved = Run.save_state, []

    def interrupted(self: Run, *state: object) -> None:
        keep(self, *state)
        saved.append(self)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", interrupted)
        result = run(*words)
    assert result.exit_code in (1, 130)
    fails(*words, "--out", saved[0].folder, says="holds an interrupted fit: go on with --resume, or --force")
    finish_as_told(result.stderr)
    assert run(*words, "--out", "whole").exit_code == 0
    same_factors(saved[0].folder, Path("whole"))


def test_resume_without_out_takes_the_newest_interrupted_fit(workplace, fit, monkeypatch):
    keep = Run.save_state

    def interrupted(self: Run, *state: object) -> None:
        keep(self, *state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", interrupted)
        for _ in range(2):
            run(*fit, *LONG)
    assert run("fit", "--resume").exit_code == 0
    assert [p.parent.name for p in Path("runs").glob("*/factors.safetensors")] == ["tiny-llama-exponential-1-3-2"]
    assert [p.parent.name for p in Path("runs").glob("*/state.safetensors")] == ["tiny-llama-exponential-1-3"]


def test_nothing_to_resume(fitted):
    fails("fit", "--resume", says="no interrupted run under runs/")
    fails("fit", "--resume", "--out", fitted, says="finished|interrupted")


def test_state_that_is_damaged_or_of_other_weights(workplace, model_folder, monkeypatch):
    keep = Run.save_state
    shutil.copytree(model_folder, "mine")

    def interrupted(self: Run, *state: object) -> None:
        keep(self, *state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", interrupted)
        run("fit", "--model", "mine", *LONG, "--out", "cut")
    shutil.rmtree("mine")
    poisoned(model_folder, "model.layers.0.mlp.up_proj.weight", Path("mine"), 0.0)
    fails("fit", "--resume", "--out", "cut", says="have changed since the fit was interrupted: start over")
    state = Path("cut/state.safetensors")
    state.write_bytes(state.read_bytes()[:-10])
    fails("fit", "--resume", "--out", "cut", says="is damaged")


@pytest.mark.parametrize("where", ["dct.calibration.default_calibration", "dct.fitting.fit", "dct.slice.record"])
def test_ctrl_c_before_the_first_iteration(workplace, fit, monkeypatch, where):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    fails(*fit, "--n", 1, says="interrupted", code=130)


@pytest.mark.parametrize("command", ["rank", "steer", "ablate"])
def test_ctrl_c_in_the_other_commands(fitted, monkeypatch, command):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dct.ranking.Scorer.__init__" if command == "rank" else "dct.scoring.Reading.of", interrupt)
    fails(command, *(["--screen-only"] if command == "rank" else ["--vector", 1]), says="interrupted", code=130)
