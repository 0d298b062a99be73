"""A whole model as a folder that other programs read: its source's files, with the values that were edited."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dct import compat
from dct.ablation import Edit
from dct.errors import DctError
from dct.model import LanguageModel
from dct.saving import companions
from dct.saving.layout import Piece, expected, held, near, pieces, same_values, shapes_of
from dct.saving.origin import Origin
from dct.saving.rounding import Rounding, wanted
from dct.saving.weight_files import NAMES, REAL, TYPES, Weights, laid_out, rounded

SHARD = 5_000_000_000
"""Bytes of a file of weights that are laid out anew."""


@dataclass
class Written:
    """What went into a folder.

    Attributes:
        tensors: tensors in its files.
        edited: those of them whose values are not the source's.
        files: small files that were copied from the source.
        dtypes: types of the edited tensors, or of all where none was edited.
        rounding: what rounding left of the edit.
    """

    tensors: int = 0
    edited: int = 0
    files: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    rounding: Rounding = field(default_factory=Rounding)


def write_model(lm: LanguageModel, origin: Origin, edits: dict[str, Edit], folder: Path, dtype: str | None) -> Written:
    """Writes a model into an empty folder.

    Args:
        lm: the model as it is now.
        origin: where it comes from.
        edits: what was done to its parameters, by name; others that differ from the source are written too.
        folder: where to.
        dtype: type of all real weights; left out, the source's.

    Raises:
        DctError: an edited parameter is not in the source's files, or its values do not fit the type.
    """
    written = Written()
    if origin.folder is not None:
        written.files = companions.copy_small_files(origin.folder, folder)
    else:
        companions.save_tokenizer(lm.tokenizer, folder)
    kind = NAMES[getattr(torch, dtype)] if dtype is not None else None
    if origin.weights is not None:
        weights = origin.weights.copied(folder, kind)
        digests = _write_over(lm, origin.weights, weights, edits, written)
        if dtype is not None:
            companions.set_dtype(folder / "config.json", dtype)
    else:
        weights, digests = _write_anew(lm, folder, edits, kind, written)
        if origin.folder is None:
            companions.save_config(lm.model, folder, dtype or _name(lm.dtype))
        else:  # weights in another format, or quantised ones that are plain in memory
            companions.drop_quantisation(folder / "config.json")
            companions.set_dtype(folder / "config.json", dtype or _name(lm.dtype))
    weights.flush()
    written.tensors = len(weights.home)
    changed = digests if digests else weights.home
    written.dtypes = sorted(
        {_name(TYPES[weights.entry(name).kind]) for name in changed if weights.entry(name).kind in TYPES}
    )
    _verify(folder, origin, weights, digests, kind)
    return written


def _write_over(
    lm: LanguageModel, source: Weights, target: Weights, edits: dict[str, Edit], written: Written
) -> dict[str, str]:
    """Replaces what is not the source's in copies of its files; gives digests of what was replaced."""
    digests: dict[str, str] = {}
    missing = []
    for piece in pieces(lm.model, shapes_of(source), held(lm.model)):
        if isinstance(piece, str):
            missing.append(piece)
            continue
        stored = source.read(piece.name)
        edit = edits.get(piece.owner) if piece.owner is not None else None
        if edit is None and same_values(piece.values, stored):
            continue
        if not piece.literal and not near(piece.values, stored):
            missing.append(piece.owner or piece.name)
            continue
        digests[piece.name] = _put(target, piece, stored, edit, written.rounding)
    written.edited = len(digests)
    tied = compat.tied_weights(lm.model)
    parameters = {name for name, _ in lm.model.named_parameters()}
    # What an ablation did not touch may be missing: the source's own values stay. Without one, anything may be edited.
    lost = [name for name in missing if (name in edits if edits else name in parameters and name not in tied)]
    if lost:
        raise DctError(
            f"{lm.name} has no tensor on disk that is {lost[0]} in memory, so its edit cannot be put there: save it as "
            'an adapter (`form="adapter"`)'
        )
    return digests


def _write_anew(
    lm: LanguageModel, folder: Path, edits: dict[str, Edit], kind: str | None, written: Written
) -> tuple[Weights, dict[str, str]]:
    """Writes what is in memory; gives the files and digests of what was edited."""
    layout = {}
    for name, values in expected(lm.model).items():
        own = NAMES.get(values.dtype)
        if own is None:
            raise DctError(f"{name} of {lm.name} is quantised ({values.dtype}): load it unquantised to save it")
        layout[name] = (kind if kind is not None and own in REAL else own, tuple(values.shape))
    weights = laid_out(folder, layout, SHARD)
    originals = {name: edit.original for name, edit in edits.items()}
    shapes = shapes_of(weights)
    left, digests = set(layout), {}
    for piece in pieces(lm.model, shapes, held(lm.model)):
        if isinstance(piece, str):
            continue  # tied to another that is written
        left.discard(piece.name)
        if piece.owner in edits:
            before = {
                p.name: p.values
                for p in pieces(lm.model, shapes, {piece.owner: originals[piece.owner]})
                if isinstance(p, Piece)
            }
            stored = before[piece.name].detach().cpu()
            digests[piece.name] = _put(weights, piece, stored, edits[piece.owner], written.rounding)
        else:
            weights.write(piece.name, rounded(piece.values.detach().cpu(), weights.entry(piece.name).kind, piece.name))
    if left:
        raise DctError(f"{lm.name} cannot be written: transformers does not tell what {min(left)} is made of")
    written.edited = len(digests)
    return weights, digests


def _put(target: Weights, piece: Piece, stored: Tensor, edit: Edit | None, rounding: Rounding) -> str:
    """Writes one tensor, computed from the source's values and rounded once; gives a digest of what was written."""
    D = edit.span if edit is not None else None
    values, axis = wanted(stored, piece.values, D)
    kind = target.entry(piece.name).kind
    if edit is not None and axis is None and TYPES[kind].itemsize > piece.values.dtype.itemsize:
        raise DctError(
            f"the edit of {piece.owner} is known in {_name(piece.values.dtype)} alone: load the model with "
            f'`dtype="{_name(TYPES[kind])}"` to save it in that'
        )
    saved = rounded(values, kind, piece.name)
    rounding.add(stored.double(), values, saved, D if axis is not None else None, axis or -1)
    target.write(piece.name, saved)
    return _digest(saved)


def _verify(folder: Path, origin: Origin, weights: Weights, digests: dict[str, str], kind: str | None) -> None:
    """Names, shapes and types against the source, and what was edited against what was asked for, read back.

    Raises:
        DctError: they differ.
    """
    there = Weights.find(folder)
    if there is None or there.home.keys() != weights.home.keys():
        raise DctError("the saved weights are not what was written: is another program writing there?")
    if origin.weights is not None:
        for name in origin.weights.home.keys() | there.home.keys():
            a, b = origin.weights.entry(name), there.entry(name)
            if a.shape != b.shape or b.kind != (kind if kind is not None and a.kind in REAL else a.kind):
                raise DctError(f"{name} was saved as {b.kind} {b.shape} and is {a.kind} {a.shape} in the source")
    for name, digest in digests.items():
        if _digest(there.read(name)) != digest:
            raise DctError(f"{name} reads back differently from what was written: is the disk damaged?")


def _digest(values: Tensor) -> str:
    flat = values.contiguous().reshape(-1)
    data: Any = flat.view(torch.uint8).numpy() if len(flat) else b""
    return hashlib.sha256(data).hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
