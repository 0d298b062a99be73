"""The slice map Delta and its derivatives, against forward passes of the whole model with theta added by a hook."""

import copy

import pytest
import torch
from conftest import DEPTH, WIDTH
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import dct
from dct import DctError, NonFiniteError, UsageError, compat

SOURCE, TARGET, POSITIONS = 1, 4, 3
IDS = [
    [1, 5, 9, 20, 31, 7, 8, 9, 44, 45, 46, 47],
    [1, 5, 9, 33, 3, 61, 70],
    [1, 5, 9, 20, 31, 77, 78, 79, 80, 81],
]


def by_hand(lm: dct.LanguageModel, theta: Tensor, positions: int | None = POSITIONS) -> Tensor:
    """Delta for each row of theta: a hook on the block below the source, the model's own hidden states, plain means."""

    def add(_, args, output):
        return output + theta[:, None]

    means = []
    for ids in IDS:
        rows = torch.tensor([ids] * len(theta))
        rest = lm.model(rows, output_hidden_states=True, use_cache=False).hidden_states[TARGET]
        handle = lm.layers[SOURCE - 1].register_forward_hook(add)
        moved = lm.model(rows, output_hidden_states=True, use_cache=False).hidden_states[TARGET]
        handle.remove()
        read = len(ids) if positions is None else positions
        means.append((moved - rest)[:, -read:].mean(1))
    return torch.stack(means).mean(0)


def difference(f, at: Tensor, direction: Tensor, h: float = 0.02) -> Tensor:
    """Derivative of f along a direction by the fourth-order central difference."""
    near = f(at + h * direction) - f(at - h * direction)
    far = f(at + 2 * h * direction) - f(at - 2 * h * direction)
    return (8 * near - far) / (12 * h)


def slope(f, theta: Tensor, v: Tensor) -> Tensor:
    return torch.func.jvp(f, (theta,), (v,))[1]


def randoms(rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1).to(dtype)


def error(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module", params=["llama", "gemma2", "mixtral"])
def lm(request, make_lm) -> dct.LanguageModel:
    lm = make_lm(request.param, torch.float64)
    if request.param == "mixtral":
        lm.model.set_experts_implementation("eager")  # transformers' fused experts have no float64
        for block in lm.layers:  # every token to all experts: no jumps under a finite difference
            block.mlp.gate.top_k = lm.model.config.num_local_experts
    return lm


@pytest.fixture(scope="module")
def slice_(lm) -> dct.Slice:
    return dct.Slice(lm, IDS, SOURCE, TARGET, positions=POSITIONS)


@pytest.fixture(scope="module")
def jacobian(lm) -> Tensor:
    """J, (out, in), by finite differences of the whole model."""
    eye = torch.eye(WIDTH, dtype=torch.float64)
    with torch.no_grad():
        return difference(lambda theta: by_hand(lm, theta), torch.zeros_like(eye), eye).T


@pytest.fixture(scope="module")
def small(make_lm) -> dct.LanguageModel:
    return make_lm("llama")


def test_delta_is_the_mean_change_of_the_whole_model(lm, slice_):
    theta = 2 * randoms(5)
    with torch.no_grad():
        assert error(slice_(theta), by_hand(lm, theta)) < 1e-5


def test_delta_of_zero_is_exactly_zero(slice_, small):
    """With one row; more rows go through other kernels, and rounding may differ."""
    zero = torch.zeros(1, WIDTH)
    assert torch.equal(slice_(zero.double()), zero.double())
    assert torch.equal(dct.Slice(small, IDS, 0, DEPTH)(zero), zero)
    assert float(slice_(zero.double().expand(3, -1)).abs().max()) < 1e-6


def test_each_prompt_weighs_the_same_when_all_positions_are_read(lm):
    theta = 2 * randoms(3)
    with torch.no_grad():
        slice_ = dct.Slice(lm, IDS, SOURCE, TARGET, positions="all")
        got = slice_(theta)
        wanted = by_hand(lm, theta, positions=None)
        pooled = (slice_.streams(theta) - slice_.unsteered).mean(1)
    assert error(got, wanted) < 1e-5
    assert error(pooled, wanted) > 1e-3  # weighing tokens alike would be something else


def test_rows_of_a_batch_are_independent(slice_):
    theta = randoms(4)
    with torch.no_grad():
        alone = torch.cat([slice_(row[None]) for row in theta])
        assert error(slice_(theta), alone) < 1e-6


def test_jvp_is_the_dense_jacobian(slice_, jacobian):
    eye = torch.eye(WIDTH, dtype=torch.float64)
    assert error(slope(slice_, torch.zeros_like(eye), eye), jacobian.T) < 1e-4


def test_vjp_is_the_transposed_dense_jacobian(slice_, jacobian):
    theta = torch.zeros(WIDTH, WIDTH, dtype=torch.float64, requires_grad=True)
    [rows] = torch.autograd.grad(slice_(theta), theta, torch.eye(WIDTH, dtype=torch.float64))
    assert error(rows, jacobian) < 1e-4


def test_derivatives_away_from_zero(lm, slice_):
    theta, v, u = 1.5 * randoms(3, 1), randoms(3, 2), randoms(3, 3)
    with torch.no_grad():
        wanted = difference(lambda x: by_hand(lm, x), theta, v)
        assert error(slope(slice_, theta, v), wanted) < 1e-4
    at = theta.clone().requires_grad_()
    [gradient] = torch.autograd.grad(slice_(at), at, u)
    assert error((gradient * v).sum(1), (u * wanted).sum(1)) < 1e-4


@pytest.mark.parametrize("away", [0.0, 1.0])
def test_jvp_of_jvp_is_the_second_derivative(slice_, away):
    theta, v, w = away * randoms(3, 1), randoms(3, 2), randoms(3, 3)
    got = slope(lambda x: slope(slice_, x, v), theta, w)
    wanted = difference(lambda x: slope(slice_, x, v), theta, w)
    assert error(got, wanted) < 1e-3


def test_second_derivative_is_the_curvature_of_the_whole_model(lm, slice_):
    """T2(., v, v) from values alone, so that a wrong jvp cannot hide behind itself."""
    v, h = randoms(3, 2), 0.1
    got = slope(lambda x: slope(slice_, x, v), torch.zeros_like(v), v)
    with torch.no_grad():
        near, far = (by_hand(lm, k * h * v) + by_hand(lm, -k * h * v) for k in (1, 2))
    assert error(got, (16 * near - far) / (12 * h**2)) < 0.02


def test_reverse_over_jvp_is_the_gradient_of_the_slope(slice_):
    """T2(u, v, .) against finite differences of u'J(theta) v along every coordinate."""
    u, v = randoms(1, 4), randoms(1, 5)
    theta = torch.zeros(1, WIDTH, dtype=torch.float64, requires_grad=True)
    [got] = torch.autograd.grad(slope(slice_, theta, v), theta, u)
    eye = torch.eye(WIDTH, dtype=torch.float64)
    with torch.no_grad():
        columns = difference(lambda x: slope(slice_, x, v.expand(WIDTH, -1)), torch.zeros_like(eye), eye)
    assert error(got[0], columns @ u[0]) < 1e-3


def test_hessian_products_in_either_order_of_modes(slice_):
    """Forward over reverse, reverse over forward and reverse over reverse are one symmetric matrix."""
    u, v, zero = randoms(1, 4), randoms(1, 5), torch.zeros(1, WIDTH, dtype=torch.float64)

    def along_u(theta: Tensor) -> Tensor:
        return (slice_(theta) * u).sum()

    forward_over_reverse = torch.func.jvp(torch.func.grad(along_u), (zero,), (v,))[1]
    theta = zero.clone().requires_grad_()
    [reverse_over_forward] = torch.autograd.grad((slope(slice_, theta, v) * u).sum(), theta)
    assert error(forward_over_reverse, reverse_over_forward) < 1e-5
    if slice_.lm.name != "mixtral":  # its fused experts have no second reverse derivative
        with sdpa_kernel(SDPBackend.MATH):
            [gradient] = torch.autograd.grad(along_u(theta), theta, create_graph=True)
            [twice] = torch.autograd.grad((gradient * v).sum(), theta)
        assert error(twice, reverse_over_forward) < 1e-5


def test_choosing_kernels_for_a_derivative_leaves_the_model_as_it_was(make_lm):
    lm = make_lm("mixtral")
    before = lm.model.config._experts_implementation
    slice_ = dct.Slice(lm, IDS, SOURCE, TARGET)
    torch.func.jvp(slice_, (torch.zeros(1, WIDTH),), (randoms(1, dtype=torch.float32),))
    assert lm.model.config._experts_implementation == before
    assert torch.backends.cuda.flash_sdp_enabled()


def test_long_prompt_lists_make_several_packed_rows(small):
    """300 tokens do not fit into one packed row of 160; the order of prompts is kept."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in (60, 50, 150, 20, 20)]
    slice_ = dct.Slice(small, ids, SOURCE, TARGET, positions=2)
    assert slice_.packed
    with torch.no_grad():
        states = [small.model(torch.tensor([row]), output_hidden_states=True).hidden_states for row in ids]
    wanted = torch.cat([s[TARGET][0, -2:] for s in states])
    assert error(slice_.unsteered, wanted) < 1e-5
    assert error(slice_.last_entering(), torch.stack([s[SOURCE][0, -1] for s in states])) < 1e-6


def test_a_row_is_filled_by_what_it_holds(small):
    """Five prompts of 60 tokens are 300, but with their common 40 once they are 140, and one row takes 160."""
    generator = torch.Generator().manual_seed(0)
    prefix, *own = (torch.randint(3, 300, (n,), generator=generator).tolist() for n in (40, *[20] * 5))
    slice_ = dct.Slice(small, [[*prefix, 10 + k, *row[1:]] for k, row in enumerate(own)], SOURCE, TARGET)
    assert slice_.packed
    assert slice_.tokens == 140


def test_the_last_block_works_on_target_tokens_alone(small):
    """Its attention and its MLP see only the tokens that are read; nothing is narrowed where most tokens are read."""
    slice_ = dct.Slice(small, IDS, SOURCE, TARGET, positions=2)
    assert slice_.narrowed
    seen = []
    handles = [
        small.layers[k].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1])) for k in (2, 3)
    ]
    slice_(torch.zeros(1, WIDTH))
    for handle in handles:
        handle.remove()
    assert seen == [slice_.tokens, 2 * len(IDS)]
    assert not dct.Slice(small, IDS, SOURCE, TARGET, positions="all").narrowed


@pytest.mark.parametrize("fault", ["no cache", "wrong", "raises"])
def test_a_block_that_cannot_be_narrowed_runs_in_full(make_lm, monkeypatch, fault):
    """Attention that never asks its cache, that does something else with one, or that refuses it."""
    lm = make_lm("llama")
    attention = lm.layers[TARGET - 1].self_attn
    own = attention.forward

    def forward(*args, **kwargs):
        [cache] = compat.caches_of(kwargs)  # transformers has renamed it
        if kwargs[cache] is not None and fault == "raises":
            raise NotImplementedError
        if fault == "no cache":
            kwargs[cache] = None
        output, weights = own(*args, **kwargs)
        return (output, weights) if kwargs[cache] is None else (1.1 * output, weights)

    monkeypatch.setattr(attention, "forward", forward)
    slice_ = dct.Slice(lm, IDS, SOURCE, TARGET)
    assert slice_.packed
    assert not slice_.narrowed
    theta = randoms(2, dtype=torch.float32)
    assert error(slice_(theta), dct.Slice(lm, IDS, SOURCE, TARGET, narrow=False)(theta)) == 0


def test_equal_prompts_are_packed_too(small):
    slice_ = dct.Slice(small, [IDS[0], IDS[0]], SOURCE, TARGET)
    alone = dct.Slice(small, [IDS[0]], SOURCE, TARGET)
    assert slice_.packed
    assert error(slice_.unsteered, torch.cat([alone.unsteered, alone.unsteered])) < 1e-5


def test_residual_norm_is_the_median_over_all_tokens(small):
    slice_ = dct.Slice(small, IDS, SOURCE, TARGET)
    with torch.no_grad():
        states = [small.model(torch.tensor([row]), output_hidden_states=True).hidden_states[SOURCE][0] for row in IDS]
    assert slice_.residual_norm == pytest.approx(float(torch.cat(states).norm(dim=1).median()), rel=1e-5)


def test_last_entering_with_all_positions(small):
    slice_ = dct.Slice(small, IDS, SOURCE, TARGET, positions="all")
    with torch.no_grad():
        ends = [small.model(torch.tensor([r]), output_hidden_states=True).hidden_states[SOURCE][0, -1] for r in IDS]
    assert error(slice_.last_entering(), torch.stack(ends)) < 1e-6


def test_texts_are_rendered_with_the_chat_template_and_system_message(small, prompts):
    slice_ = dct.Slice(small, prompts, SOURCE, TARGET, system="Be brief.")
    texts = [f"<s><system>Be brief.<user>{p}<assistant>" for p in prompts]
    assert slice_.ids == [small.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]


def test_half_precision_model_has_a_float32_map(make_lm):
    """bfloat16 blocks, float32 means; close to the float32 model."""
    theta = randoms(3, dtype=torch.float32) * 3
    full = dct.Slice(make_lm("llama"), IDS, SOURCE, TARGET)
    half = dct.Slice(make_lm("llama", torch.bfloat16), IDS, SOURCE, TARGET)
    assert half(theta).dtype == torch.float32
    assert half.packed
    assert error(half(theta), full(theta)) < 0.05


@pytest.mark.parametrize(("source", "target"), [(3, 3), (4, 2), (-1, 2)])
def test_layers_out_of_order_are_wrong_usage(small, source, target):
    with pytest.raises(UsageError, match="source layer"):
        dct.Slice(small, IDS, source, target)


def test_target_beyond_the_model(small):
    with pytest.raises(DctError, match=f"{DEPTH} blocks"):
        dct.Slice(small, IDS, 1, DEPTH + 1)


def test_prompt_shorter_than_the_positions_is_named(small):
    with pytest.raises(DctError, match=r"prompt 2 has 2 tokens.*3 positions"):
        dct.Slice(small, [[1, 5, 6, 7], [1, 5]], 1, 3)


@pytest.mark.parametrize("prompts", [[], "one string", ["fine", "  "]])
def test_unusable_prompts(small, prompts):
    with pytest.raises(DctError):
        dct.Slice(small, prompts, 1, 3)


@pytest.mark.parametrize(
    ("opened_by", "read"), [("<assistant>", 1), ("<assistant></s>", 2), ("</s><assistant></s><assistant>", 3), ("", 3)]
)
def test_the_tokens_that_open_the_reply_are_read_three_at_most(small, tokenizer, opened_by, read):
    lm = copy.copy(small)
    lm.tokenizer = copy.deepcopy(tokenizer)
    lm.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}" + opened_by + "{% endif %}"
    )
    slice_ = dct.Slice(lm, ["Tell me", "How do I pick a lock?"], SOURCE, TARGET)
    assert slice_.positions == slice_.info["positions"] == read
    lm.tokenizer = small.tokenizer
    theta = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slice_(theta), dct.Slice(lm, slice_.ids, SOURCE, TARGET, positions=read)(theta))


def test_token_ids_that_do_not_end_where_a_reply_opens(small):
    assert dct.Slice(small, [[1, 5, 6, 7], [1, 5, 8]], 1, 3).positions == 3


@pytest.mark.parametrize("positions", [0, -2])
def test_at_least_one_position_is_read(small, positions):
    with pytest.raises(DctError, match="positions"):
        dct.Slice(small, IDS, 1, 3, positions=positions)


def test_a_block_that_breaks_down_is_named(make_lm):
    lm = make_lm("llama")
    with torch.no_grad():
        lm.layers[2].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="block 2 "):
        dct.Slice(lm, IDS, 1, 4)


def test_a_block_that_breaks_down_under_steering_is_named(make_lm):
    lm = make_lm("llama", torch.float16)
    slice_ = dct.Slice(lm, IDS, 1, 4)
    with pytest.raises(NonFiniteError, match=r"block \d|entering block 1"):
        slice_(torch.full((1, WIDTH), 1e5))
