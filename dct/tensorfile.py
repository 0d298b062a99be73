"""Safetensors files that vouch for themselves: float32 tensors, a JSON config, and a digest of both in the header.

Format version 2. The header's metadata holds `format`, `format_version`, `config` (JSON text) and `digest`, the SHA-256
in hex of

    JSON text of [format, format_version, config, [[name, dtype, shape], ...]]  (UTF-8, names in order, no spaces)
    followed by the bytes of the tensors in that order (little endian, row by row)

so that nothing in the file can change unnoticed. Version 1 had no digest: its files are read, and say that nothing
protects them.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save
from torch import Tensor

from dct import plainjson
from dct.errors import DctError
from dct.writing import write_whole

VERSION = "2"
UNPROTECTED = "1"
"""The version whose files have no digest."""


class TensorFile(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by name, float32, on the CPU.
        config: what was written beside them.
        protected: whether a digest vouches for both.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    protected: bool


def write_tensors(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Path:
    """Writes tensors as float32 and a JSON config as one safetensors file, whole or not at all.

    NaN and infinity in the config become null.

    Raises:
        DctError: what is to be written is no tensor of real numbers or no JSON, or the file cannot be written.
    """
    text, ready = _text(config), as_stored(tensors)
    metadata = {"format": kind, "format_version": VERSION, "config": text, "digest": _digest(kind, ready, text)}
    return write_whole(path, save(ready, metadata))


def digest(kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """The digest that a file of these contents would have.

    Raises:
        DctError: as in `write_tensors`.
    """
    return _digest(kind, as_stored(tensors), _text(config))


def as_stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are written: float32, on the CPU, row by row, each with memory of its own.

    Raises:
        DctError: one is no tensor of real numbers, or has none (on torch's `meta` device).
    """
    ready = {}
    for name, t in tensors.items():
        if not isinstance(t, Tensor) or t.is_meta or t.is_complex() or t.is_quantized:
            raise DctError(f"cannot save {name}: it is no tensor of real numbers")
        dense = t.detach().to_dense() if t.layout != torch.strided else t.detach()
        ready[name] = dense.to("cpu", torch.float32, copy=True).contiguous()
    return ready


def read_tensors(path: str | os.PathLike[str], kind: str, names: tuple[str, ...]) -> TensorFile:
    """Reads what `write_tensors` wrote, of this version or the one before.

    Args:
        names: tensors that must be there.

    Raises:
        DctError: no such file; it is damaged, changed since it was written, or of another format or version.
    """
    path = Path(path)
    data = _bytes(path)
    try:
        # Checks the header, and that it tells of every byte once.
        stored: list[tuple[str, dict[str, Any]]] = deserialize(data)  # type: ignore[no-untyped-call]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise DctError(f"{path} is damaged or not a safetensors file ({error}); fit again") from error
    metadata = header.get("__metadata__") or {}
    if metadata.get("format") != kind:
        raise DctError(f"{path} is not a {kind} file (its format is {metadata.get('format', 'not given')})")
    version = metadata.get("format_version")
    if version not in (VERSION, UNPROTECTED):
        raise DctError(
            f"{path} has format version {version or 'none'} and this dct reads {UNPROTECTED} and {VERSION}: "
            "use a matching dct"
        )
    tensors = _tensors(path, stored, names)
    text = metadata.get("config", "")
    config = _config(path, text, lenient=version == UNPROTECTED)
    given = metadata.get("digest")
    if (given is not None or version == VERSION) and given != _digest(kind, tensors, text, version):
        raise DctError(
            f"{path} is damaged: its digest is not that of its numbers and config; fit again, or take a copy of it"
        )
    return TensorFile(tensors, config, given is not None)


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise DctError(f"no file {path}: give a run folder or a factors file, or make one with `dct fit`")
        return path.read_bytes()
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it does not fit into memory"
        raise DctError(f"cannot read {path}: {reason}") from error


def _tensors(path: Path, stored: list[tuple[str, dict[str, Any]]], names: tuple[str, ...]) -> dict[str, Tensor]:
    found = dict(stored)
    missing = [name for name in names if name not in found]
    if missing:
        raise DctError(f"{path} is damaged: it lacks {', '.join(missing)}; fit again")
    tensors = {}
    for name, entry in found.items():
        if entry["dtype"] != "F32":
            raise DctError(f"{path} is damaged: its {name} is stored as {entry['dtype']}, not as F32; fit again")
        try:
            values = np.frombuffer(entry["data"], "<f4").astype(np.float32)  # a copy, in this machine's byte order
            tensors[name] = torch.from_numpy(values).reshape(entry["shape"])
        except (RuntimeError, ValueError) as error:  # empty one way, and larger than can be counted another
            raise DctError(f"{path} is damaged: the shape of its {name} is {entry['shape']}; fit again") from error
    return tensors


def _config(path: Path, text: str, lenient: bool) -> dict[str, Any]:
    try:
        config = plainjson.loads(text, lenient=lenient)
    except ValueError as error:
        raise DctError(f"{path} is damaged: its config cannot be read ({error}); fit again") from error
    if not isinstance(config, dict):
        raise DctError(f"{path} is damaged: it lacks a config; fit again")
    return config


def _text(config: Mapping[str, Any]) -> str:
    try:
        return plainjson.dumps(dict(config))
    except ValueError as error:
        raise DctError(f"cannot save: the config is no JSON ({error})") from error


def _digest(kind: str, tensors: Mapping[str, Tensor], text: str, version: str = VERSION) -> str:
    names = sorted(tensors)
    shapes = [[name, "F32", list(tensors[name].shape)] for name in names]
    begin = json.dumps([kind, version, text, shapes], separators=(",", ":"), ensure_ascii=False)
    found = hashlib.sha256(begin.encode())
    for name in names:
        found.update(tensors[name].numpy().astype("<f4", copy=False).tobytes())
    return found.hexdigest()
