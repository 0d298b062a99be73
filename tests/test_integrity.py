"""Damaged files: whatever is done to the bytes of factors, states and rankings, they load as they were or not at all.

And killed processes: whatever is stopped, wherever, leaves a folder that the same command goes on from.
"""

import hashlib
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import MILD, run

import dct
from dct import DctError, Factors
from dct.calibration import random_directions
from dct.candidates import candidates
from dct.cli.interrupted import Interrupted
from dct.job import State
from dct.lock import held
from dct.runs import Run

ODD = [
    None,
    True,
    0,
    -1,
    3,
    10**400,
    1.5,
    -0.0,
    1e308,
    "",
    "x",
    "\0",
    "\ud800",
    "all",
    [],
    ["a", 1],
    [[]],
    {},
    {"a": 1},
]
ODD += [float("nan"), float("inf")]
"""What may stand where something else should."""


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def with_digest(data: bytes) -> bytes:
    """The same file with the digest that its contents should have, where it can still be read."""
    try:
        header, body = parts(data)
        metadata = header["__metadata__"]
        names = sorted(name for name in header if name != "__metadata__")
        shapes = [[name, "F32", header[name]["shape"]] for name in names]
        head = [metadata["format"], metadata["format_version"], metadata["config"], shapes]
        found = hashlib.sha256(json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode())
        for name in names:
            found.update(body[slice(*header[name]["data_offsets"])])
        metadata["digest"] = found.hexdigest()
        return joined(header, body)
    except (ValueError, KeyError, TypeError, struct.error):
        return data


# --- kinds of damage --------------------------------------------------------------------------------------------------


def flipped_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flipped_numbers(data: bytes, rng: random.Random) -> bytes:
    header, body = parts(data)
    return joined(header, flipped_bits(body, rng)) if body else data


def cut_or_grown(data: bytes, rng: random.Random) -> bytes:
    where = rng.randrange(len(data))
    middle = data[: rng.randrange(len(data) + 1)]
    return rng.choice([data[:where], data + b"\0" * rng.randrange(1, 9), data[where:], middle + data[where:], b""])


def zeroed(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    length = min(len(data) - start, rng.choice([1, 4, 64, 512]))
    return data[:start] + b"\0" * length + data[start + length :]


def swapped_names(data: bytes, rng: random.Random) -> bytes:
    header, body = parts(data)
    one, other = rng.sample([name for name in header if name != "__metadata__"], 2)
    header[one], header[other] = header[other], header[one]
    return joined(header, body)


def moved_rows(data: bytes, rng: random.Random) -> bytes:
    """Rows permuted, one negated, scaled or made equal to another: values that a check of ranges may well miss."""
    header, body = parts(data)
    name = rng.choice([n for n in header if n != "__metadata__" and header[n]["shape"][0]])
    start, stop = header[name]["data_offsets"]
    rows = torch.frombuffer(bytearray(body[start:stop]), dtype=torch.float32).reshape(header[name]["shape"]).clone()
    how = rng.randrange(5)
    if how == 0:
        rows = rows.flip(0)
    elif how == 1:
        rows[rng.randrange(len(rows))] *= rng.choice([-1, 0, 2, 1e30, float("nan")])
    elif how == 2:
        rows[0] = rows[-1]
    elif how == 3:
        rows = rows.roll(1, -1)
    else:
        rows += rng.choice([1e-7, 1.0])
    return joined(header, body[:start] + rows.numpy().tobytes() + body[stop:])


def other_dtype(data: bytes, rng: random.Random) -> bytes:
    header, body = parts(data)
    name = rng.choice([n for n in header if n != "__metadata__"])
    kind = rng.choice(["I32", "F16", "BF16", "F64", "U8", "F8_E4M3", "BOOL", "C64", "x", 1])
    header[name]["dtype"] = kind
    if kind in ("F16", "BF16") and rng.random() < 0.5:
        header[name]["shape"] = [*header[name]["shape"][:-1], 2 * header[name]["shape"][-1]]
    return joined(header, body)


def other_shape(data: bytes, rng: random.Random) -> bytes:
    header, body = parts(data)
    name = rng.choice([n for n in header if n != "__metadata__"])
    shape = header[name]["shape"]
    header[name]["shape"] = rng.choice(
        [shape[::-1], [1, *shape], [*shape, 1], [0, 2**62], [], [-1], [int(torch.tensor(shape).prod())]]
    )
    return joined(header, body)


def edited_config(data: bytes, rng: random.Random) -> bytes:
    header, body = parts(data)
    config = json.loads(header["__metadata__"]["config"])
    for _ in range(rng.choice([1, 1, 2])):
        place = config
        inner = [value for value in config.values() if isinstance(value, dict) and value]
        if inner and rng.random() < 0.4:
            place = rng.choice(inner)
        key = rng.choice(list(place))
        if rng.random() < 0.3:
            del place[key]
        elif isinstance(place[key], int | float) and rng.random() < 0.5:
            place[key] = place[key] * rng.choice([-1, 0, 1e-40, 1e40]) + rng.choice([0, 1, 0.5])
        else:
            place[key] = rng.choice(ODD)
        if not config:
            break
    header["__metadata__"]["config"] = json.dumps(config)
    return joined(header, body)


def edited_header(data: bytes, rng: random.Random) -> bytes:
    header, body = parts(data)
    metadata = header["__metadata__"]
    key = rng.choice(list(metadata))
    how = rng.randrange(4)
    if how == 0:
        del metadata[key]
    elif how == 1:
        metadata[key] = rng.choice(["", "1", "2", "3", "{}", "[]", "null", "[" * 5000, "NaN", metadata["format"]])
    elif how == 2:
        metadata[key] = flipped_bits(metadata[key].encode(), rng).decode(errors="replace")
    else:
        header.pop(rng.choice(list(header)))
    return joined(header, body)


def another_tensor(data: bytes, rng: random.Random) -> bytes:
    header, body = parts(data)
    header["extra"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
    return joined(header, body + b"\0\0\0\0")


KINDS: list[Callable[[bytes, random.Random], bytes]] = [
    flipped_bits,
    flipped_numbers,
    cut_or_grown,
    zeroed,
    swapped_names,
    moved_rows,
    other_dtype,
    other_shape,
    edited_config,
    edited_config,
    edited_header,
    another_tensor,
]


def damages(data: bytes, count: int, recomputed: bool, seed: int):
    """`count` files that differ from `data`, by every kind in turn."""
    rng = random.Random(f"{seed}/{recomputed}")
    made = 0
    while made < count:
        kind = KINDS[made % len(KINDS)]
        changed = kind(data, rng)
        changed = with_digest(changed) if recomputed else changed
        if changed != data:
            made += 1
            yield kind.__name__, changed


COUNTS = pytest.mark.parametrize(
    ("factors", "states"), [(200, 60), pytest.param(1000, 300, marks=pytest.mark.slow)], ids=["quick", "all"]
)
DIGESTS = pytest.mark.parametrize("recomputed", [False, True], ids=["old digest", "new digest"])


def made_factors() -> Factors:
    info = {
        "model": "m",
        "source": 1,
        "target": 3,
        "blocks": 5,
        "method": "quadratic",
        "prompts": ["a", "b"],
        "seed": 0,
    }
    info |= {"system": None, "positions": 3, "layers": "model.layers", "fingerprint": "f", "column": None}
    info |= {"prompts_origin": "demo:harmful", "residual_norm": 1.5, "loading": {"dtype": "auto"}}
    info |= {"calibration": {"ratio": 0.5, "limited": False, "curve": [[1.0, 0.5]]}}
    V, U = random_directions(4, 6, 1), random_directions(4, 6, 2)
    return Factors(V, U, torch.tensor([3.0, 2.0, 1.0, 0.5]), torch.eye(3)[:2], 1.25, info)


def made_state() -> tuple[State, dict[str, Any]]:
    options = {"method": "exponential", "factors": 4, "iterations": 5, "orthogonalize": "soft", "start": "projected"}
    options |= {"d_proj": 32, "beta": 1.0, "tolerance": 0.0, "seed": 0}
    loading = {"dtype": "auto", "device": "auto", "layers": "", "revision": None, "trust_remote_code": False}
    config = {**made_factors().info, "lambda": None, "compile": "off", "batch": None, "scale": 1.25, "beside": None}
    config |= {"loading": loading | {"memory": None}, "options": options}
    state = State(random_directions(4, 6, 1), random_directions(4, 6, 2), [[1.0, 2.0, 0.5], [2.0, 2.0, 0.25]])
    return state, config


def one_line(error: DctError) -> None:
    assert str(error).strip()
    assert "\n" not in str(error)


@DIGESTS
@COUNTS
def test_damaged_factors_load_as_they_were_or_not_at_all(workplace, factors, states, recomputed):
    saved = made_factors()
    data = saved.save("f.safetensors").read_bytes()
    assert with_digest(data) != b""
    for name, changed in damages(data, factors, recomputed, 1):
        Path("x.safetensors").write_bytes(changed)
        try:
            loaded = Factors.load("x.safetensors")
        except DctError as error:
            one_line(error)
            continue
        same = loaded.digest == saved.digest
        assert same or recomputed, name
        candidates(loaded)
        assert Factors.load(loaded.save("again.safetensors")).digest == loaded.digest


@DIGESTS
@COUNTS
def test_damaged_states_are_resumed_as_they_were_or_not_at_all(workplace, factors, states, recomputed):
    run = Run(Path("run"), Path("run/factors.safetensors"))
    saved, config = made_state()
    run.save_state(saved, config)
    data = run.state.read_bytes()
    for name, changed in damages(data, states, recomputed, 2):
        run.state.write_bytes(changed)
        try:
            state, found = run.load_state()
            interrupted = Interrupted.read(run)
        except DctError as error:
            one_line(error)
            continue
        assert interrupted.recipe.fit.factors == found["options"]["factors"]
        if not recomputed:
            assert torch.equal(state.V, saved.V), name
            assert torch.equal(state.U, saved.U), name
            assert (state.objective, found) == (saved.objective, config), name


def test_the_digest_of_these_tests_is_that_of_the_files(workplace):
    data = made_factors().save("f.safetensors").read_bytes()
    header, body = parts(data)
    digest = header["__metadata__"].pop("digest")
    assert parts(with_digest(joined(header, body)))[0]["__metadata__"]["digest"] == digest


def test_damaged_rankings_are_read_as_one_of_these_factors_or_not_at_all(workplace):
    run = Run(Path("run"), Path("run/factors.safetensors"))
    run.save_factors(made_factors())
    effect = {"score": 1.0, "flipped": 0.25, "kl": 0.1}
    vectors = [{"vector": v, "effect": effect, "alpha": 1.0, "scale": 1.25} for v in ("1", "-1", "0", "3")]
    content = {"vectors": vectors, "scale": 1.25, "scales": [1.0], "by": "score", "unsteered": effect, "prompts": 3}
    run.save_ranking(content, made_factors())
    data = run.ranking.read_bytes()
    rng = random.Random(3)
    for number in range(150):
        changed = rng.choice([flipped_bits, cut_or_grown, zeroed])(data, rng)
        if number % 2:
            edited = json.loads(data)
            place = rng.choice([edited, *edited["vectors"], edited["vectors"][0]["effect"]])
            place[rng.choice(list(place))] = rng.choice(ODD)
            changed = json.dumps(edited).encode()
        run.ranking.write_bytes(changed)
        try:
            loaded = run.load_ranking()
        except DctError as error:
            one_line(error)
            continue
        for vector in loaded["vectors"]:
            assert -4 < int(vector["vector"]) < 4
            assert 1e-18 <= vector.get("scale", 1.25) <= 1e18


# --- as a user meets them ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory, model_folder) -> Path:
    """A run and an interrupted one of a tiny model."""
    folder = tmp_path_factory.mktemp("small")
    words = ["fit", "--model", model_folder, "--factors", 3, "--iterations", 3, "--scale", 0.85, "--n", 1]
    assert run(*words, "--out", folder / "run").exit_code == 0
    keep = Run.save_state

    def interrupted(self: Run, *state: object) -> None:
        keep(self, *state)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_state", interrupted)
        assert run(*words, "--out", folder / "cut").exit_code == 130
    return folder


@pytest.mark.parametrize("count", [12, pytest.param(150, marks=pytest.mark.slow)])
def test_commands_on_damaged_files_say_one_line(small, workplace, count):
    """Settings that pass for those of a fit, with a digest that fits them, and with one that does not."""
    for name, words in (
        ("run/factors.safetensors", ["steer", "run", "--vector", 1, "--prompt", "a", "--max-new-tokens", 1, *MILD]),
        ("cut/state.safetensors", ["fit", "--resume", "--out", "cut"]),
    ):
        data = (small / name).read_bytes()
        rng = random.Random(f"{name}/{count}")
        Path("mild.txt").write_text("Write a poem\n")
        for number in range(count):
            folder = Path(name).parent
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(small / folder, folder)
            changed = edited_config(data, rng)
            Path(name).write_bytes(with_digest(changed) if number % 4 else changed)
            result = run(*words, "--quiet")
            if result.exit_code:
                [line] = result.stderr.splitlines()
                assert line.startswith("error: "), line
                assert "unexpected" not in line, (line, changed[:3000])


def test_a_file_of_version_1_works_and_says_once_that_nothing_protects_it(small, workplace):
    shutil.copytree(small / "run", "run")
    header, body = parts(Path("run/factors.safetensors").read_bytes())
    header["__metadata__"]["format_version"] = "1"
    Path("run/factors.safetensors").write_bytes(joined(header, body))
    assert run("steer", "run", "--vector", 1, "--prompt", "a").exit_code == 1, "its digest is of another version"
    del header["__metadata__"]["digest"]
    Path("run/factors.safetensors").write_bytes(joined(header, body))
    Path("mild.txt").write_text("Write a poem\n")
    result = run("steer", "run", "--vector", 1, "--prompt", "a", "--max-new-tokens", 1, *MILD)
    assert result.exit_code == 0
    assert result.output.count("format version 1: nothing protects its numbers") == 1
    shutil.copytree(small / "cut", "cut")
    header, body = parts(Path("cut/state.safetensors").read_bytes())
    header["__metadata__"]["format_version"] = "1"
    del header["__metadata__"]["digest"]
    Path("cut/state.safetensors").write_bytes(joined(header, body))
    result = run("fit", "--resume", "--out", "cut")
    assert result.exit_code == 0
    assert result.output.count("format version 1: nothing protects its numbers") == 1
    assert torch.equal(
        dct.Factors.load("cut/factors.safetensors").V, dct.Factors.load(small / "run/factors.safetensors").V
    )


@pytest.mark.parametrize(
    ("scale", "code", "says"),
    [
        ("1e-30", 2, "--scale must be positive, from 1e-09"),
        ("1e30", 1, "--scale 1e.30 is too large"),
        ("1e-9", 1, "rounding leaves nothing of the vector"),
        ("1e12", 1, "rounding leaves nothing of what it is added to"),
        ("0", 2, "must be positive"),
        ("nan", 2, "must be positive"),
    ],
)
def test_a_scale_that_the_map_cannot_resolve_is_refused_before_the_fit(workplace, model_folder, scale, code, says):
    words = ["fit", "--model", model_folder, "--factors", 2, "--iterations", 1, "--n", 1, "--out", "run"]
    result = run(*words, "--scale", scale, "--quiet")
    assert result.exit_code == code
    [line] = result.stderr.splitlines()
    assert re.search(says, line), line
    assert not Path("run").exists()


def test_two_fits_into_one_folder_and_two_resumes_of_one_fit_are_refused(small, workplace, model_folder):
    shutil.copytree(small / "cut", "cut")
    fitting = ["fit", "--model", model_folder, "--factors", 2, "--iterations", 1, "--n", 1, "--scale", 0.85]
    before = {path.name: path.read_bytes() for path in Path("cut").iterdir()}
    with held(Path("cut")):
        for words in (["fit", "--resume", "--out", "cut"], [*fitting, "--out", "cut", "--force"]):
            result = run(*words, "--quiet")
            assert result.exit_code == 1
            [line] = result.stderr.splitlines()
            assert "another dct is writing into cut: wait until it has finished" in line
    assert {path.name: path.read_bytes() for path in Path("cut").iterdir()} == before
    assert run("fit", "--resume", "--out", "cut", "--quiet").exit_code == 0
    assert {path.name for path in Path("cut").iterdir()} == {"config.toml", "factors.safetensors"}


STOPPED = """
import os, signal, sys
from dct.runs import Run
keep = Run.save_state
def stopped(self, *state):
    keep(self, *state)
    os.kill(os.getpid(), signal.SIGTERM)
Run.save_state = stopped
from dct.cli import main
main()
"""


def test_a_batch_system_ends_a_fit_as_ctrl_c_does(workplace, model_folder):
    words = ["fit", "--model", model_folder, "--factors", 2, "--iterations", 3, "--n", 1, "--scale", 0.85]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    program = [sys.executable, "-c", STOPPED, *map(str, words), "--out", "cut", "--quiet"]
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 130
    [line] = done.stderr.splitlines()
    assert "every finished iteration is kept: go on with `dct fit --resume --out cut`" in line
    assert [path.name for path in Path("cut").iterdir()] == ["state.safetensors"]
