"""Compiling a slice changes how fast it is, not what it is; and never stands in the way of a fit."""

import shutil

import pytest
import torch
from conftest import WIDTH
from test_cli import ok, run
from torch.nn.functional import normalize

import dct
from dct import DctError, UsageError
from dct.compilation import PAYS_AFTER, pays

IDS = [[1, 5, 9, 20, 31, 7, 8, 9, 44, 45, 46, 47], [1, 5, 9, 33, 3, 61, 70]]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def vectors(rows: int) -> torch.Tensor:
    return 3 * normalize(torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows)), dim=1)


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_auto_compiles_only_what_takes_long(kind):
    device, enough = torch.device(kind), PAYS_AFTER.get(kind, PAYS_AFTER["cpu"])
    assert not pays("auto", enough / 2, device)
    assert pays("auto", enough * 2, device)
    assert pays("on", 0.0, device)
    assert not pays("off", enough * 2, device)
    with pytest.raises(UsageError, match="auto, on, off"):
        pays("maybe", 0.0, device)


@pytest.mark.slow
@needs_compiler
def test_a_compiled_slice_is_the_same_map(make_lm):
    """Values, gradients and forward-mode derivatives, for several numbers of rows, with and without gradients."""
    slice_ = dct.Slice(make_lm("llama"), IDS, 1, 4)
    plain = dct.Slice(make_lm("llama"), IDS, 1, 4)
    slice_.compile()
    used = []
    fused = slice_._rows.run.fused
    slice_._rows.run.fused = lambda *args: used.append(len(args[2])) or fused(*args)
    for rows in (1, 2, 5):
        theta, u = vectors(rows), normalize(vectors(rows + 10)[:rows], dim=1)
        with torch.no_grad():
            torch.testing.assert_close(slice_(theta), plain(theta), rtol=1e-4, atol=1e-5)
        gradients = []
        for f in (slice_, plain):
            at = theta.clone().requires_grad_()
            gradients += torch.autograd.grad(f(at), at, u)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
        slopes = [torch.func.jvp(f, (theta,), (u,))[1] for f in (slice_, plain)]
        torch.testing.assert_close(slopes[0], slopes[1])
    assert set(used) == {2, 5}  # one row alone, and forward mode, run as before


def broken(function, **_):
    """What torch says on a machine without a C++ compiler, when the compiled function is first called."""

    def call(*args):
        raise RuntimeError("No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    return call


def test_without_a_compiler_a_slice_stays_as_it_was(make_lm, monkeypatch):
    slice_ = dct.Slice(make_lm("llama"), IDS, 1, 4)
    before = slice_(vectors(3))
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(DctError, match=r"cannot compile the slice \(No working C\+\+ compiler found\): .*off"):
        slice_.compile()
    assert torch.equal(slice_(vectors(3)), before)


@pytest.mark.slow
def test_the_compiler_is_really_missing(make_lm, monkeypatch, tmp_path):
    import torch._inductor.config as config

    slice_ = dct.Slice(make_lm("llama"), IDS, 1, 4)
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    config.cpp.cxx, before = (None, "no-such-compiler"), config.cpp.cxx
    try:
        with pytest.raises(DctError, match="cannot compile the slice"):
            slice_.compile()
    finally:
        config.cpp.cxx = before
        torch._dynamo.reset()


def test_what_computes_something_else_is_not_kept(make_lm, monkeypatch):
    slice_ = dct.Slice(make_lm("llama"), IDS, 1, 4)
    before = slice_(vectors(3))
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *args: 1.01 * function(*args))
    with pytest.raises(DctError, match="something else"):
        slice_.compile()
    assert torch.equal(slice_(vectors(3)), before)


def test_a_fit_goes_on_without_a_compiler(workplace, model_folder, monkeypatch):
    monkeypatch.setattr(torch, "compile", broken)
    said = ok("fit", "--model", model_folder, "--n", 1, "--factors", 2, "--iterations", 1, "--compile", "on")
    assert "going on without" in " ".join(said.output.split())


def test_another_choice_is_wrong_usage(workplace, model_folder):
    result = run("fit", "--model", model_folder, "--compile", "maybe")
    assert result.exit_code == 2
    assert "auto, on, off" in result.output
