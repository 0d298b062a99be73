"""Safetensors files as they lie on disk: what they hold and where, tensors read and replaced in place.

A model is saved by copying its source's files and writing over the tensors that changed, so that no second copy of the
model is ever in memory and whatever is not edited stays the same to the bit. Knows nothing of models.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dct import headers
from dct.errors import DctError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

TYPES = {name: kind for name, kind in headers.TYPES.items() if not name.startswith("F8")}
"""Types that are read as numbers; those of eight bits are copied as they are."""

NAMES = {kind: name for name, kind in TYPES.items()}
REAL = ("F64", "F32", "F16", "BF16")
"""Types that can stand for one another; anything else (indices, codes of quantised weights) is left alone."""

CHUNK = 1 << 24
"""Elements that are brought from one type to another at a time."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        kind: its type, as safetensors calls it.
        shape: its shape.
        begin: where its bytes begin in the file.
        end: where they end.
    """

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file.

    Attributes:
        path: where it is.
        entries: its tensors, by name.
        metadata: the text that its header carries.
    """

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]

    @classmethod
    def open(cls, path: Path) -> "WeightFile":
        """Reads the header.

        Raises:
            DctError: it is no safetensors file.
        """
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 0 < length <= path.stat().st_size - 8:
                    raise ValueError("its header is longer than the file")
                header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            entries = {
                name: Entry(e["dtype"], tuple(e["shape"]), *(8 + length + at for at in e["data_offsets"]))
                for name, e in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DctError(f"{path} is damaged or not a safetensors file ({error})") from error
        return cls(path, entries, metadata)

    @classmethod
    def create(
        cls, path: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> "WeightFile":
        """A new file with room for tensors, by name: type and shape. Wide types come first, so that all are aligned."""
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        at = 0
        for name, (kind, shape) in sorted(layout.items(), key=lambda item: (-_size(item[1][0]), item[0])):
            size = _size(kind) * math.prod(shape)
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        return cls.open(path)

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """A tensor, on the CPU; with `first` and `last`, its elements of that range, flat.

        Raises:
            DctError: its type is none that numbers can be read from.
        """
        entry = self.entries[name]
        if entry.kind not in TYPES:
            raise DctError(f"{name} of {self.path} has type {entry.kind}, which cannot be edited")
        size, count = _size(entry.kind), math.prod(entry.shape)
        stop = count if last is None else min(last, count)
        data = bytearray((stop - first) * size)
        with self.path.open("rb") as file:
            file.seek(entry.begin + first * size)
            if file.readinto(data) != len(data):
                raise DctError(f"{self.path} is damaged: it ends within {name}")
        flat = torch.frombuffer(data, dtype=TYPES[entry.kind]) if data else torch.empty(0, dtype=TYPES[entry.kind])
        return flat if last is not None else flat.reshape(entry.shape)

    def write(self, name: str, values: Tensor, first: int = 0) -> None:
        """Puts values in a tensor's place, from its element `first` on; they have its type already."""
        entry = self.entries[name]
        assert NAMES[values.dtype] == entry.kind
        flat = values.detach().cpu().contiguous().reshape(-1)
        with self.path.open("r+b") as file:
            file.seek(entry.begin + first * _size(entry.kind))
            file.write(flat.view(torch.uint8).numpy() if len(flat) else b"")  # type: ignore[arg-type]

    def copied(self, path: Path, kind: str | None) -> "WeightFile":
        """A copy of the file, all real numbers in type `kind`; left out, the same file.

        Raises:
            DctError: a finite number is too large for the type.
        """
        if kind is None or not any(e.kind in REAL and e.kind != kind for e in self.entries.values()):
            shutil.copyfile(self.path, path)
            return WeightFile.open(path)
        kinds = {name: kind if e.kind in REAL else e.kind for name, e in self.entries.items()}
        copy = WeightFile.create(path, {n: (kinds[n], e.shape) for n, e in self.entries.items()}, self.metadata)
        for name, entry in self.entries.items():
            if kinds[name] == entry.kind:
                self._copy_bytes(copy, name)
                continue
            for first in range(0, math.prod(entry.shape), CHUNK):
                copy.write(name, rounded(self.read(name, first, first + CHUNK), kind, name), first)
        return copy

    def _copy_bytes(self, copy: "WeightFile", name: str) -> None:
        here, there = self.entries[name], copy.entries[name]
        with self.path.open("rb") as source, copy.path.open("r+b") as target:
            source.seek(here.begin)
            target.seek(there.begin)
            left = here.end - here.begin
            while left:
                data = source.read(min(left, CHUNK))
                if not data:
                    raise DctError(f"{self.path} is damaged: it ends within {name}")
                target.write(data)
                left -= len(data)


@dataclass(frozen=True)
class Weights:
    """The weights of a model: one safetensors file or several with an index.

    Attributes:
        files: the files.
        index: the content of the index, if there is one.
    """

    files: list[WeightFile]
    index: dict[str, Any] | None = None

    @classmethod
    def find(cls, folder: Path) -> "Weights | None":
        """The weights that transformers reads from a folder; None where it has none in safetensors.

        Raises:
            DctError: the index or a file is damaged.
        """
        if (folder / SINGLE).is_file():
            return cls([WeightFile.open(folder / SINGLE)])
        if not (folder / INDEX).is_file():
            return None
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
            if any(Path(name).name != name for name in names):
                raise ValueError("it names files outside the folder")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DctError(f"{folder / INDEX} is damaged: {error}") from error
        return cls([WeightFile.open(folder / name) for name in names], index)

    @cached_property
    def home(self) -> dict[str, WeightFile]:
        """The file of every tensor."""
        return {name: file for file in self.files for name in file.entries}

    def entry(self, name: str) -> Entry:
        """Where a tensor lies in its file, in which type and shape."""
        return self.home[name].entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self.home

    def read(self, name: str) -> Tensor:
        """A tensor from whichever file holds it."""
        return self.home[name].read(name)

    def write(self, name: str, values: Tensor) -> None:
        """Writes a tensor over the one of its name, in the same type and shape."""
        self.home[name].write(name, values)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.path.stat().st_size for file in self.files)

    def copied(self, folder: Path, kind: str | None) -> "Weights":
        """Copies of all files, under their names, with their index."""
        copy = Weights([file.copied(folder / file.path.name, kind) for file in self.files], self.index)
        if self.index is not None:
            bytes_ = sum(e.end - e.begin for file in copy.files for e in file.entries.values())
            metadata = {**(self.index.get("metadata") or {}), "total_size": bytes_}
            write_index(folder, {**self.index, "metadata": metadata})
        return copy

    def flush(self) -> None:
        """Has everything on the disk."""
        for file in self.files:
            with file.path.open("rb") as stream:
                os.fsync(stream.fileno())


def laid_out(folder: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], limit: int) -> Weights:
    """New files in a folder, of `limit` bytes at most unless one tensor is larger, with room for tensors by name."""
    shards: list[dict[str, tuple[str, tuple[int, ...]]]] = [{}]
    filled = 0
    for name, (kind, shape) in layout.items():
        size = _size(kind) * math.prod(shape)
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = (kind, shape)
        filled += size
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{k + 1:05}-of-{count:05}.safetensors" for k in range(count)]
    files = [WeightFile.create(folder / name, part, {"format": "pt"}) for name, part in zip(names, shards, strict=True)]
    if count == 1:
        return Weights(files)
    total = sum(_size(kind) * math.prod(shape) for kind, shape in layout.values())
    index = {
        "metadata": {"total_size": total},
        "weight_map": {tensor: name for name, part in zip(names, shards, strict=True) for tensor in sorted(part)},
    }
    write_index(folder, index)
    return Weights(files, index)


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Writes the index that names the file of every tensor."""
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def rounded(values: Tensor, kind: str, name: str) -> Tensor:
    """Values in another type.

    Raises:
        DctError: a finite number is too large for it.
    """
    there = values.to(TYPES[kind])
    if kind == "F16" and bool((torch.isinf(there) & torch.isfinite(values)).any()):
        raise DctError(f"{name} holds numbers too large for float16: save it in bfloat16 or float32")
    return there


def _size(kind: str) -> int:
    return TYPES[kind].itemsize if kind in TYPES else 1
