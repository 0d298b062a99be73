"""Saved folders: what other programs find in them is the source's, but for the edit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import WIDTH, random_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import dct
from dct import DctError, UsageError
from dct.saving import staging

IDS = torch.tensor([[1, 5, 9, 20, 31, 7, 8, 9, 44]])
FOLDED = ("gemma2", "gemma3", "olmo2")
SIZES = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = SIZES | {"vocab_size": 300, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6, "pad_token_id": 0}
VISION = SIZES | {"image_size": 28, "patch_size": 14}
ARCHITECTURES = ("llama", "gpt2", "gpt_neox", "mixtral", "qwen3_moe", "phi3", *FOLDED)


def directions(n: int = 2, width: int = WIDTH) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(5))


def tensors(folder: Path) -> dict[str, tuple[str, Tensor]]:
    """Every tensor of a folder with the file that it is in, read by safetensors alone."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: (path.name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    return found


def logits(model) -> Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits.double()


@pytest.fixture
def source(tmp_path, tokenizer):
    """Factory of a user's model folder, with files beside it that no part of transformers wrote."""

    def make(architecture: str = "llama", dtype: torch.dtype = torch.float32, model=None, **options: object) -> Path:
        folder = tmp_path / "source"
        model = model if model is not None else random_model(architecture)
        model.to(dtype).save_pretrained(folder, **options)
        tokenizer.save_pretrained(folder)
        for name in ("tokenizer.model", "LICENSE", "preprocessor_config.json", "special_tokens_map.json"):
            (folder / name).write_text("{}" if name.endswith("json") else f"this is {name}")
        return folder

    return make


def saved(folder: Path, to: Path, D: Tensor, dtype: str = "float32", **options: object):
    """Loads a folder, ablates, saves; gives what was saved, the ablation and the edited model's logits."""
    lm = dct.load(str(folder), dtype=dtype)
    with dct.ablate(lm, D, fold_norms=True) as done:
        told = dct.save(lm, to, done, **options)
        return told, done, logits(lm.model)


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_shapes_and_types_are_the_sources_and_only_what_was_edited_differs(source, tmp_path, architecture):
    folder = source(architecture)
    told, done, wanted = saved(folder, tmp_path / "edited", directions())
    before, after = tensors(folder), tensors(tmp_path / "edited")
    assert {n: (f, t.shape, t.dtype) for n, (f, t) in before.items()} == {
        n: (f, t.shape, t.dtype) for n, (f, t) in after.items()
    }
    changed = {name for name in before if not torch.equal(before[name][1], after[name][1])}
    # Experts are one parameter in memory and many tensors on disk.
    written = {"mixtral": "w2", "qwen3_moe": "down_proj", "gpt_neox": "dense"}.get(architecture)
    assert len(changed) == told.edited >= len(done.edited)
    assert written is None or any(written in name for name in changed)
    assert told.tensors == len(before)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_values_are_the_sources_projected_in_double_precision_and_rounded_once(source, tmp_path):
    """A bfloat16 source, in memory in float32 or bfloat16: the saved bits are the same, and the right ones."""
    folder = source(dtype=torch.bfloat16)
    D = directions()
    Q = torch.linalg.qr(D.double().T)[0]
    for dtype in ("float32", "bfloat16"):
        saved(folder, tmp_path / dtype, D, dtype=dtype)
        before, after = tensors(folder), tensors(tmp_path / dtype)
        for name, (_, old) in before.items():
            new = after[name][1]
            assert new.dtype == torch.bfloat16
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                wanted = old.double() - Q @ (Q.T @ old.double())
                # Different orders of summation may fall on two sides of a tie.
                assert float((new == wanted.to(torch.bfloat16)).double().mean()) > 0.999
            else:
                assert torch.equal(new, old)


def test_float32_is_saved_unrounded_from_a_model_in_bfloat16(source, tmp_path):
    folder, D = source(dtype=torch.bfloat16), directions()
    told, _, _ = saved(folder, tmp_path / "edited", D, dtype="bfloat16")
    assert told.dtypes == ["bfloat16"]
    lm = dct.load(str(folder), dtype="bfloat16")
    with dct.ablate(lm, D) as done:
        wide = dct.save(lm, tmp_path / "wide", done, dtype="float32")
    assert wide.dtypes == ["float32"]
    after = tensors(tmp_path / "wide")
    assert {t.dtype for _, t in after.values()} == {torch.float32}
    assert json.loads((tmp_path / "wide/config.json").read_text()).get("dtype") == "float32"
    D = done.directions
    for name in done.edited:
        assert float((D @ after[name][1].double()).norm()) < 1e-6 * float(after[name][1].double().norm())
    assert wide.rounding["survived"] == pytest.approx(1, abs=1e-6)
    assert wide.rounding["remaining"] < 1e-6


def test_shards_stay_as_they_are(source, tmp_path):
    folder = source(max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    _, done, wanted = saved(folder, tmp_path / "edited", directions())
    before, after = tensors(folder), tensors(tmp_path / "edited")
    assert {n: f for n, (f, _) in before.items()} == {n: f for n, (f, _) in after.items()}
    index = "model.safetensors.index.json"
    old, new = (json.loads((at / index).read_text()) for at in (folder, tmp_path / "edited"))
    assert old["weight_map"] == new["weight_map"]
    assert old["metadata"] == new["metadata"]
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "edited")), wanted)
    assert all(not torch.equal(before[name][1], after[name][1]) for name in done.edited)
    saved(folder, tmp_path / "half", directions(), dtype="float32")
    lm = dct.load(str(folder))
    dct.save(lm, tmp_path / "sixteen", dtype="bfloat16")
    small = json.loads((tmp_path / "sixteen" / index).read_text())
    assert small["metadata"]["total_size"] == old["metadata"]["total_size"] // 2
    assert small["weight_map"] == old["weight_map"]


def test_types_that_a_source_mixes_are_kept(source, tmp_path):
    """A router in float32 within a bfloat16 model stays what it is."""
    folder = source(dtype=torch.bfloat16)
    held = {name: t for name, (_, t) in tensors(folder).items()}
    wide = "model.layers.1.mlp.gate_proj.weight"
    held[wide] = held[wide].float() + 1e-6
    held["unknown.codes"] = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    save_file(held, folder / "model.safetensors", {"format": "pt", "note": "kept"})
    saved(folder, tmp_path / "edited", directions())
    after = tensors(tmp_path / "edited")
    assert torch.equal(after[wide][1], held[wide])
    assert torch.equal(after["unknown.codes"][1], held["unknown.codes"])
    with safe_open(tmp_path / "edited/model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": "kept"}


def test_what_is_not_in_memory_is_copied(source, tmp_path):
    """Layers for predicting several tokens, which transformers leaves alone."""
    folder = source()
    held = {name: t for name, (_, t) in tensors(folder).items()}
    extra = {"mtp.layers.0.down_proj.weight": torch.randn(WIDTH, 48), "mtp.head": torch.randn(7)}
    save_file(held | extra, folder / "model.safetensors", {"format": "pt"})
    saved(folder, tmp_path / "edited", directions())
    after = tensors(tmp_path / "edited")
    assert after.keys() == held.keys() | extra.keys()
    assert all(torch.equal(after[name][1], value) for name, value in extra.items())


def test_a_source_that_leaves_out_the_prefix_of_its_names(source, tmp_path):
    """GPT-2 on the hub has `h.0.attn...` where transformers would write `transformer.h.0.attn...`."""
    folder = source("gpt2")

    bare = {name.removeprefix("transformer."): t for name, (_, t) in tensors(folder).items()}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    told, done, wanted = saved(folder, tmp_path / "edited", directions())
    after = tensors(tmp_path / "edited")
    assert after.keys() == bare.keys()
    assert told.edited == 2 * len(done.edited)  # each matrix and its bias
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "edited")), wanted)


def test_tied_embeddings_stay_tied(source, tmp_path):
    config = transformers.LlamaConfig(**random_model("llama").config.to_dict() | {"tie_word_embeddings": True})
    folder = source(model=AutoModelForCausalLM.from_config(config).eval())
    assert "lm_head.weight" not in tensors(folder)
    _, _, wanted = saved(folder, tmp_path / "edited", directions())
    assert tensors(tmp_path / "edited").keys() == tensors(folder).keys()
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "edited")), wanted)


def test_whole_vision_model_is_saved(tokenizer, tmp_path):
    config = transformers.Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    before = tensors(tmp_path / "source")
    assert any("vision" in name for name in before)
    options = {"dtype": torch.float32}
    whole = transformers.Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "source", **options).eval()
    lm = dct.LanguageModel(whole, tokenizer, "x", layers_path="model.language_model.layers")
    lm.checkpoint = _Checkpoint(tmp_path / "source")
    with dct.ablate(lm, directions(), fold_norms=True) as done:
        told = dct.save(lm, tmp_path / "edited", done)
        wanted = logits(lm.model)
    after = tensors(tmp_path / "edited")
    assert {n: (t.shape, t.dtype) for n, (_, t) in before.items()} == {
        n: (t.shape, t.dtype) for n, (_, t) in after.items()
    }
    assert told.tensors == len(before)
    assert told.edited == len(done.edited) == 6
    for name in (name for name in before if "vision" in name):
        assert torch.equal(before[name][1], after[name][1])
    again = transformers.Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "edited", **options).eval()
    torch.testing.assert_close(logits(again), wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))


def test_text_tower_alone_in_memory_is_put_back_into_its_vision_model(tokenizer, tmp_path):
    """The text model's own class has other names than the vision model that its weights lie in."""
    config = transformers.Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4)
    whole = transformers.Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    alone = transformers.Gemma3ForCausalLM(config.text_config).eval()
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.lm_head.load_state_dict(whole.lm_head.state_dict())
    lm = dct.LanguageModel(alone, tokenizer, "x")
    lm.checkpoint = _Checkpoint(tmp_path / "source")
    before = tensors(tmp_path / "source")
    with dct.ablate(lm, directions(), fold_norms=True) as done, pytest.MonkeyPatch.context() as patch:
        patch.setattr("dct.saving.check_opens", lambda *_: None)  # its class is not the folder's
        told = dct.save(lm, tmp_path / "edited", done)
        wanted = logits(alone)
    assert told.tensors == len(before)
    assert told.edited == len(done.edited)
    again = transformers.Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "edited").eval()
    torch.testing.assert_close(logits(again), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


class _Checkpoint:
    """Where a model came from, for those that a test loads in its own way."""

    divisible = True
    kind = "folder"
    options: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, where: Path) -> None:
        self.where = str(where)


def test_other_changes_in_memory_are_saved_too(source, tmp_path):
    """Whatever differs from the source, such as an adapter that was merged."""
    folder = source()
    lm = dct.load(str(folder))
    with torch.no_grad():
        lm.model.model.layers[2].self_attn.q_proj.weight += 0.5
    with dct.ablate(lm, directions()) as done:
        told = dct.save(lm, tmp_path / "edited", done)
        wanted = logits(lm.model)
    assert told.edited == len(done.edited) + 1
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "edited")), wanted)


def test_unedited_model_is_its_source_to_the_bit(source, tmp_path):
    folder = source(dtype=torch.bfloat16)
    told = dct.save(dct.load(str(folder)), tmp_path / "same")
    assert (told.edited, told.rounding) == (0, None)
    name = "model.safetensors"
    assert (folder / name).read_bytes() == (tmp_path / "same" / name).read_bytes()


# --- rounding ---------------------------------------------------------------------------------------------------------


def test_share_of_the_edit_that_survives_is_measured(source, tmp_path):
    """Against the same figures by their definition; a direction that the matrices hardly write is mostly lost."""
    folder = source(dtype=torch.bfloat16)
    held = {name: t for name, (_, t) in tensors(folder).items()}
    v = torch.zeros(WIDTH)
    v[:] = 1
    writers = [name for name in held if name.endswith(("o_proj.weight", "down_proj.weight"))]
    u = (v / v.norm()).double()
    for name in writers:
        old = held[name].double()
        held[name] = (old - 0.99 * torch.outer(u, u @ old)).to(torch.bfloat16)
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    told, _, _ = saved(folder, tmp_path / "edited", v[None])
    after = tensors(tmp_path / "edited")
    elements = lost = along = size = left = before = 0.0
    for name in writers:
        W, S = held[name].double(), after[name][1].double()
        E = -torch.outer(u, u @ W)
        elements += float((E != 0).sum())
        lost += float(((E != 0) & (S == W)).sum())
        along += float((E * (S - W)).sum())
        size += float((E * E).sum())
        left += float((u @ S).square().sum())
        before += float((u @ W).square().sum())
    assert told.rounding["lost"] == pytest.approx(lost / elements, abs=1e-3)
    assert told.rounding["survived"] == pytest.approx(along / size, rel=1e-3)
    assert told.rounding["remaining"] == pytest.approx((left / before) ** 0.5, rel=1e-3)
    assert told.rounding["lost"] > 0.2


def test_numbers_too_large_for_float16_are_refused(source, tmp_path):
    model = random_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 3] = 1e6
    lm = dct.load(str(source(model=model)))
    with pytest.raises(DctError, match=r"embed_tokens.weight holds numbers too large for float16.*bfloat16"):
        dct.save(lm, tmp_path / "edited", dtype="float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


# --- what lies beside -------------------------------------------------------------------------------------------------


def test_every_small_file_is_copied_and_no_other_weights(source, tmp_path):
    folder = source()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/rag.jinja").write_text("{{ messages }}")
    for name in ("pytorch_model.bin", "model.Q8_0.gguf", "consolidated.00.pth", "consolidated.safetensors"):
        (folder / name).write_bytes(b"old weights")
    for name in (".git/config", ".cache/huggingface/x", "onnx/model.onnx", "onnx/config.json", "__pycache__/m.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not of the model")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    told, _, _ = saved(folder, tmp_path / "edited", directions())
    there = {p.relative_to(tmp_path / "edited").as_posix() for p in (tmp_path / "edited").rglob("*") if p.is_file()}
    wanted = {p.name for p in folder.iterdir() if p.suffix in (".json", ".jinja", ".model", "") and p.is_file()}
    wanted -= {"pytorch_model.bin.index.json"}
    assert {"tokenizer.model", "LICENSE", "preprocessor_config.json", "config.json", "tokenizer.json"} <= wanted
    assert there == wanted | {"additional_chat_templates/rag.jinja", "model.safetensors", "dct.json"}
    assert sorted(told.files) == sorted(there - {"model.safetensors", "dct.json"})
    for name in set(told.files) - {"tokenizer_config.json"}:
        assert (folder / name).read_bytes() == (tmp_path / "edited" / name).read_bytes()


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_tokenizer_class_is_the_sources(source, tmp_path, kind):
    folder = source()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": kind}))
    saved(folder, tmp_path / "edited", directions())
    assert (tmp_path / "edited/tokenizer_config.json").read_bytes() == path.read_bytes()


def test_class_that_only_one_program_knows_gets_its_known_name(source, tmp_path, tokenizer):
    folder = source()
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    saved(folder, tmp_path / "edited", directions())
    told = json.loads((tmp_path / "edited/tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = AutoTokenizer.from_pretrained(tmp_path / "edited")
    text = "Explain the moon, twice!"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == tokenizer.chat_template


def test_dct_json_says_what_was_done(source, tmp_path):
    folder = source()
    lm = dct.load(str(folder))
    with dct.ablate(lm, directions(2)) as done:
        dct.save(lm, tmp_path / "edited", done, about={"ablated": ["3", "-4"], "site": "source"})
    told = json.loads((tmp_path / "edited/dct.json").read_text())
    assert told["ablated"] == ["3", "-4"]
    assert told["directions"] == 2
    assert told["edited"] == sorted(done.edited)
    assert (told["from"], told["fingerprint"], told["dct"]) == (str(folder), lm.fingerprint, dct.__version__)


# --- models without files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "gemma3"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_model_made_in_python_is_saved_plainly(make_lm, tmp_path, tokenizer, architecture, dtype):
    lm = make_lm(architecture)
    with dct.ablate(lm, directions(), fold_norms=True) as done:
        told = dct.save(lm, tmp_path / "edited", done, dtype=dtype)
        wanted = logits(lm.model)
    lm.model.save_pretrained(tmp_path / "plain")
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    plain, after = tensors(tmp_path / "plain"), tensors(tmp_path / "edited")
    assert {n: t.shape for n, (_, t) in plain.items()} == {n: t.shape for n, (_, t) in after.items()}
    assert {t.dtype for _, t in after.values()} == {kind}
    assert told.edited
    assert told.rounding["survived"] == pytest.approx(1, abs=0.05)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "edited", dtype=torch.float32)
    far = 1e-5 if dtype == "auto" else 0.1
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=far * float(wanted.abs().max()))
    text = "Write a poem about the sea"
    again = AutoTokenizer.from_pretrained(tmp_path / "edited")
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (
        json.loads((tmp_path / "edited/tokenizer_config.json").read_text())["tokenizer_class"]
        == "PreTrainedTokenizerFast"
    )
    config = json.loads((tmp_path / "edited/config.json").read_text())
    assert "quantization_config" not in config
    assert config.get("dtype", config.get("torch_dtype")) == str(kind).removeprefix("torch.")


def test_model_made_in_python_is_split_into_shards(make_lm, tmp_path, monkeypatch):
    monkeypatch.setattr("dct.saving.whole.SHARD", 20_000)
    lm = make_lm("mixtral")
    dct.save(lm, tmp_path / "edited")
    assert len(list((tmp_path / "edited").glob("*.safetensors"))) > 3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    torch.testing.assert_close(logits(model), logits(lm.model))


def test_a_source_in_another_format_is_saved_from_memory_with_its_small_files(source, tmp_path, tokenizer):
    folder = source(dtype=torch.bfloat16)
    (folder / "model.safetensors").rename(tmp_path / "kept")
    lm = dct.LanguageModel(random_model("llama").to(torch.bfloat16), tokenizer, "x")
    lm.checkpoint = _Checkpoint(folder)
    told = dct.save(lm, tmp_path / "edited")
    assert "tokenizer.model" in told.files
    assert {t.dtype for _, t in tensors(tmp_path / "edited").values()} == {torch.bfloat16}
    assert tensors(tmp_path / "edited").keys() == set(lm.model.state_dict())


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma3", "phi3"])
def test_adapter_makes_the_source_the_ablated_model(source, tmp_path, architecture):
    """By PEFT itself, which knows nothing of us; biases and Conv1D included."""
    peft = pytest.importorskip("peft")
    folder = source(architecture)
    told, done, wanted = saved(folder, tmp_path / "adapter", directions(), form="adapter")
    base = AutoModelForCausalLM.from_pretrained(folder)
    assert float((logits(base) - wanted).abs().max()) > 0.01
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-4 * max(1.0, float(wanted.abs().max())))
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), wanted, rtol=0, atol=1e-4 * max(1.0, float(wanted.abs().max())))
    assert told.edited == len(done.edited)
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "dct.json"
    ]  # fmt: skip


def test_adapter_of_a_bfloat16_model_keeps_the_whole_edit(source, tmp_path):
    folder = source(dtype=torch.bfloat16)
    told, _, _ = saved(folder, tmp_path / "adapter", directions(), dtype="bfloat16", form="adapter")
    assert told.dtypes == ["float32"]
    assert told.rounding["survived"] == pytest.approx(1, abs=1e-6)
    assert told.rounding["remaining"] < 1e-6


def test_adapter_is_refused_where_it_cannot_hold_the_edit(source, tmp_path):
    lm = dct.load(str(source("mixtral")))
    with dct.ablate(lm, directions()) as done, pytest.raises(DctError, match=r'adapter cannot hold .*`form="model"`'):
        dct.save(lm, tmp_path / "adapter", done, form="adapter")
    with pytest.raises(DctError, match="nothing was edited"):
        dct.save(lm, tmp_path / "adapter", form="adapter")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_weights_cannot_hold_is_refused(source, tmp_path):
    lm = dct.load(str(source("gemma3")))
    with dct.ablate(lm, directions()) as done:
        with pytest.raises(DctError, match=r"projected while .* runs.*fold_norms=True"):
            dct.save(lm, tmp_path / "edited", done)
        with pytest.raises(DctError, match="steered or projected while it runs"):
            dct.save(lm, tmp_path / "edited")
    with dct.steer(lm, torch.ones(WIDTH), layer=2), pytest.raises(DctError, match="steered or projected"):
        dct.save(lm, tmp_path / "edited")
    with pytest.raises(UsageError, match="unknown `dtype`"):
        dct.save(lm, tmp_path / "edited", dtype="int8")
    with pytest.raises(UsageError, match="unknown `form`"):
        dct.save(lm, tmp_path / "edited", form="gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_part_of_a_model_is_refused(source, tmp_path):
    lm = dct.load(str(source()), between=(1, 3))
    with pytest.raises(DctError, match="load the whole model"):
        dct.save(lm, tmp_path / "edited")


def test_weights_that_the_source_does_not_have_are_refused(source, tmp_path):
    """Nothing edited may be left out because its name is unknown."""
    folder = source()
    lm = dct.load(str(folder))

    held = {name.replace("o_proj", "wo"): t for name, (_, t) in tensors(folder).items()}
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    with dct.ablate(lm, directions()) as done, pytest.raises(DctError, match=r"no tensor on disk .*o_proj.*adapter"):
        dct.save(lm, tmp_path / "edited", done)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_other_weights_of_the_same_shape_are_not_written_over(source, tmp_path):
    """A tensor whose name only ends alike must hold alike values."""
    folder = source()
    lm = dct.load(str(folder))

    held = {f"other.{name}": torch.randn_like(t) for name, (_, t) in tensors(folder).items()}
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    with dct.ablate(lm, directions()) as done, pytest.raises(DctError, match="no tensor on disk"):
        dct.save(lm, tmp_path / "edited", done)


def test_taken_places_are_refused(source, tmp_path, monkeypatch):
    lm = dct.load(str(source()))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    with pytest.raises(DctError, match="exists and is not empty"):
        dct.save(lm, tmp_path / "full")
    with pytest.raises(DctError, match="exists and is not empty"):
        dct.save(lm, tmp_path / "full/x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(DctError, match="the folder that you are in"):
        dct.save(lm, ".")
    monkeypatch.chdir(tmp_path)
    dct.save(lm, "empty")
    assert (tmp_path / "empty/config.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full", "source"]


# --- kills, full disks ------------------------------------------------------------------------------------------------


def test_disk_without_room_is_refused_before_anything_is_written(source, tmp_path, monkeypatch):
    lm = dct.load(str(source()))
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(DctError, match=r"cannot write .*GB are needed.*free some space"):
        dct.save(lm, tmp_path / "a/b/edited")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(("number", "cure"), [("ENOSPC", "free some space"), ("EROFS", "where you may write")])
def test_failure_while_writing_leaves_nothing(source, tmp_path, monkeypatch, number, cure):
    import errno

    lm = dct.load(str(source()))

    def failing(*_):
        code = getattr(errno, number)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(DctError, match=f"cannot write .*{cure}"):
        dct.save(lm, tmp_path / "a/b/edited")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


SAVE = """
import sys, time, torch, dct
from dct.saving import whole
verify = whole._verify
def slow(*arguments):
    print("written", flush=True)
    time.sleep(60)
whole._verify = slow
lm = dct.load(sys.argv[1])
dct.save(lm, sys.argv[2])
"""


def begun(folder: Path, to: Path) -> "subprocess.Popen[str]":
    """A save in another process, stopped when everything is written and nothing has its name."""
    words = [sys.executable, "-c", SAVE, str(folder), str(to)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "written"
    return process


def test_a_killed_save_leaves_an_orphan_that_the_next_one_removes_unless_it_lives(source, tmp_path):
    folder, to = source(), tmp_path / "edited"
    process = begun(folder, to)
    try:
        hidden = [p for p in tmp_path.iterdir() if p.name.startswith(".edited.part-")]
        assert len(hidden) == 1
        assert not to.exists()
        dct.save(dct.load(str(folder)), to)  # a second save to the same place, while the first is alive
        assert hidden[0].is_dir()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    shutil.rmtree(to)
    assert hidden[0].is_dir()
    dct.save(dct.load(str(folder)), to)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edited", "source"]
    assert ".lock" not in {p.name for p in to.iterdir()}


def test_an_orphan_without_a_lock_is_known_by_its_process(tmp_path):
    dead, alive, other = (tmp_path / f".x.part-{number}-ab" for number in (2**22 + 17, os.getpid(), "y"))
    for path in (dead, alive, other):
        path.mkdir()
    (tmp_path / ".xy.part-1-ab").mkdir()
    staging.sweep(tmp_path / "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([alive.name, ".xy.part-1-ab"])


def test_two_saves_to_one_place_leave_one_whole_folder(source, tmp_path):
    lm = dct.load(str(source()))
    slower = staging.staged(tmp_path / "edited")
    (slower.__enter__() / "a").write_text("")
    dct.save(lm, tmp_path / "edited")
    with pytest.raises(DctError, match="exists and is not empty"):
        slower.__exit__(None, None, None)
    assert (tmp_path / "edited/config.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edited", "source"]


def test_modes_are_the_users(source, tmp_path):
    lm = dct.load(str(source()))
    before = os.umask(0o027)
    try:
        with dct.ablate(lm, directions()) as done:
            dct.save(lm, tmp_path / "edited", done)
            dct.save(lm, tmp_path / "adapter", done, form="adapter")
            lm.checkpoint = None
            dct.save(lm, tmp_path / "plain", done)
    finally:
        os.umask(before)
    for name in ("edited", "adapter", "plain"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o750
        assert {p.stat().st_mode & 0o777 for p in (tmp_path / name).iterdir()} == {0o640}


def test_model_of_the_hub_is_saved_from_its_cache(source, tmp_path, monkeypatch):
    """Without a network: the files that are there, links resolved."""
    folder = source(dtype=torch.bfloat16)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--someone--tiny"
    shot, blobs = repository / "snapshots" / commit, repository / "blobs"
    shot.mkdir(parents=True)
    blobs.mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for path in folder.iterdir():
        path.rename(blobs / path.name)
        (shot / path.name).symlink_to(Path("../../blobs") / path.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    lm = dct.load(str(shot))
    lm.checkpoint = _Checkpoint(Path("someone/tiny"))
    lm.checkpoint.kind = "hub"
    with dct.ablate(lm, directions()) as done:
        told = dct.save(lm, tmp_path / "edited", done)
        adapter = dct.save(lm, tmp_path / "adapter", done, form="adapter")
    assert "tokenizer.model" in told.files
    assert {t.dtype for _, t in tensors(tmp_path / "edited").values()} == {torch.bfloat16}
    assert not any(p.is_symlink() for p in (tmp_path / "edited").iterdir())
    config = json.loads((adapter.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/tiny"


def test_tensors_that_are_one_on_disk_and_several_in_memory(monkeypatch):
    """Some architectures fuse queries and keys on disk: one alone says nothing of where it goes."""
    from dct.saving import layout

    def written(_, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        fused: dict[str, list[Tensor]] = {}
        for name, values in tensors.items():
            fused.setdefault(name.replace(".q.", ".qk.").replace(".k.", ".qk."), []).append(values)
        return {name: torch.cat(parts) for name, parts in fused.items()}

    monkeypatch.setattr("dct.compat.disk_tensors", written)
    memory = {f"layers.{n}.{part}.weight": torch.randn(3, 4) for n in (0, 1) for part in ("q", "k", "o")}
    memory["rope"] = torch.randn(2)
    shapes = {f"model.layers.{n}.qk.weight": (6, 4) for n in (0, 1)} | {
        f"model.layers.{n}.o.weight": (3, 4) for n in (0, 1)
    }
    found = list(layout.pieces(None, shapes, memory))
    assert [name for name in found if isinstance(name, str)] == ["rope"]
    pieces = {p.name: p for p in found if not isinstance(p, str)}
    assert pieces.keys() == shapes.keys()
    for n in (0, 1):
        fused = pieces[f"model.layers.{n}.qk.weight"]
        assert torch.equal(fused.values, torch.cat([memory[f"layers.{n}.q.weight"], memory[f"layers.{n}.k.weight"]]))
        assert (fused.owner, pieces[f"model.layers.{n}.o.weight"].owner) == (None, f"layers.{n}.o.weight")
