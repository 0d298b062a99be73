"""Batches, and their parts side by side: nothing is lost, whatever fails on the way."""

import threading
from itertools import chain

import pytest
import torch

import dct
from dct.batching import in_batches, side_by_side
from dct.derivatives import Derivatives

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    """Torch as on a machine with two cores, whatever this one has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 2, 5, 7])
def test_parts_cover_the_rows_in_order(lanes, rows):
    parts = side_by_side(lambda start, stop: list(range(start, stop)), 10, 10 + rows, lanes)
    assert list(chain(*parts)) == list(range(10, 10 + rows))
    assert len(parts) == min(lanes, rows)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_parts_run_at_the_same_time_on_their_share_of_the_threads(two_threads):
    meeting = threading.Barrier(2, timeout=30)

    def run(start: int, stop: int) -> int:
        meeting.wait()  # broken, if the parts came one after the other
        return torch.get_num_threads()

    assert side_by_side(run, 0, 4, lanes=2) == [1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("failing", [0, 3])
def test_what_fails_in_a_part_is_raised_and_the_threads_are_put_back(two_threads, failing):
    def run(start: int, stop: int) -> int:
        if start <= failing < stop:
            raise ValueError("broken")
        return start

    with pytest.raises(ValueError, match="broken"):
        side_by_side(run, 0, 4, lanes=2)
    assert torch.get_num_threads() == 2


def test_a_part_that_runs_out_of_memory_halves_the_batch():
    done: list[int] = []

    def run(start: int, stop: int) -> list[int]:
        if stop - start > 2:
            raise torch.OutOfMemoryError("out of memory")
        return list(range(start, stop))

    parts, batch = in_batches(run, 11, 8, CPU, "buy more", done.append, lanes=2)
    assert list(chain(*parts)) == list(range(11))
    assert batch == 4
    assert done == [4, 4, 3]


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
        patched.setattr(f, "_run", lambda block, call, stream: stream)
        assert f.lanes == 1
    assert f.lanes == 2
    torch.set_num_threads(1)
    assert f.lanes == 1
