"""GGUF files: what their header says, and how transformers is asked to unpack them into plain weights.

The header is read here, so that a file is named, measured and refused before the minutes that unpacking takes; the
weights are read by transformers with the `gguf` package.
"""

import importlib.util
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dct.errors import DctError

MAGIC = b"GGUF"

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Number of a type of metadata -> how `struct` reads it; 8 is text and 9 an array."""

TEXT, ARRAY = 8, 9

TOKENS, KINDS, CONTROL = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", 3
"""The two lists of a vocabulary, and the kind of token that only templates write."""

MOST = 2**24
"""More entries, or bytes of one text, than any header holds: a damaged file."""

PLAIN = {"F32", "F16", "BF16", "F64"}


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        architecture: llama.cpp's name of it.
        values: its metadata; arrays as their lengths.
        shapes: tensor -> sizes, the fastest first.
        types: tensor -> name of how its numbers are stored, such as Q4_K.
        controls: text of each control token -> its number: what no user's text may be cut into.
    """

    architecture: str
    values: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    controls: dict[str, int]

    @property
    def elements(self) -> int:
        """Numbers that the file holds."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def quantization(self) -> str:
        """How most of the numbers are stored."""
        weight: Counter[str] = Counter()
        for name, shape in self.shapes.items():
            weight[self.types[name]] += math.prod(shape)
        return weight.most_common(1)[0][0] if weight else "nothing"

    @property
    def unread(self) -> list[str]:
        """What transformers does not take from the file although other programs compute with it."""
        factors = [name for name in self.shapes if name.startswith("rope_")]
        scaling = self.values.get(f"{self.architecture}.rope.scaling.type")
        return factors or ([f"rope.scaling.type {scaling}"] if scaling not in (None, "none") else [])


def require_package(path: Path) -> None:
    """Refuses to go on without the package that reads these files.

    Raises:
        DctError: it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise DctError(f"reading {path.name} takes the gguf package: pip install 'deep-causal-transcoders[gguf]'")


def read_header(path: Path) -> Header:
    """The metadata and the names, sizes and types of the tensors.

    Raises:
        DctError: not a GGUF file, one of another byte order or version, split, or damaged.
    """
    try:
        with path.open("rb") as stream:
            return _header(path, stream)
    except (struct.error, UnicodeDecodeError, EOFError, KeyError, ValueError, MemoryError, OverflowError) as error:
        raise DctError(f"cannot load the model in {path}: the GGUF header is damaged or cut short") from error
    except OSError as error:
        raise DctError(f"cannot read {path}: {error.strerror or error}") from error


def _header(path: Path, stream: BinaryIO) -> Header:
    if stream.read(4) != MAGIC:
        raise DctError(f"cannot load the model in {path}: it is no GGUF file")
    version, tensors, entries = struct.unpack("<IQQ", stream.read(20))
    if version not in (2, 3) or max(tensors, entries) > MOST:
        raise DctError(f"cannot load the model in {path}: GGUF version {version} or its byte order is not known")
    values: dict[str, Any] = {}
    for _ in range(entries):
        key = _text(stream)
        values[key] = _value(stream, *struct.unpack("<I", stream.read(4)), keep=key in (TOKENS, KINDS))
    texts, kinds = values.pop(TOKENS, []), values.pop(KINDS, [])
    controls = {text: number for number, (text, kind) in enumerate(zip(texts, kinds, strict=False)) if kind == CONTROL}
    if values.get("split.count", 0) > 1:
        raise DctError(
            f"{path} is one piece of a split GGUF file: put the pieces together (llama-gguf-split merges them)"
        )
    shapes, types, ends = {}, {}, 0
    for _ in range(tensors):
        name = _text(stream)
        [rank] = struct.unpack("<I", stream.read(4))
        shapes[name] = struct.unpack(f"<{rank}Q", stream.read(8 * rank)) if rank <= 8 else _damaged()
        number, offset = struct.unpack("<IQ", stream.read(12))
        types[name], size = _storage(number, math.prod(shapes[name]))
        ends = max(ends, offset + size)
    align = int(values.get("general.alignment", 32)) or 32
    begins = -(-stream.tell() // align) * align
    if begins + ends > path.stat().st_size:
        raise DctError(
            f"cannot load the model in {path}: it is cut short, {path.stat().st_size:,} of {begins + ends:,} bytes"
        )
    return Header(str(values.get("general.architecture", "unknown")), values, shapes, types, controls)


def _damaged() -> tuple[int, ...]:
    raise ValueError("no tensor has so many dimensions")


def _text(stream: BinaryIO) -> str:
    [length] = struct.unpack("<Q", stream.read(8))
    if length > MOST:
        raise ValueError("no text is that long")
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return content.decode("utf-8", "replace")


def _value(stream: BinaryIO, kind: int, *, keep: bool = False) -> Any:
    """A value of the metadata; of a list its length, or, to `keep`, the list."""
    if kind == TEXT:
        return _text(stream)
    if kind == ARRAY:
        inner, length = struct.unpack("<IQ", stream.read(12))
        if length > MOST:
            raise ValueError("no list is that long")
        if keep:
            return [_value(stream, inner) for _ in range(length)]
        if inner in SCALARS:
            stream.seek(length * struct.calcsize(SCALARS[inner]), 1)
        else:
            for _ in range(length):
                _value(stream, inner)
        return length
    [value] = struct.unpack(SCALARS[kind], stream.read(struct.calcsize(SCALARS[kind])))
    return value


def _storage(number: int, elements: int) -> tuple[str, int]:
    """The name of a type of tensors, and the bytes that so many of its numbers take."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType(number)
    block, size = GGML_QUANT_SIZES[kind]
    return kind.name, elements // block * size
