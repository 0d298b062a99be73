"""That tensors are where they must be, on machines that have one place for them: some pretend to be on another device.

They say so, refuse to meet tensors of the CPU, and compute on the CPU what they are asked for. Everything that takes
first derivatives by reverse mode, ranks, steers and generates is run on them. Forward mode cannot be (torch makes its
dual tensors of a tensor's own storage, and these have none), nor can anything that reads storages or swaps `data`.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

import dct

ELSEWHERE = torch.device("lazy", 0)
"""A device that autograd takes for the CPU's own business, so that it asks for no driver."""

MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Far(torch.Tensor):
    """A tensor of the CPU that says it is elsewhere."""

    @staticmethod
    def __new__(cls, near: torch.Tensor):
        like = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, near.size(), **like, device=ELSEWHERE)

    def __init__(self, near: torch.Tensor):
        self.near = near

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def near(x):
    return x.near if isinstance(x, Far) else x


def is_elsewhere(device) -> bool:
    return device is not None and torch.device(device).type == ELSEWHERE.type


def computed(func, args, kwargs):
    """An operation, on the CPU; what comes of it is where its tensors are, or where it was asked to be."""
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    far = [x for x in tensors if isinstance(x, Far)]
    # Numbers may come from anywhere, as on a GPU.
    if far and func not in MOVES and any(x.ndim for x in tensors if not isinstance(x, Far)):
        raise RuntimeError(f"{func}: tensors on {ELSEWHERE} and on the CPU")
    device = kwargs.get("device")
    if is_elsewhere(device):
        kwargs = {**kwargs, "device": "cpu"}
    if func is torch.ops.aten.histc.default:  # of integers on a GPU, as transformers counts the tokens of experts
        args = (args[0].float(), *args[1:])
    out = func(*pytree.tree_map(near, args), **pytree.tree_map(near, kwargs))
    if func is torch.ops.aten.copy_.default:
        return args[0]
    if far and torch.Tag.inplace_view in func.tags:  # the wrapper has a shape of its own
        return return_and_correct_aliasing(func, args, kwargs, args[0])
    if not (far if device is None else is_elsewhere(device)):
        return out
    known = {id(x.near): x for x in far}  # what was changed in place stays what it is

    def wrapped(x):
        if FLOAT64_MISSING and isinstance(x, torch.Tensor) and x.dtype == torch.float64:
            raise TypeError(f"{ELSEWHERE} has no float64")
        return known.get(id(x), Far(x)) if isinstance(x, torch.Tensor) else x

    return pytree.tree_map(wrapped, out)


FLOAT64_MISSING: list[bool] = []


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class Conversions(TorchFunctionMode):
    """What torch does with Python's numbers before any operation is called."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and is_elsewhere(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(ELSEWHERE)
        if func is torch.Tensor.tolist:
            return near(args[0]).tolist()
        if func is torch.Tensor.__getitem__ and isinstance(args[0], Far):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return func(args[0], tuple(torch.tensor(i).to(ELSEWHERE) if isinstance(i, list) else i for i in index))
        return func(*args, **kwargs)


@contextmanager
def pretending():
    with Conversions(), Operations():
        yield


def sent(lm: dct.LanguageModel) -> dct.LanguageModel:
    """The model, with its weights elsewhere."""
    for module in lm.model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(Far(parameter.data), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Far(buffer)
    return lm


@pytest.fixture(params=["gemma2", "qwen3_moe"])
def twice(request, make_lm):
    """The same model here and elsewhere."""
    return make_lm(request.param), sent(make_lm(request.param))


def test_the_pretence_refuses_to_mix():
    with pretending():
        far, here = torch.ones(3, device=ELSEWHERE), torch.ones(3)
        assert far.device == ELSEWHERE
        assert (far + 1).device == (far * here.sum()).device == here.to(ELSEWHERE).device == ELSEWHERE
        assert far.cpu().tolist() == [1, 1, 1]
        with pytest.raises(RuntimeError, match="and on the CPU"):
            far + here


@pytest.mark.parametrize("method", ["exponential", "linear", "melbo"])
def test_a_fit_keeps_to_its_device(twice, prompts, method):
    here, there = twice
    options = {"method": method, "factors": 4, "scale": 1.0, "iterations": 2, "batch": 3}
    wanted = dct.fit(dct.Slice(here, prompts, 1, 4), here.width, **options)
    with pretending():
        slice_ = dct.Slice(there, prompts, 1, 4)
        assert slice_.device == ELSEWHERE
        assert slice_.packed
        got = dct.fit(slice_, there.width, **options)
    for a, b in ((got.V, wanted.V), (got.U, wanted.U)):
        assert a.device == torch.device("cpu")
        assert type(a) is torch.Tensor
        # Rounding grows from step to step, above all where a token is between two experts.
        assert float((a * b).sum(1).min()) > 0.999


@pytest.mark.parametrize("orthogonalize", ["qr", "soft"])
def test_a_device_without_float64_or_decompositions_is_spared_them(make_lm, prompts, monkeypatch, orthogonalize):
    """Apple's. The vectors are taken apart on the CPU."""
    monkeypatch.setattr("dct.derivatives.WITHOUT_DECOMPOSITIONS", (ELSEWHERE.type,))
    monkeypatch.setattr(f"{__name__}.FLOAT64_MISSING", [True])
    options = {"factors": 4, "scale": 1.0, "iterations": 2, "batch": 3, "orthogonalize": orthogonalize}
    here, there = make_lm("llama"), sent(make_lm("llama"))
    wanted = dct.fit(dct.Slice(here, prompts, 1, 4), here.width, **options)
    called = []
    with pretending():
        slice_ = dct.Slice(there, prompts, 1, 4)
        for name in ("qr", "eigh", "svd"):
            plain = getattr(torch.linalg, name)
            monkeypatch.setattr(
                torch.linalg, name, lambda x, *a, plain=plain, **k: (called.append(x.device), plain(x, *a, **k))[1]
            )
        got = dct.fit(slice_, there.width, **options)
        vector = dct.fit(slice_, there.width, **(options | {"method": "melbo"})).V
    torch.testing.assert_close(got.V, wanted.V, rtol=1e-3, atol=1e-4)
    assert vector.device == torch.device("cpu")
    assert set(called) == {torch.device("cpu")}


def test_ranking_steering_and_generation_keep_to_their_device(twice, prompts):
    here, there = twice
    V = torch.nn.functional.normalize(torch.randn(3, here.width, generator=torch.Generator().manual_seed(0)), dim=1)
    slice_ = dct.Slice(here, prompts, 1, 4)
    factors = dct.Factors(V, V, torch.ones(3), torch.zeros(0, 3), slice_.residual_norm, slice_.info)
    rows = [list(row) for row in here.encode(["Say it."] * 2)]

    def everything(lm):
        ranking = dct.rank(lm, factors, ["Tell me.", "How?"], ["Hello."], positive="a", negative="b", source=1)
        with dct.steer(lm, V[0], 1):
            logits = lm.model(torch.tensor(rows, device=lm.device)).logits.float().cpu()
        return [v.effect.score for v in ranking.vectors], logits, dct.complete(lm, rows, V[:2], 1, max_new_tokens=5)

    wanted = everything(here)
    with pretending():
        got = everything(there)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-3, atol=1e-4)
    assert got[2] == wanted[2]
