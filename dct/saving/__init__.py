"""Saving an edited model so that other programs read it: whole, or as an adapter to its source.

A whole model is its source's folder again, with the values that were edited: every small file, every tensor under the
same name and in the same type, whatever part of it is in memory. It is written beside its place and takes its name once
it has been checked.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dct import compat
from dct.errors import DctError, UsageError
from dct.saving.adapter import write_adapter
from dct.saving.checks import check_opens
from dct.saving.origin import Origin
from dct.saving.staging import check_vacant, staged
from dct.saving.whole import write_model
from dct.version import __version__

if TYPE_CHECKING:
    from dct.ablation import Ablation
    from dct.model import LanguageModel

DTYPES = ("auto", "float32", "bfloat16", "float16")
FORMS = ("model", "adapter")

__all__ = ["DTYPES", "FORMS", "Saved", "check", "save"]


@dataclass(frozen=True)
class Saved:
    """What was saved.

    Attributes:
        folder: where.
        form: `model` or `adapter`.
        dtypes: types of the edited tensors.
        tensors: tensors in the files.
        edited: those of them that are not the source's.
        files: small files that were copied from the source.
        rounding: shares of the edit: `lost`, entries that rounded back to the source's; `survived`, how much of the
            edit is there; `remaining`, what is still written along the directions, relative to before; and `largest`,
            the largest difference of an entry to the exact edit. None where nothing was edited.
    """

    folder: Path
    form: str
    dtypes: list[str]
    tensors: int
    edited: int
    files: list[str] = field(default_factory=list)
    rounding: dict[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {
            "folder": str(self.folder),
            "form": self.form,
            "dtypes": self.dtypes,
            "tensors": self.tensors,
            "edited": self.edited,
            "files": self.files,
            "rounding": self.rounding,
        }


def check(folder: Path, dtype: str = "auto", form: str = "model") -> None:
    """Refuses before any work what would be refused after it.

    Raises:
        UsageError: an unknown dtype or form.
        DctError: the place is taken.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown `dtype` {dtype!r}: choose {', '.join(DTYPES)}", argument="dtype")
    if form not in FORMS:
        raise UsageError(f"unknown `form` {form!r}: choose {' or '.join(FORMS)}", argument="form")
    check_vacant(folder)


def save(
    lm: "LanguageModel",
    folder: "str | Path",
    done: "Ablation | None" = None,
    *,
    dtype: str = "auto",
    form: str = "model",
    about: Mapping[str, Any] | None = None,
) -> Saved:
    """Saves a model as it is in memory.

        with dct.ablate(lm, directions, fold_norms=True) as done:
            dct.save(lm, "edited", done)

    Args:
        lm: a model that is in memory whole.
        folder: a new or empty folder.
        done: the ablation that is at work. Its edit is then computed from the source's values and rounded once.
        dtype: `float32`, `bfloat16` or `float16` for all weights; `auto` is the source's own type for each, and for an
            adapter float32.
        form: `model`, or `adapter`: a PEFT adapter that makes the source into the edited model.
        about: what else to say in the folder's `dct.json`; JSON types only.

    Raises:
        DctError: the place is taken or cannot be written; the model is not all in memory; what was done to it is not
            in its weights; it is quantised; its parameters cannot be found in its source's files.
        UsageError: an unknown dtype or form.
    """
    folder = Path(folder).expanduser()
    check(folder, dtype, form)
    lm.require(range(lm.depth), ends=True)
    if form == "adapter" and lm.adapter is not None:
        raise DctError(
            f"{lm.name} is a model with an adapter merged into it, and a second one would be read without the first: "
            'save all weights (`form="model"`)'
        )
    _check_in_weights(lm, done)
    edits = done.edits if done is not None else {}
    origin = Origin.of(lm)
    chosen = None if dtype == "auto" else dtype
    if form == "adapter":
        kind = getattr(torch, chosen or "float32")
        with staged(folder) as beside:
            count, rounding = write_adapter(lm, origin, edits, beside, kind)
            saved = Saved(folder, form, [chosen or "float32"], 2 * count, count, [], rounding.report())
            _tell(lm, beside, saved, done, about)
        return saved
    with staged(folder, _bytes(lm, origin, chosen)) as beside:
        written = write_model(lm, origin, edits, beside, chosen)
        check_opens(lm, beside, origin)
        report = written.rounding.report()
        saved = Saved(folder, form, written.dtypes, written.tensors, written.edited, written.files, report)
        _tell(lm, beside, saved, done, about)
    return saved


def _check_in_weights(lm: "LanguageModel", done: "Ablation | None") -> None:
    """Refuses a model whose run differs from what its weights say.

    Raises:
        DctError: something is projected or steered while it runs, or weights wait outside memory.
    """
    if done is not None and done.projected:
        raise DctError(
            f"the output of {done.projected[0]} is projected while {lm.name} runs, which no weights can hold: ablate "
            "with fold_norms=True to save"
        )
    hooked = compat.hooks_of("dct", lm.model)
    if hooked:
        raise DctError(
            f"{hooked[0] or 'the model'} of {lm.name} is steered or projected while it runs, which no weights can "
            "hold: leave that context, or ablate with fold_norms=True, to save"
        )
    away = [name for name, values in lm.model.named_parameters() if values.is_meta]
    if away:
        raise DctError(f'{away[0]} of {lm.name} waits outside memory: to save it, load all of it (`device="cpu"`)')


def _bytes(lm: "LanguageModel", origin: Origin, dtype: str | None) -> int:
    """About what the weights take on disk."""
    if origin.weights is not None and dtype is None:
        return origin.weights.size
    count = sum(values.numel() for values in lm.model.parameters())
    return count * (getattr(torch, dtype).itemsize if dtype is not None else lm.dtype.itemsize)


def _tell(
    lm: "LanguageModel", beside: Path, saved: Saved, done: "Ablation | None", about: Mapping[str, Any] | None
) -> None:
    """Writes `dct.json`: what was done, to which model."""
    content = {
        **(about or {}),
        "from": lm.name,
        "fingerprint": lm.fingerprint,
        "dct": __version__,
        "form": saved.form,
        "dtypes": saved.dtypes,
        "edited": sorted(done.edits) if done is not None else None,
        "directions": len(done.directions) if done is not None else None,
        "rounding": saved.rounding,
    }
    (beside / "dct.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
