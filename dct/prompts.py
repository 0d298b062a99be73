"""Prompt sets: where they come from and how they are read. Knows no model and no torch."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dct.aliases import DEMO
from dct.errors import DctError, UsageError
from dct.organism import DEMO_DIR

COLUMNS = ("prompt", "goal", "instruction", "text", "question")
"""Where the prompt stands when no column is named: the first of these, in any case of letters."""

PACKAGED = ("harmful", "harmless", "arithmetic")


@dataclass(frozen=True)
class PromptSet:
    """Prompts in order.

    Attributes:
        texts: the prompts.
        answers: the expected answers, where the set has them; as many as texts, or none.
        origin: how the set was named, so that it can be read again.
    """

    texts: tuple[str, ...]
    answers: tuple[str, ...] = ()
    origin: str = ""

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, n: int | None) -> "PromptSet":
        """The first n prompts (all of them when n is None)."""
        return PromptSet(self.texts[:n], self.answers[:n], self.origin)

    def without(self, texts: Iterable[str]) -> "PromptSet":
        """The prompts that are not among `texts`."""
        seen = set(texts)
        kept = [k for k, text in enumerate(self.texts) if text not in seen]
        answers = tuple(self.answers[k] for k in kept) if self.answers else ()
        return PromptSet(tuple(self.texts[k] for k in kept), answers, self.origin)


def fingerprint(texts: Sequence[str]) -> str:
    """SHA-256 over the prompts in order."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def read(origin: str, column: str | None = None) -> PromptSet:
    """Reads a prompt set.

    Args:
        origin: a packaged set (`harmful`, `harmless`, `arithmetic`), one of the demo model's own (`demo:harmful`), a
            file (.txt one prompt a line, .jsonl, .json, .csv) or `hf:dataset:split:column`.
        column: field that holds the prompt; left out, the first of `COLUMNS` that exists.

    Raises:
        DctError: no such set or file, an unreadable file, no such column, no prompts, or an empty prompt.
    """
    texts, answers = _columns(records(origin), column, origin)
    return PromptSet(tuple(texts), tuple(answers), origin)


def records(origin: str) -> list[Any]:
    """What a prompt set holds, as it stands there: strings, or dictionaries by field.

    Raises:
        DctError: no such set or file, or an unreadable one.
    """
    path = Path(origin)
    if origin.startswith("hf:"):
        return _hugging_face(origin)
    if origin.startswith(f"{DEMO}:") or (origin in PACKAGED and not path.is_file()):
        return _parse(_packaged(origin))
    if path.is_file():
        return _parse(path)
    raise DctError(
        f"no prompt set {origin!r}: give a file (.txt, .jsonl, .json, .csv), one of {', '.join(PACKAGED)}, "
        "hf:dataset:split:column, or a literal --prompt"
    )


def texts_of(rows: Sequence[Any], column: str | None, origin: str) -> list[str]:
    """The prompts of records.

    Raises:
        DctError: no such column, no prompts, or an empty prompt.
    """
    return _columns(rows, column, origin)[0]


def default_origin(model: str, kind: str) -> str:
    """The set that a model is fitted and ranked on when none is named: its own for the demo, the packaged elsewhere."""
    if model == DEMO and (DEMO_DIR / "prompts" / f"{kind}.jsonl").exists():
        return f"{DEMO}:{kind}"
    return kind


def _packaged(origin: str) -> Path:
    here = Path(__file__).parent
    if origin.startswith(f"{DEMO}:"):
        folders = [DEMO_DIR / "prompts"]
    else:
        # Inside the wheel the sets lie in the package; in a source checkout, beside it.
        folders = [here / "prompt_sets", here.parent / "prompts"]
    name = f"{origin.removeprefix(DEMO + ':')}.jsonl"
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise DctError(f"no packaged prompt set {origin!r}")


def _parse(path: Path) -> list[Any]:
    """Records of a file: strings or dictionaries."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        if path.suffix == ".json":
            loaded = json.loads(text)
            if not isinstance(loaded, list):
                raise DctError(f"{path} holds no list of prompts")
            return loaded
        if path.suffix in (".csv", ".tsv"):
            return list(csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, ValueError, csv.Error) as error:
        raise DctError(f"cannot read {path}: {error}") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


def _columns(records: Sequence[Any], column: str | None, origin: str) -> tuple[list[str], list[str]]:
    if not records:
        raise DctError(f"{origin} holds no prompts")
    if all(isinstance(r, str) for r in records):
        return _not_empty(list(records), origin), []
    if not all(isinstance(r, dict) for r in records):
        raise DctError(f"{origin} mixes strings and objects, or holds something that is neither")
    names = [name for name in records[0] if name is not None]  # a row longer than the heading has the rest under None
    if column is None:
        lower = {name.lower(): name for name in reversed(names) if name}
        column = next((lower[c] for c in COLUMNS if c in lower), None)
    if column is None or any(column not in r for r in records):
        raise DctError(
            f"{origin} has no column {column or '/'.join(COLUMNS)}; it has {', '.join(names)}: pass --column"
        )
    texts = _not_empty([str(r[column] if r[column] is not None else "") for r in records], origin)
    answers = [str(r["answer"]) for r in records if r.get("answer") is not None]
    return texts, answers if len(answers) == len(texts) else []


def _not_empty(texts: list[str], origin: str) -> list[str]:
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise DctError(f"prompt {number} of {origin} is empty: remove it or fill it in")
    return texts


def _hugging_face(origin: str) -> list[Any]:
    parts = origin.split(":")
    if len(parts) != 4 or not all(parts):
        raise UsageError(f"a Hugging Face set is hf:dataset:split:column, got {origin!r}")
    try:
        from datasets import load_dataset  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise DctError("hf: sets need the datasets package: pip install 'deep-causal-transcoders[datasets]'") from error
    _, name, split, column = parts
    try:
        return [str(text) for text in load_dataset(name, split=split)[column]]
    except Exception as error:
        raise DctError(f"cannot read {origin}: {error}") from error
