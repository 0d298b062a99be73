"""Weights in fewer bits: told by what they are made of; computed with, where gradients exist."""

import json

import pytest
import torch
from conftest import CONFIGS, WIDTH, random_model
from torch import nn

import dct
from dct.quantised import quantised, quantised_parameters


class EightBits(nn.Module):
    """A linear layer that keeps a byte a number and one scale a row, as fp8 and int8 checkpoints do."""

    def __init__(self, plain: nn.Linear, dtype: torch.dtype, name: str = "weight_scale_inv") -> None:
        super().__init__()
        top = 448.0 if dtype.is_floating_point else 127.0
        scale = plain.weight.detach().abs().amax(1, keepdim=True) / top
        self.weight = nn.Parameter((plain.weight.detach() / scale).to(dtype), requires_grad=False)
        self.register_buffer(name, scale)
        self.named = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.to(x.dtype) * getattr(self, self.named)).T


class Packed(nn.Module):
    """A layer without any parameter: packed integers and tables in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 32, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(1, 32))


class Subclass(torch.Tensor):
    """A tensor that is more than its numbers."""


class Scaled(nn.Linear):
    """A layer whose full-precision numbers are multiplied with a table all the same."""

    def __init__(self) -> None:
        super().__init__(32, 32, bias=False)
        self.weight_scale = nn.Parameter(torch.ones(32, 1))


def test_kinds_of_weights_that_are_not_plain():
    linear = nn.Linear(32, 32)
    cases = [
        (EightBits(linear, torch.float8_e4m3fn), "float8_e4m3fn with weight_scale_inv beside it"),
        (EightBits(linear, torch.float8_e5m2, "absmax"), "float8_e5m2 with absmax beside it"),
        (EightBits(linear, torch.int8, "scales"), "int8 with scales beside it"),
        (Scaled(), "a Scaled with weight_scale beside it"),
    ]
    for module, says in cases:
        assert quantised(module.weight, module) == says
    assert quantised(Packed().qweight, Packed()).startswith("int32")
    more = nn.Linear(32, 32)
    more.weight = nn.Parameter(torch.randn(32, 32).as_subclass(Subclass))
    assert quantised(more.weight, more) == "a Subclass"
    four = nn.Linear(32, 32)
    four.weight.quant_state = object()
    assert quantised(four.weight, four) == "a Linear with a quant_state"


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_models_are_plain(architecture, dtype):
    assert quantised_parameters(random_model(architecture).to(dtype)) == {}


def test_what_is_quantised_is_named():
    model = random_model("llama")
    attention = model.model.layers[2].self_attn
    attention.o_proj = EightBits(attention.o_proj, torch.float8_e4m3fn)
    model.model.layers[1].extra = Packed()
    assert set(quantised_parameters(model)) == {
        "model.layers.2.self_attn.o_proj.weight",
        "model.layers.1.extra.qweight",
    }


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_eight_bits_can_be_fitted_and_steered(tokenizer, prompts, dtype):
    model, plain = random_model("llama"), random_model("llama")
    for block, other in zip(model.model.layers, plain.model.layers, strict=True):
        for name in ("o_proj", "q_proj"):
            packed = EightBits(getattr(block.self_attn, name), dtype)
            setattr(block.self_attn, name, packed)
            getattr(other.self_attn, name).weight.data = packed.weight.float() * packed.weight_scale_inv
    a, b = (dct.LanguageModel(m, tokenizer, "x") for m in (model, plain))
    fits = [dct.fit(dct.Slice(lm, prompts, 1, 4), WIDTH, factors=4, scale=2.0, iterations=2, d_proj=4) for lm in (a, b)]
    torch.testing.assert_close(fits[0].V, fits[1].V, atol=1e-4, rtol=1e-4)
    texts = []
    for lm in (a, b):
        with dct.steer(lm, 2 * fits[1].V[0], layer=1):
            texts.append(dct.complete(lm, lm.encode(prompts[:2]), max_new_tokens=5))
    assert texts[0] == texts[1]


def test_an_fp8_folder_loads_and_computes(tmp_path, tokenizer, prompts):
    """Blocks of 128 x 128 with a scale each, as DeepSeek publishes them; on a CPU transformers unpacks them."""
    import transformers
    from safetensors.torch import load_file, save_file

    config = transformers.LlamaConfig(
        **{**CONFIGS["llama"]().to_dict(), "hidden_size": 128, "intermediate_size": 128, "head_dim": 32}
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tensors, plain = load_file(tmp_path / "model.safetensors"), {}
    for name, value in list(tensors.items()):
        if "proj" in name:
            scale = value.abs().max() / 448
            tensors[name] = (value / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
            plain[name] = tensors[name].float() * scale
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    path = tmp_path / "config.json"
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantization}))
    try:
        lm = dct.load(str(tmp_path), dtype="float32", device="cpu")
    except dct.DctError as error:  # the lowest version needs its library even to unpack
        if "No module named 'triton'" not in str(error):
            raise
        pytest.skip(str(error))
    for name, wanted in plain.items():
        module = lm.model.get_submodule(name.removesuffix(".weight"))
        if quantised(module.weight, module) is None:
            torch.testing.assert_close(module.weight.float(), wanted, atol=1e-2 * float(wanted.abs().max()), rtol=1e-2)
    found = dct.fit(dct.Slice(lm, prompts[:1], 1, 3), 128, factors=2, scale=1.0, iterations=1, d_proj=4)
    assert bool(found.V.isfinite().all())
