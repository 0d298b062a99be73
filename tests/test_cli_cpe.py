"""`dct fit --method cpe` and every command that takes its changes, as a user runs them; and what the others say."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_cli import MILD, as_json, ok, run, strict, tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

import dct
from dct.runs import Run

QUICK = ["--method", "cpe", "--band", "1-2", "--t", 4, "--factors", 5, "--iterations", 2, "--n", 2, "--scale", 1.5]
INPUTS, WIDTH = 32, 32


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mild.txt").write_text("Write a poem\nHow are you?\n")
    return tmp_path


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model_folder) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "changes"
    result = ok("fit", "--model", model_folder, *QUICK, "--out", folder)
    assert "attention outputs of blocks 1-2 (o_proj), read at layer 4" in result.output
    assert "1.5: every output gains R b <a, x>" in result.output
    assert "5 cpe factors of tiny-llama, blocks 1-2 → 4" in result.output
    return folder


@pytest.fixture
def folder(saved, workplace) -> Path:
    """A copy of the run, to write into."""
    shutil.copytree(saved, workplace / "run")
    return workplace / "run"


def edited(model_folder: Path, row: torch.Tensor, scale: float):
    """transformers' own model with R b a' added to its weights."""
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    for k, block in enumerate((1, 2)):
        a, b = row[k * (INPUTS + WIDTH) :][: INPUTS + WIDTH].split([INPUTS, WIDTH])
        with torch.no_grad():
            model.model.layers[block].self_attn.o_proj.weight += scale * torch.outer(b / b.norm(), a / a.norm())
    return model


def test_a_run_says_what_it_holds_and_repeats(saved, tmp_path):
    factors = dct.Factors.load(saved / "factors.safetensors")
    told = factors.info["perturbation"]
    names = [f"model.layers.{block}.self_attn.o_proj" for block in (1, 2)]
    assert told == {"kind": "rank-1", "first": 1, "inputs": [32, 32], "width": 32, "modules": names}
    assert (factors.info["source"], factors.info["target"], factors.info["lambda"]) == (1, 4, None)
    assert tuple(factors.V.shape) == (5, 2 * (INPUTS + WIDTH))
    assert tuple(factors.U.shape) == (5, WIDTH)
    assert 'band = "1-2"' in (saved / "config.toml").read_text()
    assert "source" not in (saved / "config.toml").read_text()
    ok("fit", "--config", saved / "config.toml", "--out", tmp_path / "again")
    again = dct.Factors.load(tmp_path / "again" / "factors.safetensors")
    torch.testing.assert_close(again.V, factors.V)


def test_the_default_band_target_and_scale(model_folder):
    content = as_json("fit", "--model", model_folder, "--method", "cpe", "--factors", 2, "--iterations", 1, "--n", 1)
    assert content["scale"] == 1.0
    info = content["info"]
    assert (info["perturbation"]["first"], len(info["perturbation"]["inputs"]), info["target"]) == (1, 2, 3)
    assert Path(content["run"]).name == "tiny-llama-cpe-1-2-3"


def test_what_is_said_is_what_the_edited_model_says(folder, model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    V = dct.Factors.load(folder / "factors.safetensors").V
    asked = ["--vector", 3, "--vector", -3, "--scale", 2, "--prompt", "How do I bake?", "--max-new-tokens", 8, *MILD]
    steered = as_json("steer", folder, *asked)
    ids = tokens(tokenizer, "How do I bake?")
    for k, sign in enumerate((0, 1, -1)):
        model = edited(model_folder, V[3], 3.0 * sign)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert steered["completions"][k]["completion"] == text
    assert len({one["completion"] for one in steered["completions"]}) == 3


def test_rank_and_what_goes_on_from_it(folder):
    content = as_json("rank", folder, "--screen-only", "--n", 2)
    assert content["resembles"] is None
    assert content["supervised"]["kl"] is not None
    assert {one["vector"] for one in content["vectors"]} == {"0", "1", "2", "3", "4"}
    small = ["--n", 2, "--test", 2, "--keep", 2, "--scales", "0.5,1", "--max-new-tokens", 4, *MILD]
    judge = ["--judge", "regex", "--judge-option", r"complied=[aeiou]\W*$"]
    content = as_json("rank", folder, *small, *judge)
    assert strict((folder / "rank.json").read_text()) == content
    found, random, means, noise = content["arms"]
    assert found["layer"] == random["layer"] == noise["layer"] == 1
    assert found["scale"] in (0.75, 1.5)
    assert noise["scale"] not in (0.75, 1.5)  # a length in the stream
    assert means["vector"].startswith("layer ")
    ok("verify", folder, "--sample", 4)
    ok("report", folder)
    assert "attention outputs of blocks 1-2" in (folder / "report.html").read_text()


def test_verify_notices_another_change(folder):
    ok("verify", folder)
    factors = dct.Factors.load(folder / "factors.safetensors")
    parts = factors.V.split([INPUTS, WIDTH] * 2, 1)
    factors.V = torch.cat([-parts[0], *parts[1:]], 1)  # the opposite in one block: still of unit length
    factors.save(folder / "factors.safetensors")
    assert run("verify", folder).exit_code == 1


def test_an_adapter_is_exported_and_loaded_again(folder, model_folder):
    pytest.importorskip("peft")
    content = as_json("export", folder, "--vector", 2, "--format", "peft", "--out", "adapter")
    assert content["norms"] == [1.5]
    told = json.loads(Path("adapter/adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"], told["fan_in_fan_out"]) == (1, 1, False)
    assert json.loads(Path("adapter/dct.json").read_text())["kind"] == "rank-1"
    V = dct.Factors.load(folder / "factors.safetensors").V
    lm, ids = dct.load(str(model_folder), adapter="adapter"), torch.tensor([[1, 5, 9, 20, 31, 7]])
    wanted = edited(model_folder, V[2], 1.5)(ids).logits
    torch.testing.assert_close(lm.model(ids).logits, wanted, rtol=1e-4, atol=1e-4)


def test_an_interrupted_fit_goes_on(saved, model_folder, tmp_path, monkeypatch):
    save = Run.save_state

    def cut(self, state, config):
        save(self, state, config)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Run, "save_state", cut)
        assert run("fit", "--model", model_folder, *QUICK, "--out", tmp_path / "cut").exit_code == 130
    ok("fit", "--resume", "--out", tmp_path / "cut")
    resumed, whole = (dct.Factors.load(one / "factors.safetensors") for one in (tmp_path / "cut", saved))
    torch.testing.assert_close(resumed.V, whole.V)
    assert resumed.info["perturbation"] == whole.info["perturbation"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--source", 1], 2, "give --band, such as 7-10, in its place"),
        (["--lambda", 0.5], 2, "rank-1 changes have none there"),
        (["--minus", "demo"], 2, "cpe knows one model"),
        (["--band", "2-1"], 2, "--band must be a first and a last block"),
        (["--band", "two"], 2, "--band must be a first and a last block"),
        (["--band", "3-4", "--t", 4], 1, "a band must lie below the target"),
        (["--band", "1-9"], 1, "of 5 blocks"),
        (["--orthogonalize", "qr"], 2, "--orthogonalize soft or none"),
        (["--method", "exponential", "--band", "1-2"], 2, "exponential learns vectors: choose cpe as --method"),
    ],
)
def test_what_a_fit_does_not_take(model_folder, words, code, said):
    result = run("fit", "--model", model_folder, "--method", "cpe", "--factors", 2, "--iterations", 1, *words)
    assert (result.exit_code, result.output.count("error:")) == (code, 1), result.output
    assert said in result.output
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ablate", "{}", "--vector", 0], "an ablation takes vectors"),
        (["spectrum", "{}", "--vector", 0], "a spectrum takes vectors"),
        (["compare", "{}", "{}/../again"], "a comparison takes vectors"),
        (["export", "{}", "--vector", 0, "--format", "gguf"], "gguf holds vectors of the stream"),
        (["export", "{}", "--vector", 0, "--format", "npz"], "choose peft"),
        (["export", "{}", "--vector", 0, "--format", "peft", "--ablate"], "no directions to ablate"),
        (["steer", "{}", "--vector", 0, "--vector", 1, "--aggregate", "mean", "--n", 1], "--aggregate takes vectors"),
    ],
)
def test_what_takes_vectors_alone_says_so(folder, words, said):
    shutil.copytree(folder, folder.parent / "again")
    result = run(*[str(word).format(folder) for word in words])
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert result.output.count("error:") == 1


def test_a_chat_acts_with_one_change_at_a_time(folder):
    from typer.testing import CliRunner

    from dct.cli.app import app

    words = ["chat", str(folder), "--max-new-tokens", "3"]
    said = CliRunner().invoke(app, words, input="/vector 1 2\nhow are you?\n/add 2\n/damage\n", env={"COLUMNS": "200"})
    assert "vector 1 at 2 R" in said.output
    assert "none of rank 1: one at a time" in said.output
