"""Help pages, in the look of Typer's own: drawn here because importing Rich takes longer than all else that help does.

Knows no command: `app` hands over names and texts.
"""

import os
import sys
from collections.abc import Sequence

from dct.cli.characters import encodable

WIDEST = 120
"""Columns of a page, at most: longer lines are hard to read."""

LEFT = 34
"""Columns of the names of options, at most; what is longer has its text begin a line further down."""

BOLD, CYAN, YELLOW, DIM = "1", "1;36", "1;33", "2"

Words = list[tuple[str, str]]
"""Words with the number of their style, empty for none."""


def page(usage: str, text: str, panels: Sequence[tuple[str, Sequence[tuple[str, str]]]], end: str = "") -> str:
    """A help page: usage, what the command does, and panels of names and their texts.

    Args:
        usage: behind "Usage:".
        text: paragraphs, with empty lines between.
        panels: a title and rows of (names with the kind of value, text with extras in brackets at its end).
        end: a last line.
    """
    width, styled = _width(), _styled()
    paragraphs = [[("Usage:", YELLOW), *((word, BOLD) for word in usage.split())]]
    paragraphs += [[(word, "") for word in block.split()] for block in text.split("\n\n") if block.strip()]
    drawn = [line for words in paragraphs for line in ["", *_paragraph(words, width, styled)]] + [""]
    for title, rows in panels:
        drawn += _panel(title, rows, width, styled) if rows else []
    if end:
        drawn += ["", *_paragraph([(word, "") for word in end.split()], width, styled)]
    return encodable("\n".join(line.rstrip() for line in drawn), getattr(sys.stdout, "encoding", None)) + "\n"


def _panel(title: str, rows: Sequence[tuple[str, str]], width: int, styled: bool) -> list[str]:
    left = min(LEFT, max(len(names) for names, _ in rows))
    room = width - left - 6
    drawn = [_edge(f"╭─ {title} ", "╮", width, styled)]
    for names, text in rows:
        beside = _wrapped(_text_words(text), room) or [[]]
        if len(names) > left:
            beside.insert(0, [])
        for number, words in enumerate(beside):
            head = _names(names) if number == 0 else []
            used, told = _length(head), _length(words)
            gap = " " * max(1, left - used + 2) if used <= left else ""
            body = _joined(head, styled) + gap + _joined(words, styled)
            fill = " " * max(0, width - 4 - used - len(gap) - told)
            bar = _paint("│", DIM, styled)
            drawn.append(f"{bar} {body}{fill} {bar}")
    return [*drawn, _edge("╰", "╯", width, styled)]


def _edge(begin: str, end: str, width: int, styled: bool) -> str:
    return _paint(begin + "─" * (width - len(begin) - 1) + end, DIM, styled)


def _names(names: str) -> Words:
    """Names of an option in one colour, the kind of its value in another."""
    return [
        (word, CYAN if word.startswith("-") or (word.islower() and "<" not in word) else YELLOW)
        for word in names.split()
    ]


def _text_words(text: str) -> Words:
    """The words of a text; the extras in brackets behind it (default, range) are dim."""
    told, _, extras = text.rpartition("  [") if text.endswith("]") else (text, "", "")
    words: Words = [(word, "") for word in told.split()]
    return words + [(word, DIM) for word in f"[{extras}".split() if extras]


def _paragraph(words: Words, width: int, styled: bool) -> list[str]:
    return [f" {_joined(line, styled)}" for line in _wrapped(words, width - 2)]


def _wrapped(words: Words, room: int) -> list[Words]:
    lines: list[Words] = []
    for word in words:
        if lines and _length(lines[-1]) + 1 + len(word[0]) <= room:
            lines[-1].append(word)
        else:
            lines.append([word])
    return lines


def _length(words: Words) -> int:
    return sum(len(word) for word, _ in words) + max(0, len(words) - 1)


def _joined(words: Words, styled: bool) -> str:
    return " ".join(_paint(word, style, styled) for word, style in words)


def _paint(text: str, style: str, styled: bool) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if styled and style and text else text


def _width() -> int:
    """Columns of the terminal, as far as a page uses them."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return max(60, min(WIDEST, int(columns[:6])))
    for stream in (sys.__stdout__, sys.__stderr__, sys.__stdin__):
        try:
            return max(60, min(WIDEST, os.get_terminal_size(stream.fileno()).columns))  # type: ignore[union-attr]
        except (AttributeError, ValueError, OSError):
            continue
    return 80


def _styled() -> bool:
    out = sys.stdout
    return out is not None and out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
