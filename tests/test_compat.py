"""Every private or guessed name of other libraries: a test of each, so that a release that drops one is found here."""

import pytest
import torch
import transformers
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from conftest import random_model
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, MixtralConfig
from transformers.pytorch_utils import Conv1D

import dct
from dct import compat


def test_torch_tells_whether_a_forward_derivative_is_taken():
    seen = []

    def f(x):
        seen.append(compat.differentiating_forward())
        return x.square()

    torch.func.jvp(f, (torch.ones(2),), (torch.ones(2),))
    f(torch.ones(2))
    assert seen == [True, False], "torch.autograd.forward_ad._current_level no longer tells the level"


def test_torch_tells_whether_a_transform_is_at_work():
    seen = []

    def f(x):
        seen.append(compat.transformed())
        return x.sum()

    torch.func.grad(f)(torch.ones(2))
    f(torch.ones(2))
    assert seen == [True, False], "torch._C._functorch.peek_interpreter_stack no longer tells of transforms"


@pytest.mark.parametrize(
    ("function", "owner", "name"),
    [
        (compat.differentiating_forward, "torch.autograd.forward_ad", "_current_level"),
        (compat.transformed, "torch._C._functorch", "peek_interpreter_stack"),
    ],
)
def test_a_name_that_is_gone_is_said_in_one_line(monkeypatch, function, owner, name):
    monkeypatch.delattr(f"{owner}.{name}")
    with pytest.raises(compat.CompatError, match=f"torch .* has no .*{name}, which dct relies on"):
        function()


def test_tensors_count_how_often_they_are_written_into():
    x = torch.zeros(2)
    before = compat.version_of(x)
    x += 1
    assert compat.version_of(x) > before, "torch.Tensor._version no longer counts"
    with torch.inference_mode():
        assert compat.version_of(torch.zeros(2)) == 0


def test_the_cache_of_todays_models_has_a_name_that_is_known(make_lm):
    """In the model's call and in a block's, as `generate` makes them; the cache counts what it holds."""
    lm = make_lm("llama")
    calls = []
    lm.model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True)
    lm.layers[0].register_forward_pre_hook(lambda _, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True)
    lm.model.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=2, min_new_tokens=2, do_sample=False)
    for call in calls[-2:]:  # of the second step; in the first one, some versions have the model make its cache
        filled = [call[name] for name in compat.caches_of(call) if call[name] is not None]
        assert len(filled) == 1, f"transformers calls its cache by another name: {sorted(call)}"
        assert isinstance(filled[0], DynamicCache)
    assert compat.tokens_in(filled[0]) == 4, "a cache no longer tells how many tokens it holds"
    assert compat.tokens_in([torch.zeros(2)]) is None


def test_experts_can_be_made_plain_and_are_put_back():
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    before = getattr(model.config, "_experts_implementation", None)
    assert isinstance(before, str), "transformers no longer says how it runs experts (_experts_implementation)"
    with compat.plain_experts(model):
        assert model.config._experts_implementation == "eager"
    assert model.config._experts_implementation == before


def test_what_needs_no_first_values_is_left_alone():
    """transformers initialises what a checkpoint lacks, but not what is marked."""
    layer = nn.Linear(2, 2)
    compat.needs_no_first_values(layer)
    assert layer._is_hf_initialized is True


def test_tied_weights_are_told(make_lm):
    lm = make_lm("gpt2")
    assert compat.tied_weights(lm.model) == {"lm_head.weight": "transformer.wte.weight"}


def test_layers_that_keep_their_matrices_transposed():
    assert compat.is_transposed(Conv1D(2, 3))
    assert not compat.is_transposed(nn.Linear(2, 3))


def test_models_that_nobody_moves(make_lm):
    lm = make_lm("llama")
    assert not compat.moved_by_accelerate(lm.model)
    assert compat.execution_device(lm.model) is None


def test_accelerate_says_where_it_runs_a_model(make_lm):
    model = make_lm("llama").model
    add_hook_to_module(model, AlignDevicesHook(execution_device="cpu"))
    assert compat.moved_by_accelerate(model), "accelerate no longer marks a model that it moves (_hf_hook)"
    assert torch.device(compat.execution_device(model)) == torch.device("cpu")


def test_accelerate_clears_the_cache_of_any_device(monkeypatch):
    cleared = []
    monkeypatch.setattr("accelerate.utils.memory.is_cuda_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: cleared.append(True))
    compat.clear_device_cache()
    assert cleared, "accelerate no longer empties torch's cache (utils.memory.clear_device_cache)"


def test_tensors_are_written_under_transformers_own_names(tmp_path):
    """core_model_loading.revert_weight_conversion: for a model, and for one parameter of it alone."""
    model = random_model("mixtral")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    written = compat.disk_tensors(model, model.state_dict())
    assert written.keys() == held.keys(), "transformers writes other names than it converts to"
    assert all(torch.equal(written[name], values) for name, values in held.items())
    name = "model.layers.1.mlp.experts.down_proj"
    alone = compat.disk_tensors(model, {name: model.state_dict()[name]})
    assert sorted(alone) == [f"model.layers.1.block_sparse_moe.experts.{k}.w2.weight" for k in range(4)]


def test_hooks_that_change_a_run_are_known_by_their_package(make_lm):
    """Module._forward_hooks and _forward_pre_hooks."""
    lm = make_lm("gemma3")
    lm.layers[1].register_forward_hook(lambda *_: None)
    assert compat.hooks_of("dct", lm.model) == []
    with dct.steer(lm, torch.ones(lm.width), layer=2):
        assert compat.hooks_of("dct", lm.model)
    with dct.ablate(lm, torch.ones(lm.width)) as done:
        assert sorted(compat.hooks_of("dct", lm.model)) == sorted(done.projected)
    assert compat.hooks_of("dct", lm.model) == []


def test_automatic_classes_know_their_models():
    config = transformers.LlamaConfig()
    assert compat.auto_classes(config) == [transformers.AutoModelForCausalLM]
    assert compat.known_to_transformers(config)
    assert not compat.known_to_transformers(transformers.CLIPConfig())
    assert compat.auto_classes(transformers.LlavaConfig()) == [transformers.AutoModelForImageTextToText]


def test_the_text_model_alone_is_taken_where_the_configuration_names_it():
    both = transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM
    assert compat.auto_classes(transformers.Llama4Config()) == list(both)
    named = transformers.Llama4Config(architectures=["Llama4ForCausalLM"])
    assert compat.auto_classes(named) == [transformers.AutoModelForCausalLM]


def test_types_of_configurations_and_classes():
    assert compat.model_types(transformers.LlamaConfig()) == {"llama"}
    assert compat.model_types(transformers.LlavaConfig()) >= {"llava", "llama"}
    assert compat.type_of_class("LlamaForCausalLM") == "llama"
    assert compat.type_of_class("NoSuchModel") is None


def test_ways_of_quantising_that_transformers_knows():
    assert all(map(compat.knows_quantization, ("gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors")))
    assert not compat.knows_quantization("made-up")


def test_the_text_tower_is_where_the_blocks_are():
    model = random_model("llama")
    assert compat.text_tower(model) is model.model


def test_gguf_files_are_unpacked_by_an_option_or_by_themselves():
    options = compat.unpacked()
    assert options == {} or options["quantization_config"].dequantize is True


def test_the_bar_of_unpacking_is_put_back():
    import transformers.modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    with compat.silent_unpacking():
        assert list(reader.tqdm([1, 2], desc="x")) == [1, 2]
    assert reader.tqdm is bar


def test_gguf_headers_are_read_once_and_the_reader_is_put_back():
    gguf = pytest.importorskip("gguf")
    plain = gguf.GGUFReader, gguf.get_tensor_name_map
    with compat.gguf_read_once():
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == plain


def test_modules_that_need_no_first_values_get_none():
    model = random_model("llama")
    before = model.lm_head.weight.clone()
    for module in model.modules():
        compat.needs_no_first_values(module)
    model.init_weights()
    assert torch.equal(model.lm_head.weight, before)
