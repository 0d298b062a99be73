"""Files that are there whole or not at all, whatever happens to the process or the machine.

A file is written where it has no name yet, brought to the disk, and named when it is whole. Where the system cannot do
that, it is written beside its place under a name of its own (`.NAME.0123456789abcdef.part`) that is locked while its
writer lives: the next writer in the folder removes what a killed one left.
"""

import errno
import os
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from dct.errors import UnwritableError
from dct.team import leads

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

BESIDE = re.compile(r"\..{0,40}\.[0-9a-f]{16}\.part", re.DOTALL)
"""Names of files that are being written."""

ELSEWHERE = "choose another `out`"

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def write_whole(path: str | os.PathLike[str], data: bytes, elsewhere: str = ELSEWHERE) -> Path:
    """Writes a file whole or not at all, with the folders on the way; its mode follows the umask. Of several processes
    the leader alone writes.

    Args:
        elsewhere: what helps where nothing can be written, as part of an error.

    Raises:
        UnwritableError: it cannot be written; says why.
    """
    path = Path(path)
    if not leads():
        return path
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():  # a device or a pipe would be replaced by a file
            raise OSError(errno.EINVAL, "it is a device or a pipe")
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        beside = path.parent / f".{path.name[:40]}.{os.urandom(8).hex()}.part"
        try:
            if not _written_unnamed(beside, path, data):
                _write_named(beside, path, data)
        except BaseException:  # Ctrl+C too leaves nothing beside
            beside.unlink(missing_ok=True)
            raise
        _settle(path.parent)
    except (OSError, ValueError) as error:
        raise unwritable(path, error, elsewhere) from error
    return path


def unwritable(path: Path, error: OSError | ValueError, elsewhere: str = ELSEWHERE) -> UnwritableError:
    """The error that says why a file or folder cannot be written, and what helps."""
    code = getattr(error, "errno", None)
    cure = elsewhere
    if code in FULL:
        cure = f"free some space or {elsewhere}"
    elif code in FORBIDDEN:
        cure = f"ask for the right to write there, or {elsewhere}"
    elif code == errno.ENAMETOOLONG:
        cure = f"take a shorter name, or {elsewhere}"
    elif code in (errno.ENOTDIR, errno.EEXIST):
        cure = f"a part of that path is a file: {elsewhere}"
    reason = getattr(error, "strerror", None) or str(error)
    return UnwritableError(f"cannot write {path}: {reason}; {cure}")


def sweep(folder: Path) -> None:
    """Removes what killed writers have left in a folder, and nothing that is being written."""
    with suppress(OSError):  # a folder that may be written but not listed
        for entry in os.scandir(folder):
            if BESIDE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                _remove_unless_locked(entry.path)


def _remove_unless_locked(path: str) -> None:
    with suppress(OSError):  # locked by its writer, gone already, or another user's
        if fcntl is None:
            os.unlink(path)
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(descriptor)


def _written_unnamed(beside: Path, path: Path, data: bytes) -> bool:
    """Writes a file that is named only when it is whole (Linux); False where that cannot be done."""
    kind = getattr(os, "O_TMPFILE", None)
    if kind is None:
        return False
    try:
        descriptor = os.open(path.parent, kind | os.O_WRONLY, 0o666)
    except OSError:  # a file system without; whatever else is wrong comes up again with a name
        return False
    with _opened(descriptor) as file:
        _lock(descriptor)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
        try:
            # A folder's descriptor makes Python call linkat, which follows the link; plain link would not.
            named = partial(os.link, f"/proc/self/fd/{descriptor}", src_dir_fd=descriptor, follow_symlinks=True)
            with suppress(FileExistsError):
                named(path)
                return True
            named(beside)
        except OSError:
            return False
        beside.replace(path)
    return True


def _write_named(beside: Path, path: Path, data: bytes) -> None:
    """Writes a file under a name of its own and renames it; locked from the first byte until it has its name."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    descriptor = os.open(beside, flags, 0o666)
    _lock(descriptor)
    while fcntl is not None and not os.fstat(descriptor).st_nlink:  # swept away before it was locked
        os.close(descriptor)
        descriptor = os.open(beside, flags, 0o666)
        _lock(descriptor)
    with _opened(descriptor) as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
        if fcntl is not None:
            beside.replace(path)
    if fcntl is None:
        beside.replace(path)


def _opened(descriptor: int) -> IO[bytes]:
    try:
        return os.fdopen(descriptor, "wb")
    except BaseException:
        os.close(descriptor)
        raise


def _lock(descriptor: int) -> None:
    """Marks a file as being written, for as long as it is open."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _settle(folder: Path) -> None:
    """Brings the folder's entries to the disk, where that can be done."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            getattr(os, "fdatasync", os.fsync)(descriptor)
        finally:
            os.close(descriptor)
