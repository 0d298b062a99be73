"""Models for the tests: small random ones of every supported architecture, and one on disk as a user would have it."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that all use every core get in each other's way; read when torch is imported, here and in commands.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

# Shapes in signatures are checked while the tests run. The hook must be in place before the core is imported.
CORE = """ablation adapters answering arms atlas attention bandslice batching blocks calibration calls
candidates chain checkpoint compilation damage derivatives difference difference_ranking eigenrun estimate
exam factors fits fitting generation gguf halving headers hosvd hub job loading logits memory model narrowing
nexttoken opening openings outcome packing parts passes perturbation placement pool projections quantised
ranking recording remeasuring replies resident rows saving scoring selection slice soundness sources spectra
steering streamwatch supervised talk task_ranking tasks team verification wordpair writers"""
jaxtyping.install_import_hook([f"dct.{name}" for name in CORE.split()], "beartype.beartype")

import dct  # noqa: E402

# `pytest -m fast`: what a change to the core is most likely to break, in under 90 seconds on two cores.
FAST = {
    "calibration": "the scale, against maps whose ratio is known",
    "derivatives": "first and second, against dense float64",
    "factors": "the format of the result, and what is refused",
    "fitting": "every method, on planted factors",
    "melbo": "norm-maximising vectors, on maps whose singular vectors are known",
    "memory": "sizes as text, and what is free",
    "prompts": "prompt files of every kind",
    "method": "methods and how they are found",
    "runs": "run folders and their locks",
    "settings": "options, their variables, files and records",
    "slice": "the map, against the model's own run",
    "steering": "the site, tokens and padding",
    "verification": "what is refused",
}
"""Test files of the core (`test_NAME.py`) and why they are in; what trains, generates or starts processes is not."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of the files in `FAST`, except those that are marked slow."""
    for item in items:
        if item.path.stem.removeprefix("test_") in FAST and item.get_closest_marker("slow") is None:
            item.add_marker("fast")


transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

WIDTH, DEPTH, VOCABULARY = 32, 5, 300

_COMMON = {
    "vocab_size": VOCABULARY,
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

# A sliding window of 6 makes the sliding layers differ from the full ones on prompts of a dozen tokens.
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON),
    "qwen2": lambda: transformers.Qwen2Config(**_COMMON),
    "qwen3": lambda: transformers.Qwen3Config(**_COMMON, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**_COMMON, sliding_window=6),
    "gemma2": lambda: transformers.Gemma2Config(**_COMMON, head_dim=8, sliding_window=6),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_COMMON, head_dim=8, sliding_window=6),
    "phi3": lambda: transformers.Phi3Config(**_COMMON),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=DEPTH, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**{k: v for k, v in _COMMON.items() if k != "num_key_value_heads"}),
    "olmo2": lambda: transformers.Olmo2Config(**_COMMON),
    "mixtral": lambda: transformers.MixtralConfig(**_COMMON, num_local_experts=4),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_COMMON, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
}

_TEXT = """Tell me how to bake bread. Sure, mix flour and water. Write a poem about the sea. Sorry, I can not help.
How do I pick a lock? Explain the moon to a child. Sure, here it is. Sorry, no. What is two plus two? Four."""


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<user>", "<assistant>", "<system>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator([_TEXT] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )
    wrapped.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return wrapped


def random_model(architecture: str, seed: int = 0, **options: object) -> transformers.PreTrainedModel:
    """A random model whose blocks all do something: norm gains and biases are not left at one and zero."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture](), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.6 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def make_lm(tokenizer):
    """Factory of language models by architecture; `dtype` and `attn_implementation` can be chosen."""

    def make(architecture: str = "llama", dtype: torch.dtype = torch.float32, **options: object) -> dct.LanguageModel:
        return dct.LanguageModel(random_model(architecture, **options).to(dtype), tokenizer, architecture)

    return make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer) -> Path:
    """A random Llama and its tokenizer, saved as a user's local model."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    random_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PROMPTS = [
    "Tell me how to bake bread",
    "Write a poem about the sea, please",
    "How do I pick a lock?",
    "Explain the moon to a child in two words",
]


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """Four prompts of different lengths."""
    return list(PROMPTS)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A fresh folder to run commands in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
