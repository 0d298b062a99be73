"""What weight files say of themselves: names, types and sizes of their tensors, from their headers alone.

Knows the formats; knows nothing of models or of transformers.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from dct.errors import DctError

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Names that safetensors gives to types; others are of one byte or packed, and stand as bytes."""

PICKLES = (
    "pickles that hold more than tensors, and such files can run code: get the model as safetensors, or have whoever "
    "made it convert it (save_pretrained writes safetensors)"
)
"""What is said of weights that would have to be trusted; never how to trust them."""

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"


@dataclass(frozen=True)
class Tensor:
    """A tensor on disk: its type, sizes and file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path


def tensors(folder: Path, explicit: str | None = None) -> dict[str, Tensor]:
    """The tensors of a model's folder, by their names in the files; none where it holds no weights that are known.

    Args:
        folder: of transformers' own format.
        explicit: the file, or index of files, that the configuration names.

    Raises:
        DctError: a file is damaged or missing, or a pickle that holds more than tensors.
    """
    found: dict[str, Tensor] = {}
    for path in weight_files(folder, explicit):
        found |= _pickled(path) if path.suffix == ".bin" else _safe(path)
    return found


def weight_files(folder: Path, explicit: str | None = None) -> list[Path]:
    """The files that transformers reads a model's weights from, in its order of choice.

    Raises:
        DctError: an index that is damaged, or that names a file which is not there.
    """
    for name in [explicit] if explicit else [SAFE, f"{SAFE}.index.json", PICKLED, f"{PICKLED}.index.json"]:
        path = folder / name
        if not path.is_file():
            continue
        return _indexed(path) if path.name.endswith(".index.json") else [path]
    return []


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [index.parent / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DctError(f"cannot load the model in {index.parent}: {index.name} is damaged") from error
    gone = [path.name for path in paths if not path.is_file()]
    if gone:
        others = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise DctError(
            f"cannot load the model in {index.parent}: {index.name} names {gone[0]}{others}, which is not there: "
            "bring the missing files"
        )
    return paths


def _safe(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            [length] = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise ValueError
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        found = {
            str(name): Tensor(TYPES.get(entry["dtype"], torch.uint8), tuple(map(int, entry["shape"])), path)
            for name, entry in header.items()
        }
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DctError(
            f"cannot load the model in {path.parent}: the header of {path.name} is damaged: bring the file again"
        ) from error
    except OSError as error:
        raise DctError(f"cannot read {path}: {error.strerror or error}") from error
    if end + length + 8 > size:
        raise DctError(
            f"cannot load the model in {path.parent}: {path.name} is cut short ({size:,} of {end + length + 8:,} bytes)"
            ": bring it again"
        )
    return found


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
        return {name: Tensor(value.dtype, tuple(value.shape), path) for name, value in content.items()}
    except Exception as error:  # whatever a damaged or hostile pickle brings about
        raise DctError(
            f"cannot load the model in {path.parent}: {path.name} is damaged, or one of the {PICKLES}"
        ) from error
