"""Text as a terminal can be trusted with it: nothing that acts on the terminal, nothing that its encoding lacks.

Prompts, completions, names of models and files, templates and their errors come from anywhere. An escape sequence in
them would be obeyed, and a format character read by nobody: both are written out instead.
"""

import re

HIDDEN = ("Cc", "Cf", "Zl", "Zp", "Cs")
"""Unicode categories that act or do not show: control, format, line and paragraph separators, lone surrogates."""

INVISIBLE = (
    (0x034F, 0x034F),  # combining grapheme joiner
    (0x115F, 0x1160),  # Hangul fillers
    (0x17B4, 0x17B5),  # Khmer inherent vowels
    (0x180B, 0x180F),  # Mongolian selectors
    (0x2065, 0x2065),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0E),  # variation selectors; the next one, FE0F, is part of everyday emoji
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0xE0000, 0xE0FFF),  # tags and more selectors, in which whole messages can be hidden
)
"""Ranges of other categories that Unicode says to show nothing for."""

GLYPHS = {
    "✓": "*",
    "•": "*",
    "●": "*",
    "·": ".",
    "…": "...",
    "→": "->",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "λ": "lambda",
    "≤": "<=",
    "≥": ">=",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    **dict(zip("▁▂▃▄▅▆▇█", "_.:-=+*#", strict=True)),
    **dict(zip("▏▎▍▌▋▊▉▐", "########", strict=True)),
    **dict.fromkeys("─━╌╴╶╸╺═", "-"),
    **dict.fromkeys("│┃║╷╵", "|"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼╞╡╪╔╗╚╝╠╣╦╩╬┏┓┗┛┣┫┳┻╋┡┩╇", "+"),
}
"""What stands for a character of this program's own where the terminal's encoding lacks it; lines and bars by one
character each, since they are drawn to measure."""

_SUSPECT = re.compile(r"[^\n\t -~]")


class _Shown(dict[int, str]):
    """How each character is shown, decided when it is first met."""

    def __missing__(self, code: int) -> str:
        from unicodedata import category

        character = chr(code)
        hidden = category(character) in HIDDEN or any(first <= code <= last for first, last in INVISIBLE)
        shown = character
        if hidden and character not in "\n\t":
            shown = f"\\x{code:02x}" if code < 0x100 else f"<U+{code:04X}>"
        self[code] = shown
        return shown


_SHOWN = _Shown()


def visible(text: str) -> str:
    """The text with whatever acts on a terminal, or shows nothing on it, written out: `\\x1b`, `<U+202E>`. Newlines and
    tabs stay."""
    return text.translate(_SHOWN) if _SUSPECT.search(text) else text


def one_line(text: str) -> str:
    """The same in one line, with any white space as one space."""
    return " ".join(visible(text).split())


def encodable(text: str, encoding: str | None) -> str:
    """The text with a stand-in for every character that the encoding lacks: one of `GLYPHS`, or a backslash escape."""
    if text.isascii():
        return text
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
    except LookupError:
        encoding = "ascii"
    except UnicodeEncodeError:
        pass
    else:
        return text
    return "".join(_stand_in(character, encoding) for character in text)


def _stand_in(character: str, encoding: str) -> str:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return GLYPHS.get(character) or character.encode("ascii", "backslashreplace").decode()
    return character
