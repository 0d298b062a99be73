"""Attention over a packed row, prompt by prompt, against torch's own over the whole row."""

import pytest
import torch
from conftest import DEPTH
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import dct
from dct import attention
from dct.attention import RowAttention
from dct.model import LanguageModel

F64 = torch.float64
IDS = [[1, 5, 9, 20, 31, 7, 8, 9, 44, 45], [1, 5, 9, 33, 3, 61, 70], [1, 5, 9, 2, 31, 77, 78, 79, 80], [1, 5, 9, 4]]


def block_mask(prefix: int, lengths: list[int]) -> Tensor:
    """Which key each token of a packed row sees, written token by token."""
    whose = [-1] * prefix + [k for k, n in enumerate(lengths) for _ in range(n - prefix)]
    seen = [[j <= i and whose[j] in (-1, whose[i]) for j in range(len(whose))] for i in range(len(whose))]
    return torch.tensor(seen)[None, None]


def with_gradients(inputs: list[Tensor], mask: Tensor, row: RowAttention | None, **how: object) -> list[Tensor]:
    q, k, v = (x.clone().requires_grad_() for x in inputs)
    if row is None:
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, **how)
    else:
        with row.at_work():
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, **how)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=F64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), (q, k, v))]


def drawn(tokens: int, key_heads: int = 4, dtype: torch.dtype = F64) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, tokens, 8, generator=g, dtype=F64).to(dtype) for heads in (4, key_heads, key_heads)]


@pytest.mark.parametrize(
    ("prefix", "lengths"),
    [(3, [10, 7, 9, 4]), (3, [9, 9, 9]), (0, [5, 8, 6]), (4, [4, 12, 12, 12]), (4, [12, 12, 12, 4])],
)
@pytest.mark.parametrize("kind", ["seen", "added", "heads"])
def test_values_and_gradients_are_those_over_the_whole_row(prefix, lengths, kind):
    mask = block_mask(prefix, lengths)
    if kind != "seen":
        mask = torch.zeros(mask.shape, dtype=F64).masked_fill(~mask, torch.finfo(F64).min)
    if kind == "heads":  # what is added depends on the distance, at another rate in every head
        place = torch.arange(mask.shape[-1])
        mask = mask - (place[:, None] - place).abs() * torch.tensor([0.5, 0.25, 0.1, 0.0], dtype=F64)[:, None, None]
    row = RowAttention(prefix, lengths, [mask], F64)
    assert row.apart
    inputs = drawn(mask.shape[-1])
    for got, wanted in zip(
        with_gradients(inputs, mask, row), with_gradients(inputs, mask, None, scale=None), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_other_scales_and_fewer_keys_than_heads():
    mask = block_mask(3, [10, 7, 9])
    row, inputs = RowAttention(3, [10, 7, 9], [mask], F64), drawn(mask.shape[-1], key_heads=2)
    how = {"scale": 0.7, "enable_gqa": True}
    pairs = zip(with_gradients(inputs, mask, row, **how), with_gradients(inputs, mask, None, **how), strict=True)
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_half_precision_is_done_in_single(monkeypatch):
    """Nearer to the truth than torch's own, and given back in the type it came in; a single prompt too."""
    mask = block_mask(0, [40])
    inputs = [3 * x for x in drawn(40, dtype=torch.bfloat16)]
    row = RowAttention(0, [40], [mask], torch.float32)
    assert not row.apart
    truth = scaled_dot_product_attention(*(x.double() for x in inputs), attn_mask=mask)
    [wide, *_], [plain, *_] = with_gradients(inputs, mask, row), with_gradients(inputs, mask, None)
    assert wide.dtype == torch.bfloat16
    assert float((wide - truth).norm()) <= 1.001 * float((plain - truth).norm())
    kinds = []

    def watched(q: Tensor, *args: object, **kwargs: object) -> Tensor:
        kinds.append(q.dtype)
        return scaled_dot_product_attention(q, *args, **kwargs)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched)
    assert row.attended(*inputs, mask) is not None
    assert kinds == [torch.float32]


def test_what_is_not_the_row_s_is_left_to_torch():
    lengths = [10, 7, 9]
    mask = block_mask(3, lengths)
    row, (q, k, v) = RowAttention(3, lengths, [mask], F64), drawn(mask.shape[-1])
    assert row.attended(q, k, v, mask) is not None
    assert row.attended(q, k, v, mask[:, :, :, : k.shape[2]]) is not None  # a view of all of it, as models take
    assert row.attended(q, k, v, mask.clone()) is None
    assert row.attended(q, k, v) is None
    assert row.attended(q[:, :, :5], k, v, mask[:, :, :5]) is None
    assert row.attended(q, k, v, mask, 0.1) is None
    # prompts that differ in their last token alone: as many products as over the whole row, or nearly
    assert not RowAttention(20, [21, 21], [block_mask(20, [21, 21])], F64).apart


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma3"])
def test_slices_take_it_and_never_attend_across_prompts(make_lm, architecture, monkeypatch):
    lm: LanguageModel = make_lm(architecture, dtype=F64, attn_implementation="sdpa")
    keys = []

    def watched(q: Tensor, k: Tensor, *args: object, **kwargs: object) -> Tensor:
        keys.append(k.shape[2])
        return scaled_dot_product_attention(q, k, *args, **kwargs)

    slice_ = dct.Slice(lm, IDS, 1, DEPTH, narrow=False)
    assert slice_.packed
    assert slice_._rows.grouped
    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched)
    theta = torch.nn.functional.normalize(torch.randn(2, slice_.dim, dtype=F64), dim=1)
    got = slice_(theta)
    assert keys
    assert max(keys) == max(map(len, IDS))  # the row has 21 tokens
    plain = dct.Slice(lm, IDS, 1, DEPTH, pack=False)
    torch.testing.assert_close(got, plain(theta), rtol=1e-9, atol=1e-11)


def test_a_model_that_attends_by_itself_goes_on_as_before(make_lm):
    slice_ = dct.Slice(make_lm("llama", attn_implementation="eager"), IDS, 1, DEPTH)
    assert slice_.packed
    assert not slice_._rows.grouped
    torch.testing.assert_close(
        slice_(torch.ones(1, slice_.dim)),
        dct.Slice(slice_.lm, IDS, 1, DEPTH, pack=False)(torch.ones(1, slice_.dim)),
        rtol=1e-4,
        atol=1e-5,
    )
