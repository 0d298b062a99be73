"""What is said before a fit begins, against what it then takes."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import PROMPTS

import dct
from dct.derivatives import Derivatives
from dct.estimate import COST, FIRST_CALLS, bound, completions_seconds, fit_bytes, pass_rows, rows_seconds, seconds
from dct.fitting import work
from dct.generation import usual_length
from dct.job import State
from dct.method import built_in
from dct.settings import FitSettings

KINDS = tuple(COST)
DIM = 24


def curved(x: torch.Tensor) -> torch.Tensor:
    W = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0)) / DIM**0.5
    return torch.tanh(x @ W.T) + 0.3 * (x @ W).square()


@pytest.fixture
def counted(monkeypatch) -> dict[str, int]:
    """Rows that go through each kind of pass, counted where they go."""
    rows = dict.fromkeys(KINDS, 0)
    for kind in KINDS:
        plain = getattr(Derivatives, kind)

        def spy(self, first, *rest, _plain=plain, _kind=kind):
            rows[_kind] += len(first)
            return _plain(self, first, *rest)

        monkeypatch.setattr(Derivatives, kind, spy)
    return rows


@pytest.mark.parametrize("method", [m for m in built_in() if m != "linear-randomized"])
@pytest.mark.parametrize("start", ["projected", "random"])
def test_work_is_what_the_fit_sends_through_the_map(counted, method, start):
    options = {"method": method, "factors": 7, "iterations": 3, "d_proj": 5, "start": start}
    dct.fit(curved, DIM, scale=1.0, **options)
    said = work(FitSettings(**options), DIM)
    assert {k: n for k, n in counted.items() if n} == {k: n for k, n in said.items() if n}


def test_work_of_a_randomized_fit_is_near(counted):
    falling = torch.arange(1, 401) ** -0.5
    dct.fit(lambda x: torch.tanh(x * falling), 400, method="linear-randomized", factors=4, scale=1.0)
    said = work(FitSettings(method="linear-randomized", factors=4), 400)
    assert 0.5 < sum(said.values()) / sum(counted.values()) < 2


@pytest.mark.parametrize("method", ["exponential", "quadratic", "melbo"])
def test_work_of_an_interrupted_fit_is_what_is_left_of_it(counted, method):
    states: list[State] = []
    options = {"method": method, "factors": 6, "d_proj": 4}
    dct.fit(curved, DIM, scale=1.0, iterations=5, checkpoint=states.append, **options)
    counted.update(dict.fromkeys(KINDS, 0))
    dct.fit(curved, DIM, scale=1.0, iterations=5, resume=states[2], **options)
    said = work(FitSettings(**options, iterations=5), DIM, done=3)
    assert {k: n for k, n in counted.items() if n} == {k: n for k, n in said.items() if n}


class Clock:
    """Time that passes only while a map runs, so that no other load on the machine is in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("dct.estimate.time.perf_counter", lambda: self.now)

    def map(self, a_pass: float, a_row: float):
        def slow(x: torch.Tensor) -> torch.Tensor:
            self.now += a_pass + a_row * len(x)
            return torch.tanh(x[:, :50]) + x[:, 10:].square()

        return slow


@pytest.mark.parametrize("method", ["exponential", "quadratic", "linear", "linear-projected"])
@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("unit", [0.001, 1.0, 60.0], ids=["short", "long", "longer"])
def test_seconds_of_a_map_whose_passes_take_a_known_time(monkeypatch, method, batch, unit):
    clock = Clock(monkeypatch)
    slow = clock.map(4 * unit, unit)
    options = {"method": method, "factors": 40, "iterations": 6, "d_proj": 32}
    [expected] = seconds(slow, 60, work(FitSettings(**options), 60, 50), batch=batch)
    before = clock.now
    dct.fit(slow, 60, scale=1.0, batch=batch, **options)
    assert 1 / 1.5 < expected / (clock.now - before) < 1.5


def test_what_only_a_first_call_bears_is_not_multiplied(monkeypatch):
    clock = Clock(monkeypatch)
    plain, calls = clock.map(0.0, 0.001), 0

    def slow_at_first(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        clock.now += 2.0 if calls <= 2 else 0.0
        return plain(x)

    [expected] = seconds(slow_at_first, 60, {"value": 1000}, batch=10)
    assert expected == pytest.approx(1.0)


def test_several_pieces_of_work_are_timed_together_and_told_apart(monkeypatch):
    many, few, none = seconds(Clock(monkeypatch).map(0.0, 0.001), 60, {"value": 300}, {"value": 30}, {}, batch=10)
    assert many == pytest.approx(0.3)
    assert few == pytest.approx(0.03)
    assert none == 0


def test_timing_takes_a_small_share_of_a_long_fit(monkeypatch):
    clock = Clock(monkeypatch)
    rows = 20_000
    [expected] = seconds(clock.map(0.1, 0.02), 60, {"value_and_gradient": rows}, batch=64)
    assert expected == pytest.approx(0.02 * rows + 0.1 * rows / 64, rel=0.01)
    assert clock.now < 0.05 * expected


def test_bytes_grow_with_rows_and_factors():
    assert fit_bytes(10, 100, 4, 1000) - fit_bytes(10, 100, 3, 1000) == 1000
    assert fit_bytes(512, 4096, 0, 0) > 8 * 4 * 512 * 4096


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_memory_of_a_row_is_what_a_pass_keeps_for_each_row(make_lm, architecture):
    """Against the bytes that autograd holds for two batches, told apart by their difference."""
    slice_ = dct.Slice(make_lm(architecture), PROMPTS, 1, 4)

    def held(rows: int) -> int:
        storages = {}

        def keep(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            alive = slice_(torch.randn(rows, slice_.dim, requires_grad=True))
        del alive
        return sum(storages.values())

    each = (held(9) - held(1)) / 8
    assert each <= slice_.row_bytes <= 2 * each


def test_batch_is_what_free_memory_holds(make_lm, monkeypatch):
    slice_ = dct.Slice(make_lm("llama"), PROMPTS, 1, 4)
    widest = slice_.batch
    assert widest == slice_.value_batch > 3
    monkeypatch.setattr("dct.passes.available", lambda *_: int(3.5 * slice_.row_bytes / 0.8))
    assert slice_.batch == 3
    monkeypatch.setattr("dct.passes.available", lambda *_: 0)
    assert slice_.batch == 1
    assert slice_.value_batch == widest


@pytest.mark.parametrize(("width", "tokens"), [(64, 65536), (2048, 10240), (4096, 2560), (8192, 640)])
def test_a_gpu_is_given_no_more_than_keeps_it_busy(make_lm, monkeypatch, width, tokens):
    slice_ = dct.Slice(make_lm("llama"), PROMPTS, 1, 4)
    monkeypatch.setattr(dct.Slice, "device", property(lambda _: torch.device("cuda")))
    monkeypatch.setattr(dct.Slice, "dim", property(lambda _: width))
    assert slice_.value_batch == tokens // slice_.tokens > 1
    assert slice_.lanes == 1


@pytest.mark.parametrize("rows", [1, 7, 200])
def test_seconds_of_rows_and_of_completions_that_take_a_known_time(monkeypatch, rows):
    clock = Clock(monkeypatch)

    def run(size: int) -> None:
        clock.now += 0.01 + 0.02 * size

    def say(size: int, tokens: int) -> None:
        clock.now += (0.01 + 0.02 * size) * tokens

    cpu = torch.device("cpu")
    passes = -(-rows // 16)
    assert rows_seconds(run, rows, 16, cpu) == pytest.approx(0.01 * passes + 0.02 * rows)
    assert completions_seconds(say, rows, 16, 12, cpu) == pytest.approx(12 * (0.01 * passes + 0.02 * rows))
    assert completions_seconds(say, rows, 16, 1, cpu) == pytest.approx(0.01 * passes + 0.02 * rows)
    assert completions_seconds(say, 0, 16, 12, cpu) == rows_seconds(run, 0, 16, cpu) == 0
    assert completions_seconds(say, rows, 16, 64, cpu) == pytest.approx(64 * (0.01 * passes + 0.02 * rows))


@pytest.mark.parametrize(
    ("ends_after", "most", "expected"), [(9, 64, 13), (14, 64, 19), (99, 64, 32), (99, 20, 16), (3, 8, 8), (99, 16, 16)]
)
def test_completions_are_expected_to_be_as_long_as_the_first(make_lm, monkeypatch, ends_after, most, expected):
    lm = make_lm("llama")
    monkeypatch.setattr("dct.generation.complete", lambda *_, max_new_tokens: ["a" * min(ends_after, max_new_tokens)])
    monkeypatch.setattr(lm, "tokenizer", lambda text, **_: {"input_ids": list(text)})
    assert usual_length(lm, [1, 2], most) == expected


def test_more_memory_is_announced_than_is_counted():
    assert bound(0) == FIRST_CALLS
    assert bound(4_000_000_000) == FIRST_CALLS + 5_000_000_000
    assert pass_rows(8, {"value": 3, "vjp": 20}) == 8
    assert pass_rows(8, {"second": 5, "value": 20}) == 10
    assert pass_rows(8, {}) == 0


def fitted(folder, *words: object) -> tuple[dict, str]:
    command = [sys.executable, "-m", "dct", "fit", "--model", folder, "--s", 1, "--t", 4, "--json", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


def test_peak_memory_is_right_within_half(model_folder, workplace):
    """A process of its own, with a pass large enough to be seen above what Python and torch hold."""
    small = ["--factors", 32, "--iterations", 1, "--scale", 1, "--n", 8, "--positions", "all"]
    thin, _ = fitted(model_folder, *small, "--batch", 1, "--out", "thin")
    each = thin["estimate"]["vector_memory"]
    soft = ["--orthogonalize", "soft", "--start", "random"]
    rows = int(700e6 / each)
    wide, notes = fitted(
        model_folder, "--factors", rows, "--iterations", 1, "--scale", 1, "--n", 8, "--positions", "all", *soft,
        "--batch", rows, "--out", "wide",
    )  # fmt: skip
    for result in (thin, wide):
        assert 1 / 1.5 < result["estimate"]["peak_memory"] / result["info"]["peak_memory"] < 1.5
    assert wide["info"]["peak_memory"] > thin["info"]["peak_memory"] + 300e6
    assert wide["estimate"]["seconds"] > 0
    assert "expected: " in notes


def test_a_fit_that_asks_for_more_than_there_is_is_warned_of_with_the_cure(model_folder, workplace):
    _, notes = fitted(
        model_folder, "--factors", 4, "--iterations", 1, "--scale", 1, "--n", 2, "--batch", 4, "--memory", "1MB"
    )
    assert "more memory and 0 MB are free: try a smaller --batch" in notes.replace("\n", " ")


FITS = [
    ["--method", "exponential", "--factors", 24, "--positions", "all"],
    ["--method", "exponential", "--factors", 4, "--batch", 1, "--orthogonalize", "qr"],
    ["--method", "quadratic", "--factors", 16],
    ["--method", "quadratic", "--factors", 24, "--batch", 16, "--positions", "all"],
    ["--method", "linear", "--factors", 32],
    ["--method", "linear-projected", "--factors", 8, "--batch", 64],
    ["--method", "linear-randomized", "--factors", 8],
    ["--method", "melbo", "--factors", 3, "--batch", 64],
]


@pytest.mark.parametrize("words", FITS, ids=lambda words: " ".join(map(str, words)))
def test_no_fit_takes_more_memory_than_was_announced(model_folder, workplace, words):
    """Small fits, which are mostly what libraries bring in, each in a process of its own, with its calibration."""
    limits = [] if "melbo" in words else ["--lambda", 0.1]
    told, _ = fitted(model_folder, *words, "--iterations", 2, "--n", 4, *limits, "--out", "run")
    assert told["info"]["peak_memory"] <= told["estimate"]["peak_memory"] <= 1.5 * told["info"]["peak_memory"]
