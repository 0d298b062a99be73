"""Every supported architecture against itself: what `dct` says of a model is what the model's own forward pass does."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import CONFIGS, DEPTH, WIDTH
from torch import Tensor
from torch.nn.functional import normalize

import dct
from dct.blocks import readout

# transformers refuses scaled-dot-product attention for Gemma-2 (it soft-caps the attention scores).
VARIANTS = [(name, kind) for name in CONFIGS for kind in ("sdpa", "eager") if (name, kind) != ("gemma2", "sdpa")]

LAYERS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
FINAL_NORM = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
EMBEDDED = {"gpt2": "transformer.drop", "gpt_neox": "gpt_neox.emb_dropout"}

# Different lengths, a common beginning, and all of them longer than the sliding window of 6.
IDS = [
    [1, 5, 9, 20, 31, 7, 8, 9, 44, 45, 46, 47],
    [1, 5, 9, 33, 3, 61, 70],
    [1, 5, 9, 20, 31, 77, 78, 79, 80, 81],
]


@pytest.fixture(scope="module", params=VARIANTS, ids="-".join)
def lm(request, make_lm) -> dct.LanguageModel:
    architecture, attention = request.param
    return make_lm(architecture, attn_implementation=attention)


@pytest.fixture(scope="module")
def slice_(lm) -> dct.Slice:
    return dct.Slice(lm, IDS, 1, 4)


def own_streams(lm: dct.LanguageModel, ids: list[int], layer: int) -> Tensor:
    """hidden_states[layer] by the model's own account; for layer = L, what its final norm takes in."""
    entering = []
    norm = lm.model.get_submodule(FINAL_NORM.get(lm.name, "model.norm"))
    handle = norm.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    with torch.no_grad():
        states = lm.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    handle.remove()
    return (*states[:-1], entering[0])[layer][0]


@contextmanager
def added_by_hand(lm: dct.LanguageModel, theta: Tensor, layer: int) -> Iterator[None]:
    """Adds theta to the output of whatever comes before block `layer`: the block below, or the embedding."""
    below = f"{lm.layers_path}.{layer - 1}" if layer else EMBEDDED.get(lm.name, "model.embed_tokens")

    def add(_, args, output):
        return (output[0] + theta, *output[1:]) if isinstance(output, tuple) else output + theta

    handle = lm.model.get_submodule(below).register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def last_tokens(lm: dct.LanguageModel, layer: int, positions: int = 3) -> Tensor:
    return torch.cat([own_streams(lm, ids, layer)[-positions:] for ids in IDS])


def assert_same(got: Tensor, wanted: Tensor, relative: float = 3e-6) -> None:
    assert got.shape == wanted.shape
    assert float((got - wanted).norm()) <= relative * float(wanted.norm())


def steering(seed: int = 3) -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def test_blocks_are_found(lm):
    assert (lm.layers_path, lm.depth, lm.width) == (LAYERS.get(lm.name, "model.layers"), DEPTH, WIDTH)


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, DEPTH - 1), (2, DEPTH)])
def test_unsteered_slice_is_the_models_own_hidden_states(lm, source, target):
    slice_ = dct.Slice(lm, IDS, source, target)
    assert_same(slice_.unsteered, last_tokens(lm, target))
    assert_same(slice_.streams(torch.zeros(1, WIDTH))[0], last_tokens(lm, target))


@pytest.mark.parametrize(("source", "target"), [(0, 2), (1, DEPTH)])
def test_steered_slice_is_the_whole_model_with_theta_added_by_hand(lm, source, target):
    if source == 0 and lm.name.startswith("gemma"):
        embedded = lm.model.get_input_embeddings()(torch.tensor([IDS[0]]))[0]
        if not torch.allclose(own_streams(lm, IDS[0], 0), embedded, rtol=1e-3):
            pytest.skip("this version of transformers scales what it is given for embeddings")
    theta = torch.stack([steering(1), 4 * steering(2)])
    got = dct.Slice(lm, IDS, source, target).streams(theta)
    for row, vector in zip(got, theta, strict=True):
        with added_by_hand(lm, vector, source):
            assert_same(row, last_tokens(lm, target))


def test_prompts_are_packed(slice_):
    assert slice_.packed


def test_packed_prompts_do_what_they_do_one_by_one(lm, slice_):
    theta = 3 * torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    single = dct.Slice(lm, IDS, 1, 4, pack=False)
    assert not single.packed
    assert_same(slice_.streams(theta), single.streams(theta))
    assert slice_.tokens < single.tokens  # the common prefix goes through once


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "single"])
def test_the_last_block_at_the_target_tokens_alone_does_what_it_does_at_all(lm, pack):
    """Streams, gradients and forward-mode derivatives; the tests around this one compare with the whole model."""
    narrow, full = (dct.Slice(lm, IDS, 1, 4, positions=2, pack=pack, narrow=narrow) for narrow in (True, False))
    assert narrow.narrowed
    assert not full.narrowed
    theta = 3 * torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    u = normalize(torch.stack([steering(k) for k in range(4)]), dim=1)
    assert_same(narrow.streams(theta), full.streams(theta))
    gradients, slopes = [], []
    for slice_ in (narrow, full):
        at = theta.clone().requires_grad_()
        gradients += torch.autograd.grad(slice_(at), at, u)
        slopes.append(torch.func.jvp(slice_, (theta,), (u,))[1])
    assert_same(gradients[0], gradients[1], 1e-5)
    assert_same(slopes[0], slopes[1], 1e-5)


@pytest.mark.parametrize(
    "ids",
    [
        [[1, 5, 9, 20], [1, 5, 9, 20, 31, 32]],  # one prompt is the beginning of the other: its targets are shared
        [[4, 5, 9, 20, 31, 6, 7, 8], [7, 8, 9]],  # nothing shared
    ],
    ids=["prefix", "disjoint"],
)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_packing_whatever_prompts_have_in_common(make_lm, architecture, ids):
    lm = make_lm(architecture)
    slice_ = dct.Slice(lm, ids, 1, 4)
    assert slice_.packed
    assert_same(slice_.unsteered, torch.cat([own_streams(lm, row, 4)[-3:] for row in ids]))


def test_a_prompt_sees_only_itself(lm, slice_):
    other = [1, 5, 9, 90, 91, 92, 93]
    theta = steering()[None]
    before = slice_.streams(theta)
    after = dct.Slice(lm, [IDS[0], other, IDS[2]], 1, 4).streams(theta)
    assert_same(after[:, :3], before[:, :3])
    assert_same(after[:, 6:], before[:, 6:])
    assert not torch.allclose(after[:, 3:6], before[:, 3:6], rtol=0.1)


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3"])
def test_sliding_layers_do_not_look_beyond_their_window(make_lm, architecture):
    """One sliding block: the last token cannot tell what stood 6 tokens back; two blocks hand it on."""
    lm = make_lm(architecture)
    changed = [[1, 5, 66, *row[3:]] for row in IDS]
    far = [True, False, True]  # is token 2 more than 5 back from the end?
    for target, reach in ((1, False), (3, True)):
        a, b = (dct.Slice(lm, ids, 0, target, positions=1).unsteered for ids in (IDS, changed))
        moved = (a - b).norm(dim=1) / a.norm(dim=1)
        assert [bool(m > 1e-4) for m in moved] == [reach or not f for f in far]


def test_readout_is_the_models_own_final_norm_head_and_capping(lm):
    for ids in IDS:
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids]), use_cache=False).logits[0]
        assert_same(readout(lm, own_streams(lm, ids, DEPTH)), logits)


def test_readout_knows_of_soft_capping(make_lm):
    """The Gemma-2 of these tests caps its logits: without this, the test above would say less than it seems to."""
    lm = make_lm("gemma2")
    stream = own_streams(lm, IDS[0], DEPTH)
    lm.model.config.final_logit_softcapping = 1.0
    assert float(readout(lm, stream).abs().max()) < 1


def test_readout_leaves_the_model_as_it_was(lm):
    ids = torch.tensor([IDS[0]])
    with torch.no_grad():
        before = lm.model(ids).logits
        forwards = [block.forward for block in lm.layers]
        readout(lm, torch.randn(3, WIDTH))
        with pytest.raises(RuntimeError):  # a stream of the wrong width
            readout(lm, torch.randn(3, WIDTH + 1))
        assert torch.equal(lm.model(ids).logits, before)
    assert [block.forward for block in lm.layers] == forwards


def test_readout_keeps_a_forward_of_the_blocks_own(make_lm):
    """accelerate sets `forward` on the instances of a model spread over devices; it must survive."""
    lm = make_lm("llama")
    readout(lm, torch.randn(2, WIDTH))  # the first one runs a block, to see what blocks return
    calls, block = [], lm.layers[0]
    original = block.forward

    def own(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    block.forward = own
    readout(lm, torch.randn(2, WIDTH))
    assert block.forward is own
    assert not calls
    lm.model(torch.tensor([IDS[0]]))
    assert calls


STEP = 0.002
"""Of the finite differences: small enough for no token to change its experts."""


class Along:
    """The slice of a float64 model along one direction, by the whole model with theta = h v added by hand."""

    def __init__(self, lm: dct.LanguageModel) -> None:
        self.lm = lm
        if hasattr(self.lm.model.config, "_experts_implementation"):
            self.lm.model.set_experts_implementation("eager")  # transformers' fused experts have no float64
        self.v, self.u = (normalize(steering(k).double(), dim=0) for k in (1, 2))
        self.slice = dct.Slice(self.lm, IDS, 1, 4)
        self.zero = torch.zeros(1, WIDTH, dtype=torch.float64)

    def __call__(self, step: float) -> Tensor:
        with added_by_hand(self.lm, step * self.v, 1):
            return last_tokens(self.lm, 4).unflatten(0, (len(IDS), 3)).mean((0, 1))

    def slope(self, theta: Tensor) -> Tensor:
        return torch.func.jvp(self.slice, (theta,), (self.v[None],))[1]


@pytest.fixture(scope="module", params=CONFIGS)
def along(request, make_lm) -> Along:
    """With the attention that transformers chooses: the derivative has to find its own way to the math kernel."""
    return Along(make_lm(request.param, torch.float64))


def test_jvp_and_vjp_are_finite_differences_of_the_whole_model(along):
    h = STEP
    wanted = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    assert_same(along.slope(along.zero)[0], wanted, 5e-4)
    theta = along.zero.clone().requires_grad_()
    [gradient] = torch.autograd.grad(along.slice(theta), theta, along.u[None])
    # Some versions of transformers have norms in float32 whatever the model's type: differences see their rounding.
    assert float(gradient[0] @ along.v) == pytest.approx(float(along.u @ wanted), rel=3e-3)


def test_second_derivatives_are_finite_differences_of_the_slope(along):
    """T2(., v, v) by forward over forward, and T2(u, v, .) v by reverse over forward."""
    h, v = STEP, along.v[None]
    near, far = (along.slope(k * h * v) - along.slope(-k * h * v) for k in (1, 2))
    wanted = (8 * near - far) / (12 * h)
    got = torch.func.jvp(along.slope, (along.zero,), (v,))[1]
    assert_same(got, wanted, 1e-3)
    theta = along.zero.clone().requires_grad_()
    [gradient] = torch.autograd.grad(along.slope(theta), theta, along.u[None])
    assert float(gradient[0] @ along.v) == pytest.approx(float(along.u @ wanted[0]), rel=1e-2)
