"""Prompt sets: where they come from and how they are read. Knows no model and no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dct.aliases import DEMO
from dct.errors import DctError, UsageError
from dct.organism import DEMO_DIR
from dct.prompt_files import TABLES, kind, parse

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

    @property
    def repeated(self) -> str | None:
        """Which prompts stand there more than once, in words; None where none does."""
        numbers: dict[str, list[int]] = {}
        for number, text in enumerate(self.texts, start=1):
            numbers.setdefault(text.strip(), []).append(number)
        twice = [found for found in numbers.values() if len(found) > 1]
        if not twice:
            return None
        shown = "; ".join(" and ".join(map(str, found[:4])) for found in twice[:3])
        more = f", and {len(twice) - 3} more" if len(twice) > 3 else ""
        return f"prompts of {self.origin or 'the set'} are the same and count as often: {shown}{more}"

    def without(self, texts: Iterable[str]) -> "PromptSet":
        """The prompts that are not among `texts`."""
        seen = set(texts)
        kept = [k for k, text in enumerate(self.texts) if text not in seen]
        answers = tuple(self.answers[k] for k in kept) if self.answers else ()
        return PromptSet(tuple(self.texts[k] for k in kept), answers, self.origin)


def fingerprint(texts: Sequence[str]) -> str:
    """SHA-256 over the prompts in order."""
    import hashlib

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
        return parse(_packaged(origin))
    if path.is_file():
        return parse(path)
    if path.is_dir():
        raise DctError(f"no prompt set {origin!r}: it is a folder; name a file in it")
    if path.exists():
        raise DctError(f"no prompt set {origin!r}: it is a pipe or device; name a file")
    raise DctError(
        f"no prompt set {origin!r}: give a file (.txt, .jsonl, .json, .csv), one of {', '.join(PACKAGED)}, "
        "hf:dataset:split:column, or a literal `prompt`"
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


def _columns(records: Sequence[Any], column: str | None, origin: str) -> tuple[list[str], list[str]]:
    if not records:
        raise DctError(f"{origin} holds no prompts")
    if all(isinstance(r, str) for r in records):
        return _checked(list(records), origin), []
    for number, record in enumerate(records, start=1):
        if not isinstance(record, str | dict):
            raise DctError(
                f"{origin} mixes strings and objects, or holds something that is neither: record {number} is "
                f"{kind(record)}"
            )
    if not all(isinstance(r, dict) for r in records):
        first = next(n for n, r in enumerate(records, start=1) if type(r) is not type(records[0]))
        raise DctError(f"{origin} mixes strings and objects: record {first} is {kind(records[first - 1])}")
    name = _column(records, column, origin)
    for number, record in enumerate(records, start=1):
        if None in record:
            raise DctError(
                f"row {number} of {origin} has more fields than the heading: put quotes around a prompt with "
                "delimiters in it"
            )
    texts = _checked([r[name] for r in records], origin)
    answers = [_answer(r, number, origin) for number, r in enumerate(records, start=1) if r.get("answer") is not None]
    return texts, answers if len(answers) == len(texts) else []


def _column(records: Sequence[dict[Any, Any]], column: str | None, origin: str) -> str:
    """The field that holds the prompt."""
    names = [name for name in records[0] if name is not None]  # a row longer than the heading has the rest under None
    if column is None:
        lower = {name.strip().lower(): name for name in reversed(names) if name}
        column = next((lower[c] for c in COLUMNS if c in lower), None)
    lacking = [] if column is None else [n for n, r in enumerate(records, start=1) if column not in r]
    if column is not None and not lacking:
        return column
    if lacking and len(lacking) < len(records) and column in names:
        raise DctError(
            f"{origin} has no column {column} in record {lacking[0]}; it has {_listed(records[lacking[0] - 1])}: pass "
            "`column`"
        )
    table = " (the first line of a table is its heading)" if origin.lower().endswith(tuple(TABLES)) else ""
    raise DctError(
        f"{origin} has no column {column or '/'.join(COLUMNS)}; it has {_listed(names)}: pass `column`{table}"
    )


def _listed(names: Iterable[Any]) -> str:
    shown = ", ".join(str(name) for name in names if name is not None)
    return shown if len(shown) <= 200 else f"{shown[:200]}…"


def _checked(values: Sequence[Any], origin: str) -> list[str]:
    """The values, if all of them are texts that can be read."""
    for number, value in enumerate(values, start=1):
        if value is None:
            raise DctError(f"prompt {number} of {origin} is empty: it is null; remove it or fill it in")
        if not isinstance(value, str):
            raise DctError(f"prompt {number} of {origin} is {kind(value)} and no text: {str(value)[:60]}")
        if not value.strip():
            raise DctError(f"prompt {number} of {origin} is empty: remove it or fill it in")
        if "\0" in value:
            raise DctError(f"prompt {number} of {origin} holds a NUL character: take it out")
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise DctError(f"prompt {number} of {origin} holds half of a character (a lone surrogate): mend it")
    return list(values)


def _answer(record: dict[str, Any], number: int, origin: str) -> str:
    answer = record["answer"]
    if isinstance(answer, bool | dict | list):
        raise DctError(f"the answer of prompt {number} of {origin} is {kind(answer)}: give a text or a number")
    return str(answer)


def _hugging_face(origin: str) -> list[Any]:
    parts = origin.split(":")
    if len(parts) != 4 or not all(parts):
        raise UsageError(f"a Hugging Face set is hf:dataset:split:column, got {origin!r}", argument="prompts")
    try:
        from datasets import load_dataset  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise DctError("hf: sets need the datasets package: pip install 'deep-causal-transcoders[datasets]'") from error
    _, name, split, column = parts
    try:
        return list(load_dataset(name, split=split)[column])
    except Exception as error:
        raise DctError(f"cannot read {origin}: {error}") from error
