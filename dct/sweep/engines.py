"""Who does the cells of a sweep: this process, one after the other, or the workers of a Ray cluster side by side.

Knows nothing of what a cell is. Doing one may fail by itself (`DctError`), because another process has it
(`TakenError`), or because nothing more can be written, which ends the sweep.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dct.errors import DctError, InterruptedWorkError, UnwritableError
from dct.lock import TakenError

PAUSE = 1.0
"""Seconds until a cell that another process had is looked at again."""

DONE, TAKEN, FAILED, FULL = "done", "taken", "failed", "full"

C = TypeVar("C")

Do = Callable[[C], Any]


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        state: done, taken by another process, failed, or full: nothing more can be written.
        what: what came of it, or why nothing did.
    """

    state: str
    what: Any = None


def attempted(do: Do[C], cell: C) -> Outcome:
    """Does a cell; what goes wrong is told in words, which go from one process to another."""
    try:
        return Outcome(DONE, do(cell))
    except InterruptedWorkError:
        raise
    except TakenError as error:
        return Outcome(TAKEN, str(error))
    except UnwritableError as error:
        return Outcome(FULL, str(error))
    except DctError as error:
        return Outcome(FAILED, str(error))


def serial(cells: Sequence[C], do: Do[C]) -> Iterator[tuple[C, Outcome]]:
    """One after the other; those that another process has are looked at again behind all others.

    Raises:
        UnwritableError: nothing more can be written.
    """
    while cells:
        taken = []
        for cell in cells:
            outcome = attempted(do, cell)
            if outcome.state == TAKEN:
                taken.append(cell)
            else:
                yield cell, _written(outcome)
        if len(taken) == len(cells):
            time.sleep(PAUSE)
        cells = taken


def _written(outcome: Outcome) -> Outcome:
    if outcome.state == FULL:
        raise UnwritableError(outcome.what)
    return outcome


# --- ray --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """What a task of Ray is given.

    Attributes:
        address: of a running cluster; None for one on this machine that ends with this process.
        cpus, gpus: for each task; None for one GPU where there are any.
        retries: how often a task is begun again whose worker died.
    """

    address: str | None = None
    cpus: int = 1
    gpus: float | None = None
    retries: int = 3


def on_ray(cells: Sequence[C], do: Do[C], cluster: Cluster) -> Iterator[tuple[C, Outcome]]:
    """All side by side, as far as the cluster has room.

    Args:
        do: a function of a module, which the workers import.

    Raises:
        DctError: Ray is not installed or cannot be reached, or no machine of it is large enough.
        UnwritableError: nothing more can be written.
    """
    ray = _ray()
    if not cells:
        return
    _connected(ray, cluster.address)
    try:
        task = _task(ray, cluster)
        waiting = {task.remote(do, cell): cell for cell in cells}
        while waiting:
            [first], _ = ray.wait([*waiting], num_returns=1)
            cell = waiting.pop(first)
            outcome = _returned(ray, first, cluster.retries)
            if outcome.state == TAKEN:
                waiting[task.remote(do, cell, PAUSE)] = cell
            else:
                yield cell, _written(outcome)
    finally:
        ray.shutdown()


def _ray() -> Any:
    """The package, saying only what goes wrong."""
    import logging
    import os

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise DctError(
            "the engine ray needs Ray: pip install 'deep-causal-transcoders[ray]', or leave `engine` out"
        ) from error
    logging.getLogger("ray").setLevel(logging.ERROR)  # that a worker died is worth a line
    return ray


def _connected(ray: Any, address: str | None) -> None:
    """Joins a cluster, or starts one on this machine."""
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        ray.init(address=address, **quiet, **({} if address else {"include_dashboard": False}))
    except Exception as error:  # of any kind: it speaks to processes and machines
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if address is None:
            raise DctError(f"Ray cannot be started here: {first}") from error
        raise DctError(
            f"the Ray cluster at {address} cannot be reached ({first}): does it run, and does it ask for a token "
            "(RAY_AUTH_MODE=token)?"
        ) from error


def _task(ray: Any, cluster: Cluster) -> Any:
    """A function of (do, cell) that runs on a worker with its CPUs and GPUs."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = {what: max((machine.get(what, 0) for machine in machines), default=0) for what in ("CPU", "GPU")}
    gpus = cluster.gpus if cluster.gpus is not None else min(1.0, most["GPU"])
    for what, asked, name in (("CPU", cluster.cpus, "cpus"), ("GPU", gpus, "gpus")):
        if asked > most[what]:
            raise DctError(f"no machine of this Ray has {asked:g} {what}s: lower `{name}` to {most[what]:g} at most")
    options = {"num_cpus": cluster.cpus, "num_gpus": gpus, "max_retries": cluster.retries}
    return ray.remote(**options)(_on_worker)


def _on_worker(do: Do[C], cell: C, pause: float = 0.0) -> Outcome:
    time.sleep(pause)
    return attempted(do, cell)


def _returned(ray: Any, task: Any, retries: int) -> Outcome:
    """What a task came to."""
    try:
        outcome: Outcome = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        return Outcome(FAILED, next(iter(str(error.cause).strip().splitlines()), type(error.cause).__name__))
    except ray.exceptions.RayError as error:
        return Outcome(FAILED, f"its worker died {retries + 1} times ({type(error).__name__}): more memory for each?")
    return outcome
