"""Finished measurements, one file each: what is on record is not measured again, whatever happened to the process."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dct import plainjson
from dct.errors import DctError
from dct.factors import Factors
from dct.schema import Record, number, text
from dct.team import current
from dct.writing import write_whole

VERSION = 1
"""Of what a measurement means: raised when the same settings would give another result."""


CELL = Record(needed={"key": text(1), "result": Record(), "seconds": number(0)}, optional={"digest": text(1)})
"""A measurement's file; those of older versions have no digest."""


def key_of(settings: dict[str, Any]) -> str:
    """A short hash of settings (JSON types), the same in every process."""
    return hashlib.sha256(json.dumps([VERSION, settings], sort_keys=True).encode()).hexdigest()[:16]


def _digest(content: dict[str, Any]) -> str:
    """Of everything in a measurement's file but the digest itself."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@dataclass
class Records:
    """A folder of measurements and fits.

    Attributes:
        folder: where they are.
        damaged: files that could not be read, and were measured again.
    """

    folder: Path
    damaged: int = 0

    def __post_init__(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise DctError(f"`out` {self.folder} is a file: name a folder")

    def _cell(self, experiment: str, key: str) -> Path:
        return self.folder / "cells" / f"{experiment}-{key}.json"

    def load(self, experiment: str, key: str) -> dict[str, Any] | None:
        """A measurement with its `result` and `seconds`; None if it is not on record or cannot be read."""
        path = self._cell(experiment, key)
        if not path.is_file():
            return None
        try:
            content = plainjson.loads(path.read_bytes(), lenient=True)
            whole = CELL.wrong(content, "") is None and content["key"] == key
            if whole and content.get("digest", _digest(content)) == _digest(content):
                return dict(content)
        except (OSError, ValueError):
            pass
        self.damaged += 1
        return None

    def save(self, experiment: str, key: str, settings: dict[str, Any], result: dict[str, Any], seconds: float) -> None:
        """Writes a measurement, whole or not at all, with null for NaN and infinity and a digest of all of it."""
        content = plainjson.finite(
            {
                "key": key,
                "experiment": experiment,
                "settings": settings,
                "seconds": round(seconds, 3),
                "result": result,
            }
        )
        content["digest"] = _digest(content)
        write_whole(self._cell(experiment, key), (plainjson.dumps(content, indent=1) + "\n").encode())

    def load_fit(self, key: str) -> Factors | None:
        """Factors on record; None if there are none or they cannot be read."""
        path = self.folder / "fits" / f"{key}.safetensors"
        if not path.is_file():
            return None
        try:
            return Factors.load(path)
        except DctError:
            self.damaged += 1
            return None

    def save_fit(self, key: str, factors: Factors) -> None:
        """Keeps the factors of a fit under its key."""
        factors.save(self.folder / "fits" / f"{key}.safetensors")

    def clear(self) -> None:
        """Forgets everything that was measured; files of other kinds stay."""
        current().agreed(self._clear)

    def _clear(self) -> None:
        for pattern in ("cells/*.json", "fits/*.safetensors"):
            for path in self.folder.glob(pattern):
                path.unlink()
