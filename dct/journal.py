"""Completions kept as they are made, so that work that was cut goes on where it stood.

A JSONL file that only grows. Each line holds a completion under a key that says what it is of; whoever writes it is
whole lines at a time, and a line that a killed process left torn is dropped. Of several processes the leader writes.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dct import plainjson
from dct.team import leads
from dct.writing import unwritable

COPY = "copy the run to another folder"


class Journal:
    """The completions of a file by their keys.

    Args:
        path: where they are kept; made with the first of them.

    Attributes:
        known: what the file held when it was opened, and what has been added since.

    Raises:
        DctError: it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, str] = {}
        try:
            data = path.read_bytes() if path.exists() else b""
            whole = data.rfind(b"\n") + 1
            if whole < len(data) and leads():
                os.truncate(path, whole)
        except OSError as error:
            raise unwritable(path, error, COPY) from error
        for line in data[:whole].splitlines():
            found = _read(line)
            if found is not None:
                self.known[found["key"]] = found["completion"]

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keeps completions: records of `key`, `completion` and whatever else a reader may want to know.

        Raises:
            DctError: they cannot be written.
        """
        if leads():
            self._write("".join(plainjson.dumps(row, strict=False) + "\n" for row in rows).encode())
        self.known.update({row["key"]: row["completion"] for row in rows})

    def _write(self, data: bytes) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise unwritable(self.path, error, COPY) from error


def records(path: Path) -> Iterator[dict[str, Any]]:
    """What a journal holds of each reply, `vector`, `scale`, `prompt` and `completion`; lines that are torn or have not
    all of them are passed over, and a file that is not there holds none."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"vector", "scale", "prompt", "completion"} <= set(row):
            yield row


def _read(line: bytes) -> dict[str, str] | None:
    """A record of a completion; None for a line that is none: what it was of is completed again."""
    try:
        found = plainjson.loads(line)
    except ValueError:
        return None
    told = isinstance(found, dict) and all(isinstance(found.get(name), str) for name in ("key", "completion"))
    return found if told else None
