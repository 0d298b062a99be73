"""Files of prompts, read record by record: strings, or dictionaries by field. Whatever would be misread is refused.

Knows the formats; knows nothing of which field is the prompt (see `prompts`), of models and of torch.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dct.errors import DctError

MOST_BYTES = 256 * 2**20
"""A file of prompts that is larger is refused rather than read into memory."""

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def parse(path: Path) -> list[Any]:
    """Records of a file: .jsonl, .json, .csv or .tsv by its ending (in any case of letters), else a line each.

    Raises:
        DctError: it cannot be read, is too large, is no text, or is not what its ending says.
    """
    text = _text(path)
    ending = path.suffix.lower()
    if ending in JSON_LINES:
        return _json_lines(path, text)
    if ending == ".json":
        return _json(path, text)
    if ending in TABLES:
        return _table(path, text, TABLES[ending])
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if lines and all(_is_object(line) for line in lines):
        raise DctError(f"{path} holds objects of JSON, a line each, and is named as plain text: call it .jsonl")
    return lines


def _text(path: Path) -> str:
    """A file's text, in UTF-8, or what the mark at its beginning says; every kind of line end made one."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DctError(
                f"cannot read {path}: it has {size / 2**20:.0f} MB, and prompts are read whole, up to "
                f"{MOST_BYTES // 2**20} MB; cut out the prompts that you need"
            )
        content = path.read_bytes()
        coding = next((coding for mark, coding in _MARKS if content.startswith(mark)), "utf-8")
        text = content.decode(coding)
    except (OSError, ValueError) as error:
        raise DctError(f"cannot read {path}: {_reason(error)}") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DctError(
            f"cannot read {path}: line {line} holds a NUL character, which no text has; save it as UTF-8 text"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"byte {error.start} (0x{byte:02x}) is not {error.encoding} text: save it as UTF-8"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def _json_lines(path: Path, text: str) -> list[Any]:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(_loaded(line))
        except (ValueError, RecursionError) as error:
            cure = ""
            if number == 1 and line.strip() in ("[", "{"):
                cure = "; one value over several lines is .json"
            raise DctError(f"cannot read {path}: line {number}: {_json_reason(error)}{cure}") from error
    return records


def _json(path: Path, text: str) -> list[Any]:
    try:
        loaded = _loaded(text)
    except (ValueError, RecursionError) as error:
        extra = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data"
        cure = "; one value a line is .jsonl" if extra else ""
        where = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
        raise DctError(f"cannot read {path}: {where}{_json_reason(error)}{cure}") from error
    if not isinstance(loaded, list):
        raise DctError(f"{path} holds no list of prompts but {kind(loaded)}")
    return loaded


def _loaded(text: str) -> Any:
    """JSON in which no name stands twice: the later value would silently win."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object whose keys are all different."""
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
        return found

    return json.loads(text, object_pairs_hook=once)


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _is_object(line: str) -> bool:
    if not (line.startswith("{") and line.endswith("}")):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _table(path: Path, text: str, delimiter: str) -> list[Any]:
    rows = [(line, row) for line, row in _rows(path, text, delimiter) if row]
    if not rows:
        return []
    heading = rows[0][1]
    twice = [name for name in heading if name.strip() and heading.count(name) > 1]
    if twice:
        raise DctError(f"{path} has two columns named {twice[0]!r}: rename one")
    if len(rows) == 1:
        raise DctError(f"cannot read {path}: behind its heading ({', '.join(heading)}) it holds no prompts")
    records: list[dict[str | None, Any]] = []
    for _, row in rows[1:]:
        record: dict[str | None, Any] = dict(zip(heading, [*row, *[None] * (len(heading) - len(row))], strict=False))
        if len(row) > len(heading):
            record[None] = row[len(heading) :]  # refused, once it is known that this is the right column
        records.append(record)
    return records


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows with the lines that they begin on."""
    limit = csv.field_size_limit(max(len(text), 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begins = 1
    try:
        for row in reader:
            yield begins, row
            begins = reader.line_num + 1
    except csv.Error as error:
        line = _open_quote(text, delimiter, begins)
        if line is not None:
            raise DctError(
                f"cannot read {path}: the quote that opens on line {line} is not closed before the end of the file, or "
                "not where its field ends"
            ) from error
        raise DctError(f"cannot read {path}: line {begins}: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _open_quote(text: str, delimiter: str, begins: int) -> int | None:
    """The line of the quote, in the row that begins on a line, that nothing closes as it should."""
    line, at_start, opened = begins, True, None
    position = _offset(text, begins)
    while position < len(text):
        c, following = text[position], text[position + 1 : position + 2]
        if opened is None:
            if c == '"' and at_start:
                opened = line
        elif c == '"':
            if following == '"':
                position += 1
            elif following in ("", "\n", delimiter):
                opened = None
            else:
                return opened
        at_start = opened is None and c in (delimiter, "\n")
        line += c == "\n"
        position += 1
    return opened


def _offset(text: str, line: int) -> int:
    """Where a line begins."""
    position = 0
    for _ in range(line - 1):
        position = text.index("\n", position) + 1
    return position


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {dict: "an object", list: "a list", int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), type(value).__name__)
