"""Names that stand for models, folders whose files and configuration do not fit together, and hub refusals."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
import transformers
from conftest import DEPTH, WIDTH, random_model
from safetensors.torch import load_file, save_file

import dct
from dct import DctError, placement
from dct.loading import load
from dct.sources import find

CONFIG = {
    "vocab_size": 300,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
PATCHES = {"image_size": 28, "patch_size": 14}
QWEN_VISION = {
    "depth": DEPTH,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": WIDTH,
}
ROTATED = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}

VISION_LANGUAGE = {
    "gemma3": lambda: transformers.Gemma3Config(
        text_config={**CONFIG, "head_dim": 8, "sliding_window": 6},
        vision_config={**VISION, **PATCHES},
        mm_tokens_per_image=4,
        image_token_index=290,
        boi_token_index=291,
        eoi_token_index=292,
    ),
    "qwen3_vl": lambda: transformers.Qwen3VLConfig(
        text_config={**CONFIG, "head_dim": 8, "rope_parameters": ROTATED},
        vision_config={**QWEN_VISION, "deepstack_visual_indexes": [1, 2], "num_position_embeddings": 16},
        image_token_id=290,
        video_token_id=291,
        vision_start_token_id=292,
        vision_end_token_id=293,
    ),
    "mistral3": lambda: transformers.Mistral3Config(
        text_config={**CONFIG, "model_type": "mistral", "head_dim": 8},
        vision_config={**VISION, **PATCHES, "model_type": "pixtral", "head_dim": 8},
        image_token_index=290,
    ),
    "llava": lambda: transformers.LlavaConfig(
        text_config={**CONFIG, "model_type": "llama"},
        vision_config={**VISION, **PATCHES, "model_type": "clip_vision_model"},
        image_token_index=290,
    ),
    "qwen2_audio": lambda: transformers.Qwen2AudioConfig(
        text_config={**CONFIG, "model_type": "qwen2"},
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "d_model": 16,
            "encoder_layers": DEPTH,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "num_mel_bins": 8,
            "max_source_positions": 20,
        },
        audio_token_index=290,
    ),
}


def shuffled(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Weights that all do something."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.6 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def copied(model_folder, tmp_path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def configured(folder: Path, **changes: object) -> Path:
    """The folder with another configuration."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**config, **changes}.items() if v is not ...}))
    return folder


def holding(folder: Path, change) -> Path:
    """The folder with other tensors, written by safetensors itself."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def refused(folder: Path | str, says: str, **options: object) -> None:
    for between in (None, (1, 3)):
        with pytest.raises(DctError, match=says) as caught:
            load(str(folder), between=between, **options)
        assert "\n" not in str(caught.value)
        assert "ignore_mismatched" not in str(caught.value)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["phi", "qwen", "gpt2"])
def test_a_folder_wins_over_an_alias_and_it_is_said(model_folder, workplace, alias):
    shutil.copytree(model_folder, workplace / alias)
    said: list[str] = []
    lm = load(alias, tell=said.append)
    assert lm.depth == DEPTH
    assert [remark for remark in said if "is a folder here" in remark] == said[:1]


def test_an_alias_stands_where_the_folder_of_its_name_holds_no_model(workplace):
    (workplace / "phi").mkdir()
    assert find("phi").where == "microsoft/Phi-3-mini-4k-instruct"


def test_demo_is_the_model_that_ships(model_folder, workplace):
    shutil.copytree(model_folder, workplace / "demo")
    assert find("demo").where != "demo"
    assert "./demo is the folder" in find("demo").remarks[0]
    assert find("./demo").where == "demo"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("empty", "holds no config.json, no adapter_config.json and no .gguf file"),
        ("./nowhere", "no model folder nowhere"),
        ("a/b/c", "no model folder a/b/c"),
        ("two words", "no model folder two words"),
        ("some.gguf", "no GGUF file some.gguf"),
        ("here.txt", "here.txt is a file, and neither"),
        ("model.safetensors", "name its folder, \\."),
        ("several", r"several holds 2 GGUF files: name one of a.gguf, b.GGUF"),
        ("m-00001-of-00002.gguf", "one piece of a split GGUF file"),
    ],
)
def test_what_is_no_model_is_told_in_one_line(workplace, name, says):
    for folder in ("empty", "several"):
        (workplace / folder).mkdir()
    files = ("here.txt", "model.safetensors", "several/a.gguf", "several/b.GGUF", "m-00001-of-00002.gguf")
    for file in files:
        (workplace / file).write_bytes(b"x")
    with pytest.raises(DctError, match=says):
        load(name)


# --- what files and configuration say of each other ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"]
)
def test_missing_tensors_are_named(copied, name):
    refused(holding(copied, lambda t: t.pop(name)), f"do not hold {name}, and random numbers would stand there")


def test_several_missing_tensors_are_counted(copied):
    def drop(tensors):
        for name in [name for name in tensors if ".3." in name]:
            del tensors[name]

    refused(holding(copied, drop), r"do not hold model\.layers\.3\.input_layernorm\.weight, .* and 6 more")


def test_more_blocks_than_on_disk(copied):
    refused(configured(copied, num_hidden_layers=DEPTH + 2), r"do not hold model\.layers\.5\..* and 15 more")


def test_fewer_blocks_than_on_disk(copied):
    refused(configured(copied, num_hidden_layers=DEPTH - 1), "files hold 5 blocks and its config.json names 4")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "qwen2"}, "model_type qwen2 and architectures LlamaForCausalLM, which is of type llama"),
        ({"model_type": "mistral"}, "which is of type llama"),
        ({"model_type": "qwen2", "architectures": ...}, r"do not hold model\.layers\.0\.self_attn\.k_proj\.bias"),
        ({"model_type": "bert", "architectures": ...}, "cannot load"),
        ({"model_type": "clip", "architectures": ...}, "a clip model is no decoder language model"),
        (
            {"hidden_size": 64},
            r"lm_head\.weight is 300 x 32 in the files and 300 x 64 by its .* \(and 47 more",
        ),
        ({"intermediate_size": 50}, r"mlp\.down_proj\.weight is 32 x 48 in the files and 32 x 50 by"),
        ({"vocab_size": 301}, "lm_head.weight is 300 x 32 in the files and 301 x 32 by"),
        ({"quantization_config": {"quant_method": "made-up"}}, "quantised by 'made-up', which transformers does not"),
    ],
)
def test_a_configuration_of_another_model(copied, changes, says):
    refused(configured(copied, **changes), says)


def test_biases_that_the_model_would_leave_out(tmp_path, tokenizer):
    random_model("qwen2").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    refused(configured(tmp_path, model_type="llama", architectures=...), "k_proj.bias.* a llama model .* leave out")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**7},
        {"num_hidden_layers": 10**10},
        {"num_hidden_layers": 9_999},
        {"hidden_size": 10**9},
        {"intermediate_size": 10**12},
        {"num_attention_heads": 10**9},
        {"vocab_size": 10**10},
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(copied, monkeypatch, changes):
    monkeypatch.setattr(transformers.LlamaForCausalLM, "__init__", lambda *_: pytest.fail("built"))
    [(key, value)] = changes.items()
    refused(configured(copied, **changes), f"config.json says {key} {value:,}")


def test_quantised_tensors_without_a_word_in_the_configuration(copied):
    def pack(tensors):
        name = "model.layers.1.mlp.down_proj.weight"
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)

    refused(holding(copied, pack), "down_proj.weight_scale_inv, which a llama model")
    whole = {"lm_head.weight": torch.ones(300, 32, dtype=torch.int8)}
    refused(holding(copied, lambda t: t.update(whole)), "lm_head.weight is stored as integers")


def test_numbers_that_are_none_and_blocks_that_are_zero(copied, tmp_path):
    def spoil(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")

    def clear(tensors):
        for name in [name for name in tensors if "layers" in name]:
            tensors[name] = torch.zeros_like(tensors[name])

    def clear_one(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"].zero_()

    other, third = (Path(shutil.copytree(copied, tmp_path / name)) for name in ("other", "third"))
    refused(holding(copied, spoil), r"NaN or infinity in model\.layers\.1\.mlp\.up_proj\.weight")
    refused(holding(other, clear), "every weight of the blocks of .* is zero")
    said: list[str] = []
    load(str(holding(third, clear_one)), tell=said.append)
    assert said == ["all zero, as if never trained: model.layers.1.mlp.up_proj.weight"]


def test_a_file_that_is_cut_short(copied):
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[:-1000])
    refused(copied, "model.safetensors is cut short")
    (copied / "model.safetensors").write_bytes(struct.pack("<Q", 2**40) + whole[8:])
    refused(copied, "header of model.safetensors is damaged")


def test_a_shard_that_is_not_there(tmp_path, tokenizer):
    random_model("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    tokenizer.save_pretrained(tmp_path)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(tmp_path, f"names {shard.name}, which is not there")


class Trap:
    """Its pickle runs code when it is read."""

    def __reduce__(self):
        return (print, ("ran",))


def test_pickles_are_read_as_tensors_or_refused_without_advice_to_allow_them(copied, capsys):
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(tensors, copied / "pytorch_model.bin")
    assert load(str(copied)).depth == DEPTH
    torch.save({**tensors, "more": Trap()}, copied / "pytorch_model.bin")
    with pytest.raises(DctError, match="get the model as safetensors") as caught:
        load(str(copied))
    assert "weights_only" not in str(caught.value)
    assert "ran" not in capsys.readouterr().out


def test_old_buffers_and_other_towers_are_no_reason_to_refuse(copied):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["vision_tower.encoder.weight"] = torch.ones(4, 4)

    said: list[str] = []
    load(str(holding(copied, add)), tell=said.append)
    assert said == ["1 tensors of the files are no part of this model (vision_tower)"]


def test_a_whole_model_with_an_adapter_in_its_folder_is_not_guessed_about(copied):
    (copied / "adapter_config.json").write_text("{}")
    refused(copied, "a whole model and an adapter")


# --- models with other towers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=VISION_LANGUAGE)
def towers(request, tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("towers") / request.param
    torch.manual_seed(0)
    config = VISION_LANGUAGE[request.param]()
    auto = transformers.AutoModelForMultimodalLM
    if type(config) in transformers.AutoModelForImageTextToText._model_mapping:
        auto = transformers.AutoModelForImageTextToText
    model = shuffled(auto.from_config(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model


def test_models_with_other_towers_load_whole_and_run_on_text(towers):
    folder, model = towers
    lm = load(str(folder), dtype="float32")
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, model(ids).logits)
    assert (lm.depth, lm.width) == (DEPTH, WIDTH)
    assert lm.model.state_dict().keys() == model.state_dict().keys()
    assert lm.describe()["towers"] == "text and others"


def test_models_with_other_towers_load_in_part(towers):
    folder, _ = towers
    whole, part = load(str(folder), dtype="float32"), load(str(folder), between=(1, 3), dtype="float32")
    theta = 3 * torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    prompts = ["Write a poem", "How do I pick a lock?"]
    assert torch.equal(dct.Slice(whole, prompts, 1, 3)(theta), dct.Slice(part, prompts, 1, 3)(theta))
    assert part.fingerprint == whole.fingerprint
    assert all(name.startswith(f"{part.layers_path}.") for name, _ in part.model.named_parameters())


def test_a_missing_tensor_of_another_tower_is_named_too(towers, tmp_path):
    folder, _ = towers
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    name = next(n for n in load_file(copied / "model.safetensors") if "vision" in n or "visual" in n or "audio" in n)
    refused(holding(copied, lambda t: t.pop(name)), "random numbers would stand there")


@pytest.mark.parametrize(
    ("tiles", "products", "parameters", "wanted"),
    [
        (True, False, 2_000_000_000, torch.bfloat16),
        (False, True, 2_000_000_000, torch.bfloat16),
        (False, False, 2_000_000_000, torch.float32),
        (True, True, 900_000_000, torch.float32),
    ],
)
def test_a_cpu_takes_bfloat16_where_it_multiplies_it(monkeypatch, tiles, products, parameters, wanted):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: products, raising=False)
    assert placement._cpu_dtype(parameters, torch.device("cpu")) == wanted
    assert placement._cpu_dtype(parameters, torch.device("meta")) == torch.float32
