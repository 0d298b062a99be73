"""One writer in a folder at a time: a lock that dies with its process.

The folder itself is locked where the system can do that, so that nothing is left in it. Elsewhere (Windows, some
network file systems) a file `.lock` names the process, and one whose process is gone is taken over.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dct.errors import DctError
from dct.team import current
from dct.writing import unwritable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"

GRACE = 10
"""Seconds that a lock file may stay without the name of its process."""


class TakenError(DctError):
    """Another process writes into the folder, or the folder is not new."""


@contextmanager
def held(folder: Path, *, new: bool = False) -> Iterator[None]:
    """Keeps other jobs out of a folder while the context lasts. A folder that was made for it and is still empty at the
    end goes again. Of the processes of one job the leader holds it.

    Args:
        folder: made if it is not there, with the folders on the way.
        new: refuse a folder that is there already.

    Raises:
        TakenError: another process holds it, or it is there and should be new.
        DctError: it cannot be made or written.
    """
    made: list[Path] = []
    releases: list[Callable[[], None]] = []
    try:
        current().agreed(lambda: releases.append(_taken(folder, made, new)))
        try:
            yield
        finally:
            for release in releases:
                release()
    finally:
        for path in reversed(made):
            with suppress(OSError):  # not empty: something was written
                path.rmdir()


def _taken(folder: Path, made: list[Path], new: bool) -> Callable[[], None]:
    """Makes and locks the folder; `made` is told what was made. Returns what releases it."""
    while True:
        _make(folder, made, new)
        release = _lock(folder)
        if release is not None:
            return release
        new = False  # whoever made it in the meantime has removed it again


def _make(folder: Path, made: list[Path], new: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise DctError(f"`out` {folder} is a file: name a folder")
    if new and folder.exists():
        raise TakenError(f"{folder} is there already: choose another `out`")
    for path in [*reversed(folder.parents), folder]:
        try:
            path.mkdir()
            made.append(path)
        except OSError as error:
            if path.is_dir() and not (new and path == folder):
                continue
            if isinstance(error, FileExistsError) and new and path == folder:
                raise TakenError(f"{folder} is there already: choose another `out`") from error
            raise unwritable(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise unwritable(folder, PermissionError(13, os.strerror(13)))


def _lock(folder: Path) -> Callable[[], None] | None:
    """Locks a folder and says how it is released; None where the folder has gone in the meantime."""
    if fcntl is None:
        return _lock_by_file(folder)
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError:  # it may be written but not read
        return _lock_by_file(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise _taken_by_another(folder) from error
    except OSError:  # a file system without locks on folders
        os.close(descriptor)
        return _lock_by_file(folder)
    with suppress(OSError):
        if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            return lambda: os.close(descriptor)
    os.close(descriptor)
    return None


def _taken_by_another(folder: Path) -> TakenError:
    return TakenError(f"another dct is writing into {folder}: wait until it has finished, or choose another `out`")


def _lock_by_file(folder: Path) -> Callable[[], None]:
    import psutil  # type: ignore[import-untyped]

    path = folder / NAME
    mine = json.dumps([os.getpid(), psutil.Process().create_time()])
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            if _alive(path):
                raise _taken_by_another(folder) from None
            path.unlink(missing_ok=True)
            continue
        except OSError as error:
            raise unwritable(path, error) from error
        with os.fdopen(descriptor, "w") as file:
            file.write(mine)
        return lambda: path.unlink(missing_ok=True)


def _alive(path: Path) -> bool:
    """Whether the process that a lock file names still runs. A file that names none is one that is just being written,
    or a dead writer's.
    """
    import psutil

    try:
        pid, began = json.loads(path.read_text())
        return bool(abs(psutil.Process(pid).create_time() - began) < 1)
    except psutil.AccessDenied:
        return True
    except (ValueError, TypeError):
        with suppress(OSError):
            return time.time() - path.stat().st_mtime < GRACE
        return False
    except (OSError, psutil.Error):
        return False
