"""The factors file: what is written comes back bit for bit, whole or not at all."""

import errno
import json
import math
import os
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from dct import DctError, Factors
from dct.factors import FORMAT, SIGNLESS, read_tensors, write_tensors, write_whole

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
in_folder = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make(m: int = 3, d: int = 4, d_out: int = 5, iterations: int = 2, seed: int = 0, **info: object) -> Factors:
    g = torch.Generator().manual_seed(seed)
    unit = [torch.nn.functional.normalize(torch.randn(m, k, generator=g), dim=1) for k in (d, d_out)]
    return Factors(*unit, torch.rand(m, generator=g), torch.randn(iterations, 3, generator=g), 2.5, dict(info))


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view(torch.int32)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@in_folder
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    iterations=st.integers(0, 4),
    seed=st.integers(0, 2**20),
    scale=st.floats(1e-300, 1e300),
    info=st.dictionaries(st.text(), JSON, max_size=4),
)
def test_round_trip(workplace, shape, iterations, seed, scale, info):
    m, d, d_out = shape
    saved = make(m, d, d_out, iterations, seed)
    saved.V[0, 0], saved.U[0, 0] = -0.0, 1e-42  # a negative zero and a subnormal number
    saved.scale, saved.info = scale, info
    loaded = Factors.load(saved.save("f.safetensors"))
    for name in ("V", "U", "alpha", "objective"):
        before, after = getattr(saved, name), getattr(loaded, name)
        assert after.shape == before.shape
        assert torch.equal(bits(before), bits(after))
    assert loaded.scale == scale
    assert {k: v for k, v in loaded.info.items() if k != "scale"} == {k: v for k, v in info.items() if k != "scale"}
    assert len(loaded) == m


def test_file_is_plain_safetensors_with_a_readable_header(workplace):
    make(method="linear", model="m").save("f.safetensors")
    with safe_open("f.safetensors", framework="pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {"V", "U", "alpha", "objective"}
        assert all(file.get_tensor(name).dtype == torch.float32 for name in ("V", "U", "alpha", "objective"))
    assert (metadata["format"], metadata["format_version"]) == ("dct-factors", "1")
    assert json.loads(metadata["config"]) == {"method": "linear", "model": "m", "scale": 2.5}


def test_other_dtypes_and_views_are_stored_as_float32(workplace):
    wide = make(4, 4)
    wide.V, wide.U = wide.V.double().T, wide.U.bfloat16()
    loaded = Factors.load(wide.save("f.safetensors"))
    assert torch.equal(loaded.V, wide.V.float())
    assert torch.equal(loaded.U, wide.U.float())


def test_folders_on_the_way_are_made_and_an_old_file_is_replaced(workplace):
    path = Path("a/b/f.safetensors")
    make(seed=1).save(path)
    make(seed=2).save(path)
    assert torch.equal(Factors.load(path).V, make(seed=2).V)
    assert leftovers(path.parent) == ["f.safetensors"]


@pytest.mark.parametrize("method", ["exponential", *SIGNLESS, None])
def test_only_linear_and_quadratic_factors_have_no_sign(method):
    assert make(method=method).signless == (method in ("linear", "linear-projected", "linear-randomized", "quadratic"))


# --- what cannot be read ----------------------------------------------------------------------------------------------


def write(path: str, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> None:
    good = make()
    ready = {name: getattr(good, name) for name in ("V", "U", "alpha", "objective")} | tensors
    config = {"format": FORMAT, "format_version": "1", "config": json.dumps({"scale": 2.5})}
    kept = {k: v.contiguous() for k, v in ready.items() if v.numel()}  # an empty tensor stands for a missing one
    save_file(kept, path, config | (metadata or {}))


@pytest.mark.parametrize(
    ("metadata", "tensors", "says"),
    [
        ({"format": "pt"}, {}, "not a dct-factors file"),
        ({"format_version": "2"}, {}, "format version 2"),
        ({"config": "{"}, {}, "config"),
        ({"config": "[]"}, {}, "config"),
        ({"config": "{}"}, {}, "no scale"),
        ({"config": '{"scale": NaN}'}, {}, "no scale"),
        ({"config": '{"scale": Infinity}'}, {}, "no scale"),
        ({"config": '{"scale": -1}'}, {}, "no scale"),
        ({"config": '{"scale": "2"}'}, {}, "no scale"),
        ({}, {"V": torch.zeros(0)}, "lacks V"),
        ({}, {"U": torch.zeros(0)}, "lacks U"),
        ({}, {"alpha": torch.zeros(0)}, "lacks alpha"),
        ({}, {"V": torch.zeros(2, 4)}, "do not belong together"),
        ({}, {"alpha": torch.zeros(7)}, "do not belong together"),
        ({}, {"V": torch.zeros(3)}, "do not belong together"),
        ({}, {"V": torch.full((3, 4), math.nan)}, "damaged"),
        ({}, {"U": torch.full((3, 5), math.inf)}, "damaged"),
        ({}, {"alpha": torch.full((3,), math.nan)}, "damaged"),
    ],
)
def test_wrong_content_is_refused_and_named(workplace, metadata, tensors, says):
    write("f.safetensors", metadata, **tensors)
    with pytest.raises(DctError, match=says):
        Factors.load("f.safetensors")


def test_a_well_formed_file_of_another_writer_is_accepted(workplace):
    write("f.safetensors")
    assert torch.equal(Factors.load("f.safetensors").V, make().V)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_file_is_always_a_clear_error(workplace, data):
    whole = make().save("whole.safetensors").read_bytes()
    keep = data.draw(st.integers(0, len(whole) - 1))
    Path("cut.safetensors").write_bytes(whole[:keep])
    with pytest.raises(DctError, match=r"cut\.safetensors"):
        Factors.load("cut.safetensors")


@given(junk=st.binary(max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_always_a_clear_error(workplace, junk):
    Path("junk.safetensors").write_bytes(junk)
    with pytest.raises(DctError, match="damaged or not a safetensors file"):
        Factors.load("junk.safetensors")


@given(where=st.integers(0, 400), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_header_bit_is_a_clear_error_or_still_a_valid_file(workplace, where, bit):
    data = bytearray(make(note="x").save("f.safetensors").read_bytes())
    data[where % len(data)] ^= 1 << bit
    Path("flipped.safetensors").write_bytes(data)
    try:
        loaded = Factors.load("flipped.safetensors")
    except DctError:
        return
    assert len(loaded.V) == len(loaded.U) == len(loaded.alpha) > 0
    assert torch.isfinite(loaded.V).all()


def test_no_file(workplace):
    with pytest.raises(DctError, match="no file nothing"):
        Factors.load("nothing.safetensors")


def test_another_kind_of_file_is_refused(workplace):
    write_tensors("s.safetensors", "dct-state", {"V": torch.ones(1, 1)}, {})
    assert read_tensors("s.safetensors", "dct-state", ("V",))[0]["V"].item() == 1
    with pytest.raises(DctError, match="not a dct-factors file"):
        Factors.load("s.safetensors")


# --- whole or not at all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["os.fsync", "os.fdopen", "pathlib.Path.replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(workplace, monkeypatch, step):
    make(seed=1).save("f.safetensors")
    old = Path("f.safetensors").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(step, full)
        with pytest.raises(DctError, match=r"cannot write f\.safetensors: No space left on device"):
            make(seed=2).save("f.safetensors")
    assert Path("f.safetensors").read_bytes() == old
    assert leftovers(workplace) == ["f.safetensors"]


def test_a_real_limit_on_file_size_leaves_the_old_file_and_nothing_else(workplace):
    make(seed=1).save("f.safetensors")
    old = Path("f.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DctError, match="File too large"):
            make(50, 50).save("f.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Path("f.safetensors").read_bytes() == old
    assert leftovers(workplace) == ["f.safetensors"]


def test_ctrl_c_while_writing_leaves_the_old_file_and_nothing_else(workplace, monkeypatch):
    make(seed=1).save("f.safetensors")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(seed=2).save("f.safetensors")
    assert torch.equal(Factors.load("f.safetensors").V, make(seed=1).V)
    assert leftovers(workplace) == ["f.safetensors"]


def test_the_name_appears_only_when_the_content_is_whole(workplace, monkeypatch):
    seen = []
    really = os.fsync

    def look(descriptor: int) -> None:
        seen.append(Path("f.bin").exists())
        really(descriptor)

    monkeypatch.setattr("os.fsync", look)
    write_whole("f.bin", b"content")
    assert seen == [False]
    assert Path("f.bin").read_bytes() == b"content"


@pytest.mark.parametrize("path", ["/proc/nowhere/f.safetensors", "file/f.safetensors", "folder"])
def test_unwritable_place_says_so(workplace, path):
    Path("file").write_text("")
    Path("folder").mkdir()
    with pytest.raises(DctError, match="cannot write"):
        make().save(path)
    assert leftovers(workplace) == ["file", "folder"]
    assert not leftovers(workplace / "folder")
