"""Taking vectors elsewhere: what leaves, and how the formats that it can leave in are found by name.

A format that comes with the package is a file in `dct/export`; one of another package is an entry point of the group
`dct.formats`. Each says what it can carry: a vector that is added, or directions that are projected out of the weights.
An export is a folder that is there whole or not at all: the format's files, a card `README.md` and `dct.json`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dct.errors import DctError, UsageError
from dct.publicname import public
from dct.registry import Registry, subclass
from dct.version import __version__

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from dct.model import LanguageModel
    from dct.perturbation import RankOne

ADDITION, ABLATION = "addition", "ablation"

REGISTRY = Registry("format", "dct.formats", "export")

ABOUT, CARD = "dct.json", "README.md"


@dataclass(frozen=True)
class Parcel:
    """What leaves.

    Attributes:
        directions: unit rows.
        norms: how far each is added, R and all factors in it; negative for the opposite.
        names: of the vectors: "17", or "mean of 3, 5".
        layer: s: an addition goes to hidden_states[s], which enters block s.
        ablate: the directions are projected out of the weights, rather than added.
        info: where the factors come from, as their file says it.
        kind: the model's type by its configuration; empty where that is not known.
        lm: the model itself, for formats that need its weights.
        ranking: `rank.json`, where these factors have been ranked.
        dtype: type of weights that are written; `auto` is the format's choice.
        changes: what the directions are, where they are rank-1 changes and no vectors: then nothing is added.
    """

    directions: "Float[Tensor, 'n width']"
    norms: list[float]
    names: list[str]
    layer: int
    ablate: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    kind: str = ""
    lm: "LanguageModel | None" = None
    ranking: Mapping[str, Any] | None = None
    dtype: str = "auto"
    changes: "RankOne | None" = None

    @property
    def site(self) -> str:
        """Where it acts, in words."""
        if self.changes is not None:
            return f"attention outputs of {self.changes}, counted from 0"
        return f"hidden_states[{self.layer}], the input of block {self.layer} counted from 0"

    @property
    def vectors(self) -> "Float[Tensor, 'n width']":
        """What is added, R v, in float32; the span of the directions, as orthonormal rows, where it is taken out."""
        import torch

        if self.ablate:
            from dct.ablation import orthonormal

            return orthonormal(self.directions).to(torch.float32)
        norms = torch.tensor(self.norms, dtype=torch.float64)
        return (norms[:, None] * self.directions.detach().cpu().double()).to(torch.float32).contiguous()

    @property
    def model(self) -> str:
        """The model's name as others may read it: of a folder on this machine the last part alone."""
        return public(str(self.info.get("model") or (self.lm.name if self.lm is not None else "unknown")))

    @property
    def fingerprint(self) -> str:
        """Of the weights that the vectors were found on."""
        return str(self.info.get("fingerprint") or "unknown")

    def about(self) -> dict[str, str]:
        """What files say of themselves: text alone."""
        what = {"norms": json.dumps(self.norms)} if not self.ablate else {}
        return {
            "kind": ABLATION if self.ablate else ADDITION if self.changes is None else self.changes.kind,
            "vectors": json.dumps(self.names),
            "layer": str(self.layer),
            "site": self.site,
            **what,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "dct": __version__,
        }


@dataclass(frozen=True)
class Written:
    """What a format has written.

    Attributes:
        load: how the files are opened: Markdown, one snippet for each program, behind the heading.
        facts: name -> value of what is to be known of these files, for the card and the screen.
        remarks: what the user should be told.
        rounding: what the type of the files loses of an edit, as `Saved` has it.
    """

    load: str
    facts: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    rounding: Mapping[str, Any] | None = None


class Format(ABC):
    """A kind of file that another program reads.

    Attributes:
        name: what the user calls it.
        about: one line about it.
        carries: `ADDITION`, `ABLATION` or both.
        several: it holds any number of added vectors, not one alone.
        rank_one: it holds a rank-1 change of weights.
        weights: what it needs the model's weights for, of what it carries.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    carries: ClassVar[tuple[str, ...]] = (ADDITION,)
    several: ClassVar[bool] = False
    rank_one: ClassVar[bool] = False
    weights: ClassVar[tuple[str, ...]] = ()

    def check(self, parcel: Parcel) -> None:  # noqa: B027 (most have nothing of their own to refuse)
        """Refuses what this format cannot hold, before any work.

        Raises:
            DctError: why not, and what to do instead.
        """

    @abstractmethod
    def write(self, parcel: Parcel, folder: Path) -> Written:
        """Writes the files into an empty folder."""


@dataclass(frozen=True)
class Exported:
    """An export.

    Attributes:
        folder: where.
        format: its format's name.
        files: what lies there.
        written: what the format says of it.
    """

    folder: Path
    format: str
    files: list[str]
    written: Written

    def describe(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {
            "folder": str(self.folder),
            "format": self.format,
            "files": self.files,
            "facts": dict(self.written.facts),
            "rounding": self.written.rounding,
        }


def format_named(name: str) -> Format:
    """A format by its name.

    Raises:
        UsageError: there is none of that name.
        DctError: two packages have one of that name, or it cannot be used.
    """
    return REGISTRY.found(name, lambda offer, kind: subclass(offer, kind, Format))()  # type: ignore[type-abstract]


def check_kind(how: Format, rank_one: bool, ablate: bool) -> None:
    """Refuses rank-1 changes where a format holds vectors alone, and to project them out.

    Raises:
        UsageError: what can be done instead.
    """
    if not rank_one:
        return
    able = ", ".join(name for name in REGISTRY.built_in() if format_named(name).rank_one)
    if ablate:
        raise UsageError(
            f"rank-1 changes are no directions to ablate: leave `ablate` out, with {able}", argument="ablate"
        )
    if not how.rank_one:
        raise UsageError(
            f"{how.name} holds vectors of the stream, and these factors are rank-1 changes of weights: choose {able}",
            argument="format",
        )


def check(parcel: Parcel, how: Format) -> None:
    """Refuses what a format cannot hold.

    Raises:
        UsageError: it carries no ablation, or no addition.
        DctError: what the format itself refuses; several vectors where it holds one.
    """
    import torch

    wanted = ABLATION if parcel.ablate else ADDITION
    check_kind(how, parcel.changes is not None, parcel.ablate)
    if parcel.changes is None and wanted not in how.carries:
        others = ", ".join(name for name in REGISTRY.built_in() if wanted in format_named(name).carries)
        cure = "leave `ablate` out, or " if parcel.ablate else "add `ablate`, or "
        raise UsageError(f"{how.name} holds no {wanted}: {cure}choose {others}", argument="format")
    if not parcel.ablate and len(parcel.names) > 1 and not how.several:
        raise UsageError(
            f'{how.name} holds one vector, and {len(parcel.names)} were chosen: pass `aggregate="mean"`, or export '
            "them one by one",
            argument="vector",
        )
    if not parcel.ablate and not bool(torch.isfinite(parcel.vectors).all() and parcel.vectors.norm(dim=1).all()):
        raise DctError("what would be added is zero or not finite: choose another `scale`")
    how.check(parcel)


def export(parcel: Parcel, how: "Format | str", folder: "str | Path", *, replace: bool = False) -> Exported:
    """Writes an export: the format's files, a card and `dct.json`.

    Args:
        folder: a new or empty one.
        replace: it may hold an earlier export, which then goes.

    Raises:
        DctError: the format cannot hold it; the folder is taken or cannot be written.
    """
    from dct.exportcard import card
    from dct.saving.staging import staged

    how = format_named(how) if isinstance(how, str) else how
    folder = Path(folder).expanduser()
    check(parcel, how)
    with _moved_away(folder, replace), staged(folder) as beside:
        inner = beside / "files"
        written = how.write(parcel, inner)
        for path in sorted(inner.iterdir()):
            path.rename(beside / path.name)
        inner.rmdir()
        source = beside / CARD
        if source.exists():  # of the model that was edited: kept, since its terms go on to hold
            source.rename(beside / "README.source.md")
        own = beside / ABOUT
        content = json.loads(own.read_text(encoding="utf-8")) if own.exists() else {}
        content |= {"format": how.name, **parcel.about(), "facts": dict(written.facts), "rounding": written.rounding}
        own.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        source.write_text(card(parcel, how, written), encoding="utf-8")
        there = (path for path in beside.rglob("*") if path.is_file() and path.name[0] != ".")
        files = sorted(path.relative_to(beside).as_posix() for path in there)
    return Exported(folder, how.name, files, written)


@contextmanager
def _moved_away(folder: Path, replace: bool) -> Iterator[None]:
    """Makes room for an export where an earlier one lies, which comes back if the new one fails.

    Raises:
        DctError: what lies there is no export.
    """
    import secrets
    import shutil

    if not folder.is_dir() or not any(folder.iterdir()):
        yield
        return
    if not replace:
        raise DctError(f"{folder} exists and is not empty: name a new folder as `out`, or pass `force` to replace it")
    if not _is_export(folder):
        raise DctError(f"{folder} holds no export, and will not be replaced: name a new folder as `out`")
    aside = folder.resolve().with_name(f".{folder.name[:50]}.old-{secrets.token_hex(4)}")
    folder.rename(aside)
    try:
        yield
    except BaseException:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _is_export(folder: Path) -> bool:
    try:
        content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "format" in content and (folder / CARD).is_file()
