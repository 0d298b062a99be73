"""Ablation: nothing of a direction is written into the stream, and nothing else changes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from conftest import CONFIGS, DEPTH, WIDTH
from torch import Tensor
from transformers import AutoModelForCausalLM

import dct
from dct import DctError, writers

IDS = [[1, 5, 9, 20, 31, 7, 8, 9, 44], [1, 5, 66, 67]]
POST_NORMED = {"gemma2", "gemma3", "olmo2"}

# What each block adds to its stream, by the names in transformers' modelling files.
WRITES = dict.fromkeys(CONFIGS, ("self_attn", "mlp"))
WRITES |= {"gpt2": ("attn", "mlp"), "gpt_neox": ("attention", "mlp")}
WRITES |= dict.fromkeys(POST_NORMED, ("post_attention_layernorm", "post_feedforward_layernorm"))

# The matrices behind that.
MATRICES = dict.fromkeys(CONFIGS, ("self_attn.o_proj.weight", "mlp.down_proj.weight"))
MATRICES |= {
    "gpt2": ("attn.c_proj.weight", "mlp.c_proj.weight"),
    "gpt_neox": ("attention.dense.weight", "mlp.dense_4h_to_h.weight"),
    "mixtral": ("self_attn.o_proj.weight", "mlp.experts.down_proj"),
    "qwen3_moe": ("self_attn.o_proj.weight", "mlp.experts.down_proj"),
}


@pytest.fixture(scope="module", params=CONFIGS)
def lm(request, make_lm) -> dct.LanguageModel:
    return make_lm(request.param)


@pytest.fixture
def llama(make_lm) -> dct.LanguageModel:
    return make_lm("llama")


def double(make_lm, architecture: str) -> dct.LanguageModel:
    lm = make_lm(architecture, torch.float64)
    if hasattr(lm.model.config, "_experts_implementation"):
        lm.model.set_experts_implementation("eager")  # transformers' fused experts have no float64
    return lm


def directions(n: int, seed: int = 0) -> Tensor:
    """Not orthogonal, not of unit length."""
    drawn = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.tensor([0.3, 2.0, 50.0])[:n, None] + drawn[:1]


def logits(lm: dct.LanguageModel) -> list[Tensor]:
    with torch.no_grad():
        return [lm.model(torch.tensor([ids]), use_cache=False).logits for ids in IDS]


def written(model, path: str, D: Tensor) -> float:
    """The largest |v'(h_out - h_in)| / |v| over the blocks of a model, its tokens and the rows v of D."""
    D, largest = D.double(), 0.0

    def look(block, args, kwargs, output):
        nonlocal largest
        change = (output[0] if isinstance(output, tuple) else output) - (args[0] if args else kwargs["hidden_states"])
        along = change.double() @ (D / D.norm(dim=1, keepdim=True)).T
        largest = max(largest, float(along.abs().max()))

    with ExitStack() as stack, torch.no_grad():
        for block in model.get_submodule(path):
            stack.callback(block.register_forward_hook(look, with_kwargs=True).remove)
        for ids in IDS:
            model(torch.tensor([ids]), use_cache=False)
    return largest


@contextmanager
def by_hand(lm: dct.LanguageModel, D: Tensor) -> Iterator[None]:
    """Projects what each block adds to the stream with hooks on the modules that add it."""
    Q = torch.linalg.qr(D.T.double())[0].to(lm.dtype)

    def project(_, args, output):
        x = output[0] if isinstance(output, tuple) else output
        x = x - x @ Q @ Q.T
        return (x, *output[1:]) if isinstance(output, tuple) else x

    with ExitStack() as stack:
        for block in lm.layers:
            for name in WRITES[lm.name]:
                stack.callback(block.get_submodule(name).register_forward_hook(project).remove)
        yield


@pytest.mark.parametrize("n", [1, 3])
def test_leak_vanishes(lm, n):
    D = directions(n)
    before = dct.leak(lm, D, IDS)
    with dct.ablate(lm, D):
        after = dct.leak(lm, D, IDS)
    assert before > 0.1
    assert after < 1e-5 * before


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_no_block_writes_anything_along_the_directions(make_lm, architecture, n):
    """h_out - h_in of every block, in float64, looked at without the help of `dct`."""
    lm, D = double(make_lm, architecture), directions(n)
    before = written(lm.model, lm.layers_path, D)
    with dct.ablate(lm, D):
        assert written(lm.model, lm.layers_path, D) < 1e-10 * before
    assert written(lm.model, lm.layers_path, D) == before


def test_leak_is_the_largest_component_of_what_is_written(lm):
    """Against hooks on the named modules, so that `leak` cannot be small by looking at the wrong place."""
    if lm.name == "gpt_neox":
        pytest.skip("adds attention and MLP up before it adds them to the stream")
    D, seen = directions(1), []

    def look(_, args, output):
        seen.append((output[0] if isinstance(output, tuple) else output).double() @ (D[0] / D[0].norm()).double())

    with ExitStack() as stack, torch.no_grad():
        for block in lm.layers:
            for name in WRITES[lm.name]:
                stack.callback(block.get_submodule(name).register_forward_hook(look).remove)
        logits(lm)
    assert dct.leak(lm, D, IDS) == pytest.approx(max(float(x.abs().max()) for x in seen), rel=1e-4)


def test_nothing_but_the_directions_is_removed(lm):
    """The ablated model is the model whose written parts are projected by hand."""
    D, before = directions(3), logits(lm)
    with by_hand(lm, D):
        wanted = logits(lm)
    with dct.ablate(lm, D):
        got = logits(lm)
    for a, b, c in zip(got, wanted, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(b, c, atol=0.01)


def test_streams_are_projected_only_where_a_norm_stands_before_them(lm):
    names = [f"{lm.layers_path}.{k}.{name}" for k in range(DEPTH) for name in WRITES[lm.name]]
    matrices = [f"{lm.layers_path}.{k}.{name}" for k in range(DEPTH) for name in MATRICES[lm.name]]
    with dct.ablate(lm, directions(1)) as done:
        pass
    assert done.projected == (names if lm.name in POST_NORMED else [])
    assert done.edited == ([] if lm.name in POST_NORMED else matrices)
    assert not done.folded


def test_every_residual_matrix_is_listed(lm):
    wanted = {f"{lm.layers_path}.{k}.{name}" for k in range(DEPTH) for name in MATRICES[lm.name]}
    assert {w.name for w in dct.residual_writers(lm)} == wanted


def snapshot(lm: dct.LanguageModel) -> dict[str, Tensor]:
    return {name: p.clone() for name, p in lm.model.state_dict().items()}


def assert_untouched(lm: dct.LanguageModel, before: dict[str, Tensor], outputs: list[Tensor]) -> None:
    now = lm.model.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in now.items())
    assert all(torch.equal(a, b) for a, b in zip(logits(lm), outputs, strict=True))


@pytest.mark.parametrize("fold_norms", [False, True])
def test_model_is_restored_to_the_bit(lm, fold_norms):
    before, outputs = snapshot(lm), logits(lm)
    with dct.ablate(lm, directions(3), fold_norms=fold_norms):
        assert not torch.equal(logits(lm)[0], outputs[0])
    assert_untouched(lm, before, outputs)


@pytest.mark.parametrize("fold_norms", [False, True])
def test_model_is_restored_after_an_exception(lm, fold_norms):
    before, outputs = snapshot(lm), logits(lm)
    with pytest.raises(KeyboardInterrupt), dct.ablate(lm, directions(1), fold_norms=fold_norms):
        raise KeyboardInterrupt
    assert_untouched(lm, before, outputs)


def test_only_the_writers_change(lm):
    """In particular not the embedding, to which GPT-2's and Gemma's heads are tied."""
    before = snapshot(lm)
    with dct.ablate(lm, directions(1), fold_norms=True) as done:
        changed = {name for name, p in lm.model.state_dict().items() if not torch.equal(p, before[name])}
    biases = {name.removesuffix("weight") + "bias" for name in done.edited}
    assert set(done.edited) <= changed <= set(done.edited) | biases


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma2", "gemma3", "olmo2", "mixtral"])
def test_folded_ablation_survives_saving(make_lm, tmp_path, architecture, n):
    """Saved as plain weights and loaded by transformers alone, the model writes nothing along the directions."""
    lm, D = double(make_lm, architecture), directions(n)
    before = written(lm.model, lm.layers_path, D)
    with dct.ablate(lm, D, fold_norms=True) as done:
        lm.model.save_pretrained(tmp_path)
    assert not done.projected
    assert bool(done.folded) == (architecture in POST_NORMED)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    if architecture == "mixtral":
        model.set_experts_implementation("eager")
    # The norms of transformers compute in float32 whatever the model's dtype.
    assert written(model, lm.layers_path, D) < (1e-6 if architecture in POST_NORMED else 1e-10) * before


def test_folding_depends_on_the_gain_of_the_norm(make_lm):
    """Projecting the weights alone does not clear the stream behind a norm: the gain must count."""
    lm, D = double(make_lm, "olmo2"), directions(1)
    before = written(lm.model, lm.layers_path, D)
    v = D[0].double() / D[0].double().norm()
    with torch.no_grad():
        for block in lm.layers:
            for matrix in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
                matrix -= torch.outer(v, v @ matrix)
    assert written(lm.model, lm.layers_path, D) > 1e-3 * before


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma3", "mixtral"])
def test_writers_are_found_by_measuring_where_no_name_tells_them(make_lm, monkeypatch, architecture):
    """With no name known, the same matrices are found, each by the right axis; biases of their own are edited too."""
    lm, D = double(make_lm, architecture), directions(3)
    named = {w.name for w in dct.residual_writers(lm)}
    monkeypatch.setattr(writers, "OUTPUT_PROJECTIONS", frozenset())
    lm.sites = None
    assert {w.name for w in dct.residual_writers(lm) if not w.name.endswith("bias")} == named
    before = written(lm.model, lm.layers_path, D)
    with dct.ablate(lm, D, fold_norms=True):
        assert written(lm.model, lm.layers_path, D) < 1e-6 * before
    assert written(lm.model, lm.layers_path, D) == before


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_what_no_matrix_is_found_behind_is_projected_while_the_model_runs(make_lm, monkeypatch, architecture):
    """Attention's part before the MLP reads it, too: not the block's whole contribution at its end."""
    lm, D = double(make_lm, architecture), directions(3)
    with by_hand(lm, D):
        wanted = logits(lm)
    monkeypatch.setattr(writers, "_proposed", lambda *_: [])
    monkeypatch.setattr(writers, "_candidates", lambda *_: [])
    before = written(lm.model, lm.layers_path, D)
    for hide_modules in (False, True):
        if hide_modules:  # then the block's additions are seen to as they are made
            monkeypatch.setattr(writers._Block, "_module_of", lambda *_: None)
        lm.sites = None
        with dct.ablate(lm, D) as done:
            assert written(lm.model, lm.layers_path, D) < 1e-10 * before
            assert dct.leak(lm, D, IDS) < 1e-10 * before
            for got, right in zip(logits(lm), wanted, strict=True):
                torch.testing.assert_close(got, right, rtol=1e-6, atol=1e-6)
        assert not done.edited
        assert len(done.projected) == 2 * DEPTH
        with pytest.raises(DctError, match="no weights"), dct.ablate(lm, D, fold_norms=True):
            pass
        assert written(lm.model, lm.layers_path, D) == before


def test_half_precision_model_is_ablated_up_to_its_rounding(make_lm):
    lm, D = make_lm("llama", torch.bfloat16), directions(1)
    before = dct.leak(lm, D, IDS)
    with dct.ablate(lm, D):
        assert dct.leak(lm, D, IDS) < 0.02 * before


def test_dependent_directions_count_once(llama):
    a, b = directions(2)
    with dct.ablate(llama, torch.stack([a, 3 * b, a - b, -b])) as done:
        after = dct.leak(llama, torch.stack([a, b]), IDS)
    assert done.directions.shape == (2, WIDTH)
    torch.testing.assert_close(done.directions @ done.directions.T, torch.eye(2, dtype=torch.float64))
    assert after < 1e-5


def test_directions_of_very_different_length_all_count(llama):
    """1e-12 v is as much a direction as v."""
    a, b = directions(2)
    with dct.ablate(llama, torch.stack([1e6 * a, 1e-12 * b])) as done:
        assert len(done.directions) == 2
        assert dct.leak(llama, b, IDS) < 1e-5


def test_single_direction_may_be_a_vector(llama):
    v = directions(1)[0]
    with dct.ablate(llama, v) as done:
        torch.testing.assert_close(done.directions.abs()[0], (v / v.norm()).double().abs())


@pytest.mark.parametrize(
    "D",
    [torch.zeros(WIDTH), torch.stack([torch.ones(WIDTH), torch.zeros(WIDTH)]), torch.full((WIDTH,), torch.inf)],
    ids=["zero", "one of two", "infinite"],
)
def test_zero_or_infinite_directions_are_refused(llama, D):
    before, outputs = snapshot(llama), logits(llama)
    with pytest.raises(DctError, match="zero or not finite"), dct.ablate(llama, D):
        pass
    assert_untouched(llama, before, outputs)


def test_directions_of_another_width_are_refused(llama):
    with pytest.raises(DctError, match=f"{WIDTH} entries, got {WIDTH + 1}"), dct.ablate(llama, torch.ones(WIDTH + 1)):
        pass


class _Packed(torch.nn.Module):
    """A linear layer whose numbers stand for weights together with a table of scales beside them."""

    def __init__(self, layer: torch.nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        most = 127.0 if dtype == torch.int8 else 448.0
        scale = layer.weight.detach().abs().max() / most
        self.weight = torch.nn.Parameter((layer.weight.detach() / scale).to(dtype), requires_grad=False)
        self.register_buffer("weight_scale_inv", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x.dtype) * self.weight_scale_inv).T


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_quantised_weights_are_not_edited_but_can_be_steered(llama, dtype):
    for block in llama.layers:
        block.mlp.down_proj = _Packed(block.mlp.down_proj, dtype)
    before = {name: p.clone() for name, p in llama.model.state_dict().items()}
    with pytest.raises(DctError, match=r"quantised.*unquantised to ablate"), dct.ablate(llama, directions(1)):
        pass
    assert all(torch.equal(p, before[name]) for name, p in llama.model.state_dict().items())
    plain = logits(llama)
    with dct.steer(llama, directions(1)[0], layer=1):
        assert not torch.equal(logits(llama)[0], plain[0])


def test_additions_with_a_gain_for_each_channel_behind_them_are_refused(make_lm):
    """Zaya's (stream + bias) * scale: what the bias lost, the scale brings back."""
    lm = make_lm("llama")
    scale = torch.linspace(0.5, 1.5, WIDTH)

    def behind(own):
        return lambda stream, *args, **kwargs: own(stream, *args, **kwargs) * scale

    block = lm.layers[2]
    own = block.forward
    block.forward = behind(own)
    with pytest.raises(DctError, match="cannot tell what block 2"), dct.ablate(lm, directions(1)):
        pass
