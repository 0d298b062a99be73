"""Names of other libraries that this package leans on: each fails here, with a clear word, when it goes."""

import pytest
import torch
import transformers
from conftest import random_model

from dct import compat


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
