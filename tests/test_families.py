"""The families that people use most, beside those of `test_architectures`: every check of `benchmarks/architectures.py`
but the fits, which make the same passes, on a tiny random model of each."""

import shutil
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import transformers
from referee.checks import STEPS
from referee.configs import tiny_model, tiny_tokenizer
from referee.subject import Subject

import dct

FAMILIES = {
    "bamba": "BambaForCausalLM",  # state-space and attention layers
    "bloom": "BloomForCausalLM",
    "cohere2": "Cohere2ForCausalLM",  # attention and MLP side by side
    "deepseek_v3": "DeepseekV3ForCausalLM",  # latent attention
    "falcon": "FalconForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",  # layers that share keys and values
    "glm4": "Glm4ForCausalLM",  # sandwich norms
    "gpt_oss": "GptOssForCausalLM",  # attention sinks
    "granite": "GraniteForCausalLM",  # multipliers
    "lfm2": "Lfm2ForCausalLM",  # convolutions
    "llama4_text": "Llama4ForCausalLM",  # fused experts, chunked attention
    "nemotron_h": "NemotronHForCausalLM",
    "phi": "PhiForCausalLM",  # biases everywhere
    "qwen3_5_text": "Qwen3_5ForCausalLM",  # linear attention
    "qwen3_next": "Qwen3NextForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}


REFUSED = {("bloom", "differences"): "no forward-mode derivative"}
"""What a family cannot do, and what is said of it."""


def _param(family: str) -> object:
    missing = not hasattr(transformers, FAMILIES[family])
    reason = f"transformers {transformers.__version__} has no {FAMILIES[family]}"
    return pytest.param(family, marks=pytest.mark.skipif(missing, reason=reason))


@pytest.fixture(scope="module", params=[_param(family) for family in FAMILIES])
def subject(request) -> Iterator[Subject]:
    model = tiny_model(request.param, FAMILIES[request.param])
    found = Subject(model, tiny_tokenizer(), vision=False)
    assert not found.no_chain
    yield found
    if "folder" in vars(found):
        shutil.rmtree(found.folder)


@pytest.mark.parametrize("check", [name for name in STEPS if name != "fit"])
def test_what_dct_says_of_a_model_is_what_the_model_does(subject, check):
    why = REFUSED.get((subject.model.config.model_type, check))
    with nullcontext() if why is None else pytest.raises(dct.DctError, match=why):
        STEPS[check](subject)
