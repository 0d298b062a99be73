"""Folders that are there whole or not at all: written beside their place under a hidden name, then renamed.

The hidden folder holds a lock for as long as its process lives. One whose process was killed is removed by the next
save to the same place; one that is still being written never is.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil  # type: ignore[import-untyped]

from dct.errors import DctError

try:
    import fcntl
except ImportError:  # Windows: whether the process lives is all that can be asked
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


def check_vacant(folder: Path) -> None:
    """Refuses a place that is taken.

    Raises:
        DctError: it is a file, a folder with something in it, or the folder that one is in.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise DctError(f"{folder} exists and is not empty: name a new folder")
    if folder.resolve() == Path.cwd():
        raise DctError(f"{folder} is the folder that you are in: name a new folder")


@contextmanager
def staged(folder: Path, needed: int = 0) -> Iterator[Path]:
    """A folder to write into, which takes its name when the context ends well and is gone when it does not.

    Args:
        folder: the name; what lies above it is made where it is missing.
        needed: bytes that will be written at least.

    Raises:
        DctError: the place is taken, the disk is full or does not let one write; says which.
    """
    check_vacant(folder)
    place = folder.resolve()
    made = [above for above in (place.parent, *place.parent.parents) if not above.exists()]
    beside = place.with_name(f"{_prefix(place)}{os.getpid()}-{secrets.token_hex(4)}")
    done = False
    lock: IO[bytes] | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place)
        free = shutil.disk_usage(place.parent).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")
        beside.mkdir()
        lock = _locked(beside)
        yield beside
        (beside / LOCK).unlink(missing_ok=True)
        if os.name == "nt" and place.exists():  # elsewhere an empty folder is replaced in one step
            place.rmdir()
        beside.rename(place)
        done = True
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        if lock is not None:
            lock.close()
        if not done:
            shutil.rmtree(beside, ignore_errors=True)
            for above in made:
                with contextlib.suppress(OSError):
                    above.rmdir()


def sweep(place: Path) -> None:
    """Removes what killed saves to the same place have left behind."""
    prefix = _prefix(place)
    for path in list(place.parent.iterdir()):
        if path.name.startswith(prefix) and path.is_dir() and not _alive(path, prefix):
            shutil.rmtree(path, ignore_errors=True)


def cannot_write(folder: Path, error: OSError) -> DctError:
    """The line for a folder that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None)):
        cure = "free some space or choose another folder"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        cure = "choose a folder where you may write"
    elif error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return DctError(f"{folder} exists and is not empty: name a new folder")
    else:
        cure = "choose another folder"
    return DctError(f"cannot write {folder}: {error.strerror or error}; {cure}")


def _prefix(place: Path) -> str:
    return f".{place.name[:50]}.part-"  # the whole name stays below the 255 bytes that file systems take


def _locked(beside: Path) -> IO[bytes]:
    lock = (beside / LOCK).open("wb")
    if fcntl is not None:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def _alive(path: Path, prefix: str) -> bool:
    """Whether a hidden folder is still being written."""
    if fcntl is not None:
        try:
            with (path / LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            pass  # not yet locked, or about to take its name
        except OSError:
            return True
    number = path.name[len(prefix) :].split("-")[0]
    return number.isdecimal() and psutil.pid_exists(int(number))
