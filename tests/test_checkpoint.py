"""Parts of checkpoints: a slice whose blocks alone are loaded is the slice of the whole model, to the bit."""

import json
import sys

import pytest
import torch
import transformers
from conftest import CONFIGS, DEPTH, WIDTH, random_model
from safetensors import safe_open

import dct
from dct import DctError
from dct.checkpoint import Checkpoint
from dct.loading import load
from dct.model import find_layers

IDS = [
    [1, 5, 9, 20, 31, 7, 8, 9, 44, 45, 46, 47],
    [1, 5, 9, 33, 3, 61, 70],
    [1, 5, 9, 20, 31, 77, 78, 79, 80, 81],
]

TIED = ("llama", "gpt2", "gemma3", "qwen3_moe")
CASES = [(name, False) for name in CONFIGS if not CONFIGS[name]().tie_word_embeddings] + [
    (name, True) for name in CONFIGS if name in TIED or CONFIGS[name]().tie_word_embeddings
]


def saved(folder, architecture: str, tokenizer, *, tied: bool = False, shard: str = "40KB"):
    """A random model on disk, in many shards."""
    model = random_model(architecture)
    model.config.tie_word_embeddings = tied
    if tied:
        model.tie_weights()
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{'tied' if case[1] else 'own-head'}")
def folder(request, tmp_path_factory, tokenizer):
    architecture, tied = request.param
    folder = tmp_path_factory.mktemp("parts") / architecture
    saved(folder, architecture, tokenizer, tied=tied)
    assert (folder / "model.safetensors.index.json").exists()
    return folder


def opened(folder) -> Checkpoint:
    return Checkpoint.open(str(folder), lambda model: find_layers(model)[0])


@pytest.mark.parametrize(("source", "target"), [(0, 1), (0, DEPTH), (1, 4), (3, DEPTH)])
def test_slice_loaded_alone_is_the_slice_of_the_whole_model(folder, source, target):
    whole, part = load(str(folder), dtype="float32"), load(str(folder), between=(source, target), dtype="float32")
    theta = 3 * torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    a, b = dct.Slice(whole, IDS, source, target), dct.Slice(part, IDS, source, target)
    assert torch.equal(a.unsteered, b.unsteered)
    assert torch.equal(a(theta), b(theta))
    assert a.residual_norm == b.residual_norm
    assert a.packed == b.packed
    assert part.fingerprint == whole.fingerprint
    assert part.describe() == whole.describe()


def test_only_the_blocks_of_the_slice_are_in_memory(folder):
    lm = load(str(folder), between=(1, 3), dtype="float32")
    assert {int(n.removeprefix(f"{lm.layers_path}.").split(".")[0]) for n, _ in lm.model.named_parameters()} == {1, 2}
    assert not any(p.requires_grad or p.is_meta for p in lm.model.parameters())
    whole = load(str(folder), dtype="float32")
    for name, parameter in lm.model.named_parameters():
        assert torch.equal(parameter, whole.model.get_parameter(name))
    assert opened(folder).count(range(1, 3)) == sum(p.numel() for p in lm.model.parameters())


def test_only_the_tensors_of_a_part_are_read(folder, monkeypatch):
    """Seen from below transformers: what is asked of the files themselves."""
    read: list[str] = []
    core = sys.modules["transformers.core_model_loading"]
    plain = core._materialize_copy

    def spied(tensor, *args, **kwargs):
        value = plain(tensor, *args, **kwargs)
        read.append(tuple(value.shape))
        return value

    monkeypatch.setattr(core, "_materialize_copy", spied)
    checkpoint = opened(folder)
    checkpoint.part(range(2, 3), torch.float32, torch.device("cpu"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    wanted = [name for name in index if name.startswith(f"{checkpoint.layers_path}.2.")]
    shapes = []
    for name in wanted:
        with safe_open(folder / index[name], framework="pt") as file:
            shapes.append(tuple(file.get_slice(name).get_shape()))
    assert sorted(read) == sorted(shapes)
    assert wanted


def test_blocks_in_turn_are_all_of_them_once(folder, monkeypatch):
    checkpoint = opened(folder)
    whole = checkpoint.whole(torch.float32)
    for stride in (1, 10**9):  # block by block, and all at once
        monkeypatch.setattr("dct.checkpoint.STRIDE", stride)
        blocks = list(checkpoint.in_turn(range(1, 4), torch.float32, torch.device("cpu")))
        assert len(blocks) == 3
        for number, block in enumerate(blocks, start=1):
            for name, parameter in block.named_parameters():
                assert torch.equal(parameter, whole.get_parameter(f"{checkpoint.layers_path}.{number}.{name}"))


def test_ends_are_what_stands_around_the_blocks_without_a_head_of_its_own(folder):
    checkpoint = opened(folder)
    ends = checkpoint.part(range(0), torch.float32, torch.device("cpu"), ends=True)
    whole = checkpoint.whole(torch.float32)
    names = [name for name, _ in ends.named_parameters()]
    assert names
    assert not any(name.startswith(checkpoint.layers_path) for name in names)
    assert all(torch.equal(p, whole.get_parameter(n)) for n, p in ends.named_parameters())
    head = whole.get_output_embeddings().weight
    assert all(ends.get_parameter(n) is not head for n in names)
    if head is not whole.get_input_embeddings().weight:
        assert not any(whole.get_parameter(n) is head for n in names)


def test_blocks_run_in_turn_read_each_weight_below_the_slice_once(folder, monkeypatch):
    monkeypatch.setattr("dct.checkpoint.STRIDE", 1)
    parts = []
    plain = Checkpoint.part

    def spied(self, blocks, *args, **kwargs):
        parts.append((blocks.start, blocks.stop, kwargs.get("ends", False)))
        return plain(self, blocks, *args, **kwargs)

    monkeypatch.setattr(Checkpoint, "part", spied)
    lm = load(str(folder), between=(2, 4), dtype="float32")
    dct.Slice(lm, IDS, 2, 4)
    # What stands around the blocks is read twice: to see whether the slice can do without the rest, and to run prompts.
    assert parts == [(2, 4, False), (0, 0, True), (0, 0, True), (0, 1, False), (1, 2, False)]


@pytest.mark.parametrize(("source", "target"), [(0, 2), (2, 5), (0, DEPTH)])
def test_a_model_loaded_for_a_slice_refuses_another_one(folder, source, target):
    lm = load(str(folder), between=(1, 4), dtype="float32")
    with pytest.raises(DctError, match="loaded for layers 1 to 4 alone"):
        dct.Slice(lm, IDS, source, target)


def test_a_narrower_slice_of_what_is_loaded_will_do(folder):
    whole, part = load(str(folder), dtype="float32"), load(str(folder), between=(1, 4), dtype="float32")
    assert torch.equal(dct.Slice(whole, IDS, 2, 3).unsteered, dct.Slice(part, IDS, 2, 3).unsteered)


def test_ranking_with_a_model_loaded_for_a_slice_says_so(folder):
    lm = load(str(folder), between=(1, DEPTH), dtype="float32")
    factors = dct.Factors(
        torch.eye(2, WIDTH), torch.eye(2, WIDTH), torch.ones(2), torch.zeros(0, 3), 1.0, {"source": 1}
    )
    with pytest.raises(DctError, match="load the whole model"):
        dct.rank(lm, factors, ["Write a poem"])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_buffers_of_a_part_are_those_of_the_whole(tmp_path, tokenizer, architecture):
    """Those that are in no file too: they are computed when a model is made, and must not be what memory held."""
    random_model(architecture).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    whole, part = load(str(tmp_path)), load(str(tmp_path), between=(1, 3))
    there = dict(whole.model.named_buffers())
    for name, buffer in part.model.named_buffers():
        torch.testing.assert_close(buffer, there[name], rtol=0, atol=0, equal_nan=True)


def test_buffers_that_a_model_computes_for_its_blocks(tmp_path, tokenizer):
    """Falcon-H1's multipliers are set by the model, not by the block that holds them."""
    config = transformers.FalconH1Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8,
        mamba_chunk_size=8, ssm_multipliers=[0.7, 0.6, 0.5, 0.4, 0.3], pad_token_id=0,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    whole, part = load(str(tmp_path)), load(str(tmp_path), between=(1, 3))
    there = dict(whole.model.named_buffers())
    assert any(name.endswith("mup_vector") for name in there)
    for name, buffer in part.model.named_buffers():
        torch.testing.assert_close(buffer, there[name], rtol=0, atol=0, equal_nan=True)
