"""Several processes that do one job: every one runs the same program on the same data and takes its share of the rows.

Rows of a pass are independent, be they factors, steering vectors or prompts. So one thing is shared: a list of results,
each part made by one process and handed to all (`Team.gathered`, called by `dct.batching` alone). All else, such as
starts, orthogonalisation and choices, every process does for itself with the same numbers. The first process, the
leader, alone writes and prints.

What goes round is small (two matrices of factors in an iteration, a few texts) beside what it takes to make, so it goes
through the CPU (Gloo), whatever the rows are computed on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dct.errors import DctError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

PATIENCE = 7
"""Days that a process waits for the others: one that has died is known at once, by its closed connection."""


class LostError(DctError):
    """Another process of the job has ended."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this job has ended; what was finished is kept: run the command again (`dct fit` with "
            "`resume`)"
        )


@dataclass(frozen=True)
class Team:
    """The processes of a job, as one of them sees them.

    Attributes:
        rank, size: which process this is, and of how many.
        local_rank, local_size: the same among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """The rows of `total` that fall to this process: nearly equal parts, in the order of the processes."""
        return range(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def most(self, total: int) -> int:
        """The largest share of `total` rows."""
        return -(-total // self.size)

    def gathered(self, make: Callable[[], list[T]], device: torch.device) -> list[T]:
        """What all processes make, in their order; tensors on a device come back on `device`.

        Every process has to call it, and as often as the others. If one of them fails, all raise its error.

        Raises:
            LostError: a process has ended.
        """
        if self.size == 1:
            return make()
        own: list[T] = []
        failed: Exception | None = None
        try:
            own = make()
        except Exception as error:
            failed = error
        parts: list[Any] = [None] * self.size
        _collective("all_gather_object", parts, (_sent(own), _told(failed, self.rank)))
        if failed is not None:
            raise failed
        for _, theirs in parts:
            if theirs is not None:
                raise theirs
        made = [own if rank == self.rank else _got(part, device) for rank, (part, _) in enumerate(parts)]
        return [one for part in made for one in part]

    def agreed(self, make: Callable[[], T]) -> T:
        """What the leader makes by itself, which all get, as they get its error.

        Raises:
            LostError: a process has ended.
        """
        if self.size == 1:
            return make()
        value: Any = None
        failed: Exception | None = None
        if self.leads:
            try:
                with alone():
                    value = make()
            except Exception as error:
                failed = error
        told = [(value, _told(failed, self.rank))]
        _collective("broadcast_object_list", told, src=0)
        if failed is not None:
            raise failed
        value, theirs = told[0]
        if theirs is not None:
            raise theirs
        made: T = value
        return made


ALONE = Team()
"""A process by itself."""

_current = ALONE


def current() -> Team:
    """The team of this process."""
    return _current


def leads() -> bool:
    """Whether this process writes and prints: it is by itself, or the first of its team."""
    return _current.leads


@contextmanager
def alone() -> Iterator[None]:
    """While the context lasts the process does all rows by itself and waits for nobody, as where work is timed."""
    global _current
    team, _current = _current, ALONE if _current.size > 1 else _current
    try:
        yield
    finally:
        _current = team


def several() -> bool:
    """Whether the environment makes this process one of several: as torchrun, accelerate or `--processes` set it."""
    given = os.environ
    size = given.get("WORLD_SIZE", "1")
    return {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(given) and size.isdigit() and int(size) > 1


def follows() -> bool:
    """Whether the environment makes this process one of several, and not their first."""
    return several() and os.environ["RANK"] != "0"


@contextmanager
def hosted() -> Iterator[dict[str, str]]:
    """A place of this machine where the processes of a team meet, while the context lasts: the variables of the
    environment that name it.

    This process is the host, as torchrun's agent is: none of those that meet has to outlive the others.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    here = "127.0.0.1"
    store = TCPStore(here, 0, is_master=True, wait_for_workers=False)
    yield {"MASTER_ADDR": here, "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}


@contextmanager
def joined() -> Iterator[Team]:
    """The team that the environment names, while the context lasts; the process by itself where it names none.

    Of the GPUs that it sees a process takes the one of its local rank as `cuda`.

    Raises:
        DctError: the processes do not find each other.
    """
    global _current
    if not several() or _current.size > 1:
        yield _current
        return
    from datetime import timedelta

    import torch

    # It binds the group of the day to its functions' defaults. Imported later (by torch.func), it would keep
    # ours, with its threads, until the interpreter has ended: they abort the process.
    import torch.distributed.nn
    from torch import distributed

    patience = timedelta(days=PATIENCE)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    team = Team(rank, size, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    if torch.cuda.is_available():
        torch.cuda.set_device(team.local_rank % torch.cuda.device_count())
    try:
        distributed.init_process_group("gloo", timeout=patience)
    except (RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DctError(f"the {size} processes of this job do not find each other ({first})") from error
    _current = team
    try:
        yield team
    finally:
        _current = ALONE
        distributed.destroy_process_group()


def _collective(name: str, *arguments: Any, **options: Any) -> None:
    """Calls one of torch's.

    Raises:
        LostError: a process has ended.
    """
    from torch import distributed

    try:
        getattr(distributed, name)(*arguments, **options)
    except RuntimeError as error:
        raise LostError from error


def _told(error: Exception | None, rank: int) -> Exception | None:
    """An error that can be sent: in words where it cannot, and with its process where nobody foresaw it."""
    import pickle

    if error is None:
        return None
    if not isinstance(error, DctError):
        return RuntimeError(f"in process {rank}: {type(error).__name__}: {error}")
    try:
        pickle.loads(pickle.dumps(error))
    except TypeError:  # its class asks for more than the message
        return DctError(str(error))
    return error


@dataclass(frozen=True)
class _OnDevice:
    """A tensor that was not on a CPU."""

    tensor: torch.Tensor


def _sent(made: Any) -> Any:
    """Results as they go round: tensors on the CPU."""
    import torch

    if isinstance(made, torch.Tensor):
        return made if made.device.type == "cpu" else _OnDevice(made.cpu())
    if isinstance(made, list | tuple):
        return type(made)(_sent(one) for one in made)
    return made


def _got(made: Any, device: torch.device) -> Any:
    """Results as they are used."""
    if isinstance(made, _OnDevice):
        return made.tensor.to(device)
    if isinstance(made, list | tuple):
        return type(made)(_got(one, device) for one in made)
    return made
