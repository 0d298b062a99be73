"""Batches, and their parts side by side: nothing is lost, whatever fails on the way."""

import threading
import time
from itertools import chain

import pytest
import torch

import dct
from dct.batching import in_batches, side_by_side
from dct.derivatives import Derivatives
from dct.errors import DctError

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    """Torch as on a machine with two cores, whatever this one has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 2, 5, 20])
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 17])
def test_parts_cover_the_rows_in_order(lanes, batch, rows):
    told: list[int] = []
    parts, fitted = in_batches(lambda a, b: list(range(a, b)), rows, batch, CPU, "buy more", told.append, lanes)
    assert list(chain(*parts)) == list(range(rows))
    assert told == [len(part) for part in parts]
    assert fitted == batch
    if rows:
        assert max(told) <= max(1, batch // min(lanes, batch))
        assert max(told) - min(told) <= 1


def test_lanes_have_equal_shares():
    # Nine rows in parts of at most two for two lanes: six parts, not five.
    parts, _ = in_batches(lambda start, stop: stop - start, 9, 4, CPU, "buy more", lanes=2)
    assert sorted(parts) == [1, 1, 1, 2, 2, 2]


def test_lanes_run_at_the_same_time_on_their_share_of_the_threads(two_threads):
    meeting = threading.Barrier(2, timeout=30)

    def run(start: int, stop: int) -> int:
        meeting.wait()  # broken, if the parts came one after the other
        return torch.get_num_threads()

    assert list(side_by_side(run, [0, 2, 4], lanes=2)) == [1, 1]
    assert torch.get_num_threads() == 2


def test_a_lane_does_not_wait_for_another(two_threads):
    others_done = threading.Event()

    def run(start: int, stop: int) -> int:
        if start == 0:
            assert others_done.wait(timeout=30)  # never set, if the first part held the rest up
        elif start == 4:
            others_done.set()
        return start

    assert list(side_by_side(run, [0, 1, 2, 3, 4, 5], lanes=2)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("failing", [0, 3])
def test_what_fails_in_a_part_is_raised_and_the_threads_are_put_back(two_threads, failing):
    begun: list[int] = []

    def run(start: int, stop: int) -> int:
        begun.append(start)
        if start <= failing < stop:
            raise ValueError("broken")
        time.sleep(0.001)  # or a thousand would be done before anybody looks
        return start

    with pytest.raises(ValueError, match="broken"):
        list(side_by_side(run, list(range(0, 2001, 2)), lanes=2))
    assert torch.get_num_threads() == 2
    assert len(begun) < 1000, "what is left is not begun"


def test_an_interrupted_caller_leaves_nothing_running(two_threads):
    begun: list[int] = []

    def interrupted(rows: int) -> None:
        raise KeyboardInterrupt

    def run(start: int, stop: int) -> int:
        begun.append(start)
        time.sleep(0.01)
        return start

    with pytest.raises(KeyboardInterrupt):
        in_batches(run, 1000, 2, CPU, "buy more", interrupted, lanes=2)
    so_far = len(begun)
    assert so_far < 100
    time.sleep(0.1)
    assert len(begun) == so_far
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("lanes", [1, 2])
def test_running_out_of_memory_halves_the_parts_and_loses_nothing(lanes):
    told: list[int] = []
    most = 8 // lanes // 2

    def run(start: int, stop: int) -> list[int]:
        if stop - start > most:
            raise torch.OutOfMemoryError("out of memory")
        return list(range(start, stop))

    parts, batch = in_batches(run, 31, 8, CPU, "buy more", told.append, lanes)
    assert list(chain(*parts)) == list(range(31))
    assert batch == 4
    assert sum(told) == 31
    assert max(told) == most


def test_memory_for_one_row_alone_ends_in_one_lane(two_threads):
    at_work = threading.Semaphore(1)

    def run(start: int, stop: int) -> int:
        if stop - start > 1 or not at_work.acquire(blocking=False):
            raise torch.OutOfMemoryError("out of memory")
        time.sleep(0.05)
        at_work.release()
        return start

    parts, batch = in_batches(run, 5, 8, CPU, "buy more", lanes=2)
    assert parts == [0, 1, 2, 3, 4]
    assert batch == 1


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_row_that_does_not_fit_says_what_to_do(lanes):
    def run(start: int, stop: int) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(DctError, match="single row: buy more"):
        in_batches(run, 5, 8, CPU, "buy more", lanes=lanes)


def test_values_and_derivatives_of_a_slice_do_not_depend_on_the_lanes(make_lm, prompts, two_threads):
    f = dct.Slice(make_lm("llama"), prompts, 1, 4)
    assert f.lanes == 2
    assert f.batch % 2 == 0
    generator = torch.Generator().manual_seed(0)
    v, u = (torch.randn(9, f.dim, generator=generator) for _ in range(2))
    beside, alone = Derivatives(f, f.dim, batch=4), Derivatives(f, f.dim, batch=4)
    alone.lanes = 1
    for name, rows in {"value": (v,), "vjp": (u,), "jvp": (v,), "value_and_gradient": (v, u)}.items():
        got, wanted = (getattr(d, name)(*rows) for d in (beside, alone))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_one_lane_where_blocks_are_moved_or_compiled_or_there_is_one_thread(make_lm, prompts, two_threads, monkeypatch):
    lm = make_lm("llama")
    f = dct.Slice(lm, prompts, 1, 4)
    with monkeypatch.context() as patched:
        patched.setattr(lm.model, "_hf_hook", object(), raising=False)
        assert f.lanes == 1
    with monkeypatch.context() as patched:
        patched.setattr(f._rows, "run", lambda block, call, stream: stream)
        assert f.lanes == 1
    assert f.lanes == 2
    torch.set_num_threads(1)
    assert f.lanes == 1
