"""GGUF files: written here tensor by tensor as llama.cpp's converter would, read as the model that they came from."""

import shutil
import sys
from pathlib import Path

import numpy
import pytest
import torch
from conftest import DEPTH, WIDTH, random_model
from typer.testing import CliRunner

import dct
from dct import DctError
from dct.cli.app import app
from dct.gguf import read_header
from dct.loading import load
from dct.quantised import quantised_parameters

gguf = pytest.importorskip("gguf")

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ENDS = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries and keys as llama.cpp's rotation has them: pairs side by side, not halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def written(path: Path, architecture: str, tokenizer, kind: str = "F32", **extra: object) -> torch.nn.Module:
    """A random model as a GGUF file, its matrices stored as `kind`."""
    model = random_model(architecture)
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(DEPTH)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    special = set(tokenizer.added_tokens_decoder)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _ in vocabulary])
    writer.add_token_types([3 if number in special else 1 for _, number in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges(tokenizer)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    for name, parameter in model.state_dict().items():
        value = parameter.float()
        if name in ENDS:
            to = f"{ENDS[name]}.weight"
        else:
            block, inner = name.removeprefix("model.layers.").split(".", 1)
            stem, end = inner.rsplit(".", 1)
            to = f"blk.{block}.{NAMES[stem]}.{end}"
            if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
                heads = config.num_attention_heads if "q_proj" in stem else config.num_key_value_heads
                value = interleaved(value, heads)
        add(writer, to, value.numpy(), kind)
    for name, value in extra.items():
        add(writer, name, value, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def add(writer, name: str, value: numpy.ndarray, kind: str) -> None:
    stored = gguf.GGMLQuantizationType[kind]
    if value.ndim < 2 or stored == gguf.GGMLQuantizationType.F32 or value.shape[-1] % 32:
        writer.add_tensor(name, numpy.ascontiguousarray(value, dtype=numpy.float32))
    else:
        packed = gguf.quants.quantize(value, stored)
        writer.add_tensor(name, packed, raw_dtype=stored)


def merges(tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def pair(request, tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf"
    return path, written(path, request.param, tokenizer)


def test_a_file_of_plain_numbers_is_the_model_that_was_written(pair):
    path, model = pair
    lm = load(str(path), dtype="float32")
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        torch.testing.assert_close(lm.model(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    for name, parameter in lm.model.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    assert lm.describe()["source"] == "gguf (F32)"
    assert lm.checkpoint.kind == "gguf"


def test_prompts_are_rendered_and_cut_as_the_file_says(pair, tokenizer):
    lm = load(str(pair[0]), dtype="float32")
    text = "<s><user>Tell me how to bake bread<assistant>"
    assert lm.render("Tell me how to bake bread") == text
    assert lm.tokens("Tell me how to bake bread") == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_folder_with_one_file_is_that_file(pair, tmp_path):
    shutil.copy(pair[0], tmp_path / "any.gguf")
    lm = load(str(tmp_path), dtype="float32")
    assert lm.fingerprint == load(str(pair[0])).fingerprint
    assert lm.checkpoint.where == str(tmp_path / "any.gguf")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_packed_numbers_become_plain_weights_in_the_chosen_type(tmp_path, tokenizer, kind):
    model = written(tmp_path / "m.gguf", "qwen2", tokenizer, kind)
    for dtype in ("float32", "bfloat16"):
        lm = load(str(tmp_path / "m.gguf"), dtype=dtype, between=(1, 3))
        assert {str(p.dtype) for p in lm.model.parameters()} == {f"torch.{dtype}"}
        assert quantised_parameters(lm.model) == {}
        assert {type(module) for module in lm.model.modules() if hasattr(module, "in_features")} == {torch.nn.Linear}
    lm = load(str(tmp_path / "m.gguf"), dtype="float32")
    for name, parameter in lm.model.named_parameters():
        wanted = model.get_parameter(name)
        if parameter.ndim > 1 and wanted.shape[-1] % 32 == 0:  # gguf's own numbers, unpacked by gguf alone
            stored = gguf.GGMLQuantizationType[kind]
            wanted = torch.from_numpy(
                gguf.quants.dequantize(gguf.quants.quantize(wanted.detach().numpy(), stored), stored)
            )
        torch.testing.assert_close(parameter, wanted, atol=1e-6, rtol=1e-6)
    assert getattr(lm.model.config, "quantization_config", None) is None
    assert lm.describe()["source"] == f"gguf ({kind})"


def test_a_slice_is_the_slice_of_the_same_weights_in_a_folder(pair, tmp_path, tokenizer):
    path, model = pair
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prompts = ["Write a poem about the sea", "How do I pick a lock?"]
    slices = [dct.Slice(load(str(p), between=(1, 4), dtype="float32"), prompts, 1, 4) for p in (path, tmp_path)]
    a, b = (dct.fit(s, WIDTH, factors=4, scale=2.0, iterations=2, d_proj=4) for s in slices)
    torch.testing.assert_close(a.V, b.V)
    torch.testing.assert_close(a.alpha, b.alpha)


def test_what_transformers_does_not_read_is_said(tmp_path, tokenizer):
    written(tmp_path / "m.gguf", "llama", tokenizer, **{"rope_freqs.weight": numpy.ones(4, dtype=numpy.float32)})
    said: list[str] = []
    load(str(tmp_path / "m.gguf"), tell=said.append)
    assert "rope_freqs.weight of the file is not read by transformers" in said[0]


def test_damaged_files_are_refused_in_one_line(pair, tmp_path, monkeypatch):
    whole = pair[0].read_bytes()
    path = tmp_path / "m.gguf"
    for content, says in [
        (b"nothing of the sort", "is no GGUF file"),
        (whole[:-500], "is cut short"),
        (whole[:300], "damaged or cut short"),
        (whole[:4] + b"\x63" + whole[5:], "GGUF version 99"),
        (whole[:24] + b"\xff" * 8 + whole[32:], "damaged or cut short"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DctError, match=says) as caught:
            load(str(path))
        assert "\n" not in str(caught.value)
    monkeypatch.setattr("dct.gguf.importlib.util.find_spec", lambda name: None)
    with pytest.raises(DctError, match=r"pip install 'deep-causal-transcoders\[gguf\]'"):
        load(str(pair[0]))


def test_the_header_is_what_was_written(pair):
    path, model = pair
    header = read_header(path)
    assert header.architecture in path.name
    assert header.elements == sum(p.numel() for p in model.parameters())
    assert header.values[f"{header.architecture}.block_count"] == DEPTH


def test_commands_say_what_the_file_is_and_show_no_bars(pair, workplace, capfd):
    words = ["--model", str(pair[0]), "--s", "1", "--t", "3", "--factors", "2", "--iterations", "1", "--scale", "2"]
    result = CliRunner().invoke(app, ["fit", *words, "--n", "1"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "unpacked from GGUF (F32)" in result.output
    assert CliRunner().invoke(app, ["rank", "--screen-only", "--n", "1"]).exit_code == 0
    looked = CliRunner().invoke(app, ["models", str(pair[0])])
    assert looked.exit_code == 0, looked.output
    assert "gguf (F32)" in looked.output
    shown = "".join(capfd.readouterr()) + result.output
    assert "it/s" not in shown
    assert "Loading weights" not in shown
    assert sys.modules["gguf"].GGUFReader.__module__.startswith("gguf")
