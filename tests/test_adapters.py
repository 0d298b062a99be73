"""PEFT adapters: merged in memory, what results is the model that peft itself runs with the adapter in place."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import DEPTH, WIDTH, random_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import dct
from dct import DctError
from dct.cli.app import app
from dct.loading import load

peft = pytest.importorskip("peft")

IDS = torch.arange(3, 13)[None]
KINDS = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
    "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj"], use_rslora=True),
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj", "up_proj"], use_dora=True),
    "patterns": lambda: peft.LoraConfig(r=4, target_modules="all-linear", rank_pattern={"q_proj": 2}),
    "head": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "loha": lambda: peft.LoHaConfig(r=4, alpha=8, target_modules=["q_proj", "down_proj"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


def adapter(folder: Path, base: Path | str, config) -> torch.Tensor:
    """Saves a random adapter; what peft computes with it, unmerged."""
    torch.manual_seed(1)
    model = peft.get_peft_model(random_model("llama"), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)}))
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_is_what_peft_computes(model_folder, tmp_path, kind):
    wanted = adapter(tmp_path / kind, model_folder, KINDS[kind]())
    said: list[str] = []
    lm = load(str(tmp_path / kind), dtype="float32", tell=said.append)
    with torch.no_grad():
        torch.testing.assert_close(lm.model(IDS).logits, wanted, atol=2e-5, rtol=1e-5)
        assert (lm.model(IDS).logits - random_model("llama")(IDS).logits).abs().max() > 1e-2
    assert lm.adapter == str(tmp_path / kind)
    assert lm.describe()["adapter"] == lm.adapter
    assert any("merged into the weights" in remark for remark in said)
    assert type(lm.model).__name__ == "LlamaForCausalLM"
    assert not any("lora" in name or "base_layer" in name for name, _ in lm.model.named_parameters())


def test_base_and_adapter_by_their_names_is_the_same(model_folder, tmp_path):
    adapter(tmp_path / "a", "nobody/knows", KINDS["lora"]())
    named = dct.load(str(model_folder), adapter=tmp_path / "a", dtype="float32")
    shutil.copytree(model_folder, tmp_path / "a" / "base")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "base"}))
    beside = dct.load(str(tmp_path / "a"), dtype="float32")  # a path that is relative to the adapter
    for (name, a), (_, b) in zip(named.model.named_parameters(), beside.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_fingerprint_covers_base_and_adapter(model_folder, tmp_path):
    adapter(tmp_path / "a", model_folder, KINDS["lora"]())
    adapter(tmp_path / "b", model_folder, KINDS["rslora"]())
    base, a, b = (load(str(folder)).fingerprint for folder in (model_folder, tmp_path / "a", tmp_path / "b"))
    assert len({base, a, b}) == 3
    assert a.startswith(base)
    assert load(str(model_folder), adapter=str(tmp_path / "a"), dtype="bfloat16").fingerprint == a


def test_the_tokenizer_of_an_adapter_is_the_one_it_was_trained_with(model_folder, tmp_path, tokenizer):
    adapter(tmp_path / "a", model_folder, KINDS["lora"]())
    assert load(str(tmp_path / "a")).render("Hi") == "<s><user>Hi<assistant>"
    tokenizer.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    said: list[str] = []
    assert load(str(tmp_path / "a"), tell=said.append).render("Hi") == "Hi!"
    assert "adapter's own tokenizer" in said[0]


def test_a_slice_with_an_adapter_is_the_slice_of_the_merged_model(model_folder, tmp_path):
    adapter(tmp_path / "a", model_folder, KINDS["lora"]())
    whole, part = (load(str(tmp_path / "a"), between=b, dtype="float32") for b in (None, (1, 3)))
    theta = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    a, b = (dct.Slice(lm, ["Write a poem"], 1, 3) for lm in (whole, part))
    assert torch.equal(a(theta), b(theta))
    base = dct.Slice(load(str(model_folder), dtype="float32"), ["Write a poem"], 1, 3)
    assert (a(theta) - base(theta)).abs().max() > 1e-2


def edited(folder: Path, change) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_what_does_not_fit_or_cannot_be_merged_is_refused_in_one_line(model_folder, tmp_path, monkeypatch):
    def says(folder: Path, message: str, **options: object) -> None:
        with pytest.raises(DctError, match=message) as caught:
            load(str(folder), **options)
        assert "\n" not in str(caught.value)

    adapter(tmp_path / "a", model_folder, KINDS["lora"]())
    says("demo", "does not fit demo .it was made for", adapter=tmp_path / "a")
    adapter(tmp_path / "missing", model_folder, KINDS["lora"]())
    edited(tmp_path / "missing", lambda t: t.pop(next(iter(t))))
    says(tmp_path / "missing", "its file does not hold base_model.model.model.layers.0.mlp.down_proj.lora_A.weight")
    adapter(tmp_path / "more", model_folder, KINDS["lora"]())
    edited(tmp_path / "more", lambda t: t.update({"base_model.model.model.layers.9.x.lora_A.weight": torch.ones(2)}))
    says(tmp_path / "more", "holds, and has no place for, base_model.model.model.layers.9.x")
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(random_model("llama"), prompt).save_pretrained(tmp_path / "prompt")
    says(model_folder, "of kind PROMPT_TUNING, which adds to prompts", adapter=tmp_path / "prompt")
    adapter(tmp_path / "nameless", "", KINDS["lora"]())
    says(tmp_path / "nameless", "does not say which model it belongs to")
    adapter(tmp_path / "gone", "/nowhere/at/all", KINDS["lora"]())
    says(tmp_path / "gone", "is an adapter of /nowhere/at/all: no model folder")
    (tmp_path / "empty").mkdir()
    says(model_folder, "is no adapter: it holds no adapter_config.json", adapter=tmp_path / "empty")
    says(model_folder, "no adapter folder", adapter=tmp_path / "nowhere")
    says(tmp_path / "a", "is an adapter itself", adapter=tmp_path / "a")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    says(tmp_path / "a", "pip install 'deep-causal-transcoders.peft.'")


@pytest.mark.parametrize("named", [True, False])
def test_commands_find_the_adapter_again(model_folder, tmp_path, workplace, named):
    adapter(tmp_path / "a", model_folder, KINDS["lora"]())
    words = ["--model", str(model_folder), "--adapter", "a"] if named else ["--model", "a"]

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output.replace("\n", " ")

    fit = run("fit", *words, "--s", 1, "--t", 3, "--factors", 2, "--iterations", 1, "--scale", 2, "--n", 1)
    assert "adapter merged" in fit
    assert "merged into the weights: LORA of rank 4" in run("rank", "--screen-only", "--n", 1)
    assert "merged into the weights" in run("steer", "--vector", 0, "--prompt", "Hi", "--max-new-tokens", 2)
    assert str(DEPTH) in run("models", *words[1:2], *words[2:])
