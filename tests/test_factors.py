"""The factors file: what is written comes back bit for bit, whole or not at all."""

import errno
import hashlib
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from dct import DctError, Factors
from dct.contents import SCALES
from dct.factors import FORMAT
from dct.method import built_in
from dct.tensorfile import read_tensors, write_tensors
from dct.writing import write_whole

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
    scale=st.floats(*SCALES),
    info=st.dictionaries(st.text().map("my {}".format), JSON, max_size=4),
)
def test_round_trip(workplace, shape, iterations, seed, scale, info):
    m, d, d_out = shape
    saved = make(m, d, d_out, iterations, seed)
    saved.objective[:1, 0], saved.alpha[0] = -0.0, 1e-42  # a negative zero and a subnormal number
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
    assert (metadata["format"], metadata["format_version"]) == ("dct-factors", "2")
    assert json.loads(metadata["config"]) == {"method": "linear", "model": "m", "scale": 2.5}


def test_other_dtypes_and_views_are_stored_as_float32(workplace):
    wide = make(4, 4)
    wide.V, wide.U = torch.linalg.qr(wide.V.double()).Q.T.contiguous().T, wide.U.bfloat16().requires_grad_() * 1
    wide.alpha = wide.alpha.half()[torch.arange(4)].expand(2, 4)[0]
    loaded = Factors.load(wide.save("f.safetensors"))
    assert not wide.V.is_contiguous()
    assert torch.equal(loaded.V, wide.V.float())
    assert torch.equal(loaded.U, wide.U.detach().float())
    assert torch.equal(loaded.alpha, wide.alpha.float())


def test_tensors_that_share_memory_are_stored_each_for_itself(workplace):
    V = make(4, 4).V
    loaded = Factors.load(Factors(V, V, V[0].abs(), V.flatten()[:12].reshape(4, 3), 1.0).save("f.safetensors"))
    assert torch.equal(loaded.V, V)
    assert torch.equal(loaded.U, V)
    assert torch.equal(loaded.alpha, V[0].abs())
    assert torch.equal(loaded.objective, V.flatten()[:12].reshape(4, 3))


def test_folders_on_the_way_are_made_and_an_old_file_is_replaced(workplace):
    path = Path("a/b/f.safetensors")
    make(seed=1).save(path)
    make(seed=2).save(path)
    assert torch.equal(Factors.load(path).V, make(seed=2).V)
    assert leftovers(path.parent) == ["f.safetensors"]


@pytest.mark.parametrize("method", [*built_in(), "of-another-package", None])
def test_only_linear_and_quadratic_factors_have_no_sign(method):
    assert make(method=method).signless == (method in ("linear", "linear-projected", "linear-randomized", "quadratic"))


@pytest.mark.parametrize("method", ["linear", "exponential", "of-another-package"])
def test_factors_that_say_whether_they_have_a_sign_are_believed(method, workplace):
    for said in (True, False):
        path = make(method=method, signed=said).save("f.safetensors")
        assert Factors.load(path).signless == (not said)
    with pytest.raises(DctError, match="no signed that is true or false"):
        make(method=method, signed="no").save("f.safetensors")


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
        ({"format_version": "3"}, {}, "format version 3 and this dct reads 1 and 2"),
        ({"format_version": "2"}, {}, "digest"),
        ({"digest": "0" * 64}, {}, "digest"),
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
        ({}, {"alpha": torch.full((3,), math.nan)}, "alpha holds NaN"),
        ({}, {"alpha": torch.tensor([1.0, -1.0, 1.0])}, "negative strengths"),
        ({}, {"V": 2 * torch.eye(3, 4)}, "row 0 of its V is no unit vector .its norm is 2"),
        ({}, {"V": torch.eye(3, 4).double()}, "V is stored as F64"),
        ({}, {"objective": torch.ones(2, 2)}, "objective"),
        ({}, {"objective": torch.full((2, 3), math.inf)}, "objective"),
        ({"config": '{"scale": 1, "source": "two"}'}, {}, "no source that is a whole number"),
        ({"config": '{"scale": 1, "source": 3, "target": 3}'}, {}, "source layer 3 does not lie below"),
        ({"config": '{"scale": 1, "prompts": ["a", 1]}'}, {}, r"no prompts\[1\] that is text"),
        ({"config": '{"scale": 1, "system": {}}'}, {}, "no system that is text"),
        ({"config": '{"scale": 1e400}'}, {}, "no scale"),
        ({"config": '{"scale": 1' + "0" * 400 + "}"}, {}, "no scale that is a number"),
        ({"config": "[" * 100_000}, {}, "nested too deeply"),
        ({"config": '{"scale": 1, "model": "\\ud800"}'}, {}, "config cannot be read"),
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


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"V": 3 * torch.eye(3, 4)}, "row 0 of its V is no unit vector"),
        ({"alpha": torch.tensor([0.0, 1.0, -1.0])}, "negative strengths"),
        ({"alpha": torch.ones(4)}, "do not belong together"),
        ({"U": torch.full((3, 5), torch.nan)}, "U holds NaN"),
        ({"V": torch.zeros(3, 4, dtype=torch.complex64)}, "no tensor of real numbers"),
        ({"V": torch.zeros(3, 4, device="meta")}, "no tensor of real numbers"),
        ({"scale": 0.0}, "no scale"),
        ({"scale": 1e30}, "no scale that is a number from 1e-18 to 1e.18"),
        ({"info": {"source": "3"}}, "no source that is a whole number"),
        ({"info": {"x": Path("x")}}, "PosixPath is not JSON serializable"),
        ({"info": {"x": "\udcff"}}, "no JSON"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(workplace, change, says):
    make().save("f.safetensors")
    old = Path("f.safetensors").read_bytes()
    wrong = make(seed=1)
    for name, value in change.items():
        setattr(wrong, name, value)
    with pytest.raises(DctError, match=says):
        wrong.save("f.safetensors")
    assert Path("f.safetensors").read_bytes() == old
    assert leftovers(workplace) == ["f.safetensors"]


def test_outputs_that_vanish_are_no_damage(workplace):
    dead = make()
    dead.U[1], dead.alpha[1] = 0, 0
    assert torch.equal(Factors.load(dead.save("f.safetensors")).U, dead.U)


def test_numbers_that_json_does_not_have_become_null(workplace):
    made = make(curve=[[1.0, math.nan], (math.inf, 2)])
    assert Factors.load(made.save("f.safetensors")).info["curve"] == [[1.0, None], [None, 2]]


def test_a_digest_tells_factors_apart_and_survives_a_file(workplace):
    one, other = make(note=(1, 2)), make(note=(1, 3))
    assert one.digest != other.digest
    assert Factors.load(one.save("f.safetensors")).digest == one.digest
    with safe_open("f.safetensors", framework="pt") as file:
        assert file.metadata()["digest"] == one.digest
    one.V = -one.V
    assert Factors.load("f.safetensors").digest != one.digest


def test_the_digest_is_the_one_that_the_documentation_describes(workplace):
    made = make(3, 4, 5, 2)
    made.save("f.safetensors")
    with safe_open("f.safetensors", framework="np") as file:
        metadata, names = file.metadata(), sorted(file.keys())
        arrays = {name: file.get_tensor(name) for name in names}
    shapes = [[name, "F32", list(arrays[name].shape)] for name in names]
    begin = json.dumps(["dct-factors", "2", metadata["config"], shapes], separators=(",", ":"), ensure_ascii=False)
    data = b"".join(arrays[name].astype("<f4").tobytes() for name in names)
    assert metadata["digest"] == hashlib.sha256(begin.encode() + data).hexdigest()


def test_a_file_of_version_1_says_that_nothing_protects_it(workplace):
    write("f.safetensors")
    old = Factors.load("f.safetensors")
    assert old.unprotected
    assert not Factors.load(old.save("f.safetensors")).unprotected


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


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.EACCES, "Permission denied; ask for the right to write there"),
        (errno.EROFS, "Read-only file system; ask for the right"),
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.ENAMETOOLONG, "File name too long; take a shorter name"),
        (errno.EIO, "Input/output error; choose another `out`"),
    ],
)
def test_each_reason_has_its_cure(workplace, monkeypatch, code, says):
    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.open", refused)
    with pytest.raises(DctError, match=says):
        write_whole("f.bin", b"")


def test_a_name_that_is_too_long_says_so(workplace):
    with pytest.raises(DctError, match="take a shorter name"):
        write_whole("x" * 300, b"")
    assert write_whole("ü" * 127, b"a").read_bytes() == b"a"


def test_a_device_is_not_replaced_by_a_file(workplace):
    os.mkfifo("pipe")
    with pytest.raises(DctError, match="a device or a pipe"):
        write_whole("pipe", b"")
    assert Path("pipe").is_fifo()


@pytest.fixture(params=["unnamed", "named"])
def way(request, monkeypatch) -> str:
    """Both ways of writing: without a name until it is whole, and (as on other systems) under one of its own."""
    if request.param == "named":
        monkeypatch.delattr("os.O_TMPFILE", raising=False)
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no files without a name")
    return request.param


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(workplace, way, umask):
    before = os.umask(umask)
    try:
        write_whole("f.bin", b"x")
        write_whole("f.bin", b"y")
    finally:
        os.umask(before)
    assert Path("f.bin").stat().st_mode & 0o777 == 0o666 & ~umask
    assert Path("f.bin").read_bytes() == b"y"
    assert leftovers(workplace) == ["f.bin"]


STOPPED = """
import os, signal, sys
if sys.argv[1] == "named" and hasattr(os, "O_TMPFILE"):
    del os.O_TMPFILE
from dct.writing import write_whole
os.fsync = lambda _: (print("here", flush=True), signal.pause())
write_whole("f.bin", b"new")
"""


def test_what_a_killed_writer_left_goes_with_the_next_one_and_a_living_writer_keeps_it(workplace, way):
    Path("f.bin").write_bytes(b"old")
    Path(".mine.part").write_bytes(b"")  # not of this package
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.Popen([sys.executable, "-c", STOPPED, way], env=env, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "here\n"
    write_whole("g.bin", b"g")
    beside = [name for name in leftovers(workplace) if name not in ("f.bin", "g.bin", ".mine.part")]
    assert len(beside) == (way == "named"), "a living writer's file was taken away"
    child.kill()
    child.wait()
    write_whole("g.bin", b"g")
    assert leftovers(workplace) == [".mine.part", "f.bin", "g.bin"]
    assert Path("f.bin").read_bytes() == b"old"
