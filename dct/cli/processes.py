"""Several processes for one command: started, watched and ended together.

Each is this program once more with the same command line; how they share the work is `dct.team`'s business. The first
one has the terminal. This process only watches: a process that dies ends the job, and is named.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dct.cli.streams import fail
from dct.errors import DctError
from dct.settings import WorkSettings
from dct.team import follows, hosted, joined, several

if TYPE_CHECKING:
    import subprocess

LIFELINE = "DCT_TEAM_LIFELINE"
"""Descriptor of a pipe whose other end this process holds: it closes with it, and the others end."""

LOST = 75
"""Exit code of a process that has lost another one, which the watching process is to speak of."""

GRACE = 6.0
"""Seconds that the other processes have to end by themselves once one has."""

POLL = 0.1

_watched_over = False


@contextmanager
def working(asked: WorkSettings | None, as_json: bool) -> Iterator[bool]:
    """Lets a command be done by as many processes as were asked for, while the context lasts; says whether this one has
    to do anything.

    Args:
        asked: how many; None for a command that is done by one.
        as_json: an error also goes to stdout.

    Raises:
        DctError: the processes do not find each other.
    """
    if several():
        hold_on()
        if asked is None:
            yield not follows()
            return
        with joined():
            yield True
        return
    if asked is not None and asked.processes != 1:
        count = max(1, len(gpus())) if asked.processes == "auto" else asked.processes
        if count > 1:
            run_processes(count, sys.argv[1:], as_json)
    yield True


def watched() -> bool:
    """Whether this process is one that `run_processes` started."""
    return _watched_over


def run_processes(count: int, words: Sequence[str], as_json: bool) -> NoReturn:
    """Runs a command line in so many processes, and ends as their first one does.

    Args:
        words: the command line, without the program's name.
        as_json: an error also goes to stdout.

    Raises:
        DctError: on Windows, where a process inherits no pipe by its number.
    """
    if os.name == "nt":
        raise DctError("`processes` does not work on Windows: leave it out, or use WSL")
    import tempfile

    with tempfile.TemporaryDirectory(prefix="dct-team-") as folder, hosted() as place:
        reading, writing = os.pipe()
        devices = gpus()
        team = [_started(rank, count, words, Path(folder), reading, place, devices) for rank in range(count)]
        os.close(reading)
        told: list[int] = []

        def pass_on(number: int, _: object) -> None:
            """Lets all know of a signal that this process was sent."""
            told.append(number)
            _send(team, number)

        handlers = {one: signal.signal(one, pass_on) for one in (signal.SIGINT, signal.SIGTERM)}
        codes = _watched(team)
        lost = next((rank for rank, code in enumerate(codes) if code not in (None, 0, LOST)), 0)
        said = _last_line(Path(folder) / str(lost))
        _end(team)
        os.close(writing)
        for one, handler in handlers.items():
            signal.signal(one, handler)
    code = codes[0]
    if code is not None and code >= 0 and code != LOST:  # it has said all that is to be said
        sys.exit(code)
    if told:
        fail("interrupted; what was finished is kept", 130, as_json)
    fail(_lost(lost, count, codes[lost], said), 1, as_json)


def hold_on() -> None:
    """Ends this process once the one that started it has gone."""
    global _watched_over
    descriptor = os.environ.pop(LIFELINE, None)
    if descriptor is None:
        return
    _watched_over = True

    def wait() -> None:
        """Returns from reading when nobody can write any more."""
        with suppress(OSError):
            os.read(int(descriptor), 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    there = range(torch.cuda.device_count())
    return visible.split(",")[: len(there)] if visible else [str(k) for k in there]


def _started(
    rank: int,
    count: int,
    words: Sequence[str],
    folder: Path,
    lifeline: int,
    place: Mapping[str, str],
    devices: Sequence[str],
) -> "subprocess.Popen[bytes]":
    """One of the processes, with its part of the GPUs, or else of the cores. All but the first have no terminal; what
    they say on stderr goes to a file."""
    import subprocess

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    variables = {
        **os.environ,
        **place,
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        LIFELINE: str(lifeline),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count))),
        "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0"),
    }
    if len(devices) >= count:
        part = slice(len(devices) * rank // count, len(devices) * (rank + 1) // count)
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(devices[part])
    if sys.platform == "linux":
        variables.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name may lead nowhere
    command = [sys.executable, "-m", "dct", *words]
    if rank == 0:
        return subprocess.Popen(command, env=variables, pass_fds=(lifeline,), start_new_session=True)
    with (folder / f"{rank}").open("wb") as said:
        nowhere = subprocess.DEVNULL
        return subprocess.Popen(
            command, env=variables, pass_fds=(lifeline,), stdin=nowhere, stdout=nowhere, stderr=said,
            start_new_session=True,
        )  # fmt: skip


def _watched(team: Sequence["subprocess.Popen[bytes]"]) -> list[int | None]:
    """Waits until all have ended, or a while longer once one has failed; exit codes, None of those that run on."""
    until = math.inf
    while True:
        codes = [one.poll() for one in team]  # of all: one that has died may stand behind one that waits for it
        if None not in codes or time.monotonic() >= until:
            return codes
        if any(code not in (None, 0) for code in codes):
            until = min(until, time.monotonic() + GRACE)
        time.sleep(POLL)


def _lost(rank: int, count: int, code: int | None, said: str) -> str:
    """What became of a process."""
    how = "was lost" if code is None else f"ended with code {code}"
    if code is not None and code < 0:
        how = f"was killed ({signal.Signals(-code).name})"
    why = f": {said.removeprefix('error: ')}" if said else ""
    return (
        f"process {rank} of {count} {how}{why}; what was finished is kept: run the command again (`dct fit` with "
        "--resume), with any number of processes"
    )


def _last_line(path: Path) -> str:
    with suppress(OSError):
        lines = path.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""


def _send(team: Sequence["subprocess.Popen[bytes]"], number: int) -> None:
    for one in team:
        with suppress(OSError):
            one.send_signal(number)


def _end(team: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ends those that are still there: asked first, then made to."""
    import subprocess

    _send(team, signal.SIGTERM)
    until = time.monotonic() + 2.0
    for one in team:
        with suppress(subprocess.TimeoutExpired):
            one.wait(max(0.0, until - time.monotonic()))
        if one.poll() is None:
            one.kill()
            one.wait()
