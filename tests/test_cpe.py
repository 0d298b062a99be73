"""Rank-1 changes of attention outputs: the map, the fit and what is done with it, against copies with edited weights."""

import copy

import pytest
import torch
from conftest import WIDTH
from torch import Tensor
from torch.nn.functional import normalize
from transformers.pytorch_utils import Conv1D

import dct
from dct.bandslice import BandSlice

# Different lengths, a common beginning, and all of them longer than the sliding window of 6.
IDS = [
    [1, 5, 9, 20, 31, 7, 8, 9, 44, 45, 46, 47],
    [1, 5, 9, 33, 3, 61, 70],
    [1, 5, 9, 20, 31, 77, 78, 79, 80, 81],
]
FIRST, LAST, TARGET = 1, 2, 4
BAND = (FIRST, LAST)

PROJECTION = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense", "qwen3_next": "linear_attn.out_proj"}
NORM = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
F64 = torch.float64


def double(make_lm, architecture: str) -> dct.LanguageModel:
    return make_lm(architecture, dtype=F64)


def edited(lm: dct.LanguageModel, theta: Tensor) -> torch.nn.Module:
    """A copy of the model with R b_l a_l' added to its weights, written out from the definition.

    theta = R phi, phi = (a_1, b_1, a_2, b_2 ...) / sqrt(2L), every a and b of length 1.
    """
    model = copy.deepcopy(lm.model)
    scale, at = float(theta.norm()), 0
    for block in range(FIRST, LAST + 1):
        path = f"{lm.layers_path}.{block}.{PROJECTION.get(lm.name, 'self_attn.o_proj')}"
        module = model.get_submodule(path)
        turned = isinstance(module, Conv1D)  # (in, out)
        inputs = module.weight.shape[0 if turned else 1]
        a, b = theta[at : at + inputs], theta[at + inputs : at + inputs + WIDTH]
        at += inputs + WIDTH
        edit = scale * torch.outer(b / b.norm(), a / a.norm())
        with torch.no_grad():
            module.weight += (edit.T if turned else edit).to(module.weight.dtype)
    assert at == len(theta)
    return model


def stream(lm: dct.LanguageModel, model: torch.nn.Module, ids: list[int], layer: int) -> Tensor:
    """hidden_states[layer] by the model's own account."""
    with torch.no_grad():
        return model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states[layer][0]


def by_hand(lm: dct.LanguageModel, theta: Tensor, read: int = 3) -> Tensor:
    """Delta of one row: whole models, one prompt at a time."""
    model = edited(lm, theta)
    moved = [(stream(lm, model, ids, TARGET) - stream(lm, lm.model, ids, TARGET))[-read:].mean(0) for ids in IDS]
    return torch.stack(moved).mean(0)


def rows(slice_: BandSlice, count: int, seed: int = 0, scale: float = 0.7) -> Tensor:
    return scale * slice_.perturbation.random(count, seed).double()


ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "gemma2"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pack", [True, False])
def test_the_map_is_the_model_with_edited_weights(make_lm, architecture, pack):
    lm = double(make_lm, architecture)
    slice_ = BandSlice(lm, IDS, BAND, TARGET, positions=3, pack=pack)
    assert slice_.packed == pack
    theta = rows(slice_, 3)
    with torch.no_grad():
        got = slice_(theta)
    wanted = torch.stack([by_hand(lm, row) for row in theta])
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6  # norms of some are taken in float32
    assert float(slice_(torch.zeros(2, slice_.dim, dtype=F64)).abs().max()) < 1e-14


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_its_gradient_is_that_of_finite_differences_on_edited_copies(make_lm, architecture):
    lm = double(make_lm, architecture)
    slice_ = BandSlice(lm, IDS, BAND, TARGET, positions=3)
    theta, u = rows(slice_, 1), normalize(torch.randn(WIDTH, dtype=F64), dim=0)
    at = theta.clone().requires_grad_()
    [gradient] = torch.autograd.grad(slice_(at) @ u, at, torch.ones(1, dtype=F64))
    # Along directions in which every a and b keeps its length, R is |theta|.
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        way, pieces = torch.randn(1, slice_.dim, generator=generator, dtype=F64), []
        for pair, parts in zip(slice_.perturbation.parts(way), slice_.perturbation.parts(theta), strict=True):
            pieces += [w - (w * p).sum() / (p * p).sum() * p for w, p in zip(pair, parts, strict=True)]
        tangent, h = torch.cat(pieces, 1), 1e-3
        there, back = (by_hand(lm, (theta + sign * h * tangent)[0]) @ u for sign in (1, -1))
        assert float((gradient * tangent).sum()) == pytest.approx(float((there - back) / (2 * h)), rel=1e-3)
    along = theta / theta.norm()
    there, back = (by_hand(lm, (theta + sign * 1e-3 * along)[0]) @ u for sign in (1, -1))
    assert float((gradient * along).sum()) == pytest.approx(float((there - back) / 2e-3), rel=1e-3)
