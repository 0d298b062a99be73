"""A picture of a terminal, from real runs: docs/images/tour.svg.

    dct fit
    python /path/to/tools/picture.py tour.svg "dct rank --top 5 --scales 1,1.5" "dct steer --rank 1 --n 1"

Each command runs in a terminal of its own. Its last screen is drawn: what was overwritten (progress bars, completions
while they grew) is gone, as it is for whoever watches. Fonts are the reader's own; nothing comes from the network.
"""

import argparse
import fcntl
import io
import os
import pty
import re
import shlex
import struct
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

COLUMNS = 92

THEME = TerminalTheme(
    background=(24, 26, 34),
    foreground=(216, 219, 226),
    normal=[
        (60, 64, 76),
        (235, 111, 119),
        (126, 201, 143),
        (229, 192, 123),
        (110, 168, 232),
        (196, 148, 232),
        (102, 204, 204),
        (216, 219, 226),
    ],
)

FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"

ESCAPE = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|\r|\n")


def output(command: str) -> str:
    """Everything that a command sends to its terminal, escapes included."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", COLUMNS=str(COLUMNS), LINES="60")
        words = shlex.split(command)
        os.execvp(words[0], words)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    sent = io.BytesIO()
    try:
        while some := os.read(terminal, 65536):
            sent.write(some)
    except OSError:  # the terminal is gone once the command has ended
        pass
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"{command}: status {status}")
    return sent.getvalue().decode()


def screen(sent: str) -> list[str]:
    """The lines that are left in the end, with their colours. Lines are only ever written or erased whole."""
    lines, row, at = [""], 0, 0
    for escape in ESCAPE.finditer(sent):
        lines[row] += sent[at : escape.start()]
        at = escape.end()
        number, kind = escape[1], escape[2]
        if escape[0] == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif kind == "A":
            row -= int(number or 1)
        elif kind == "K":
            lines[row] = ""
        elif kind == "m":
            lines[row] += escape[0]
    lines[row] += sent[at:]
    return lines


def draw(commands: list[str], leave_out: str | None) -> str:
    """The picture: each command behind a prompt, then what it printed."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for k, command in enumerate(commands):
        console.print(*([""] if k else []), Text.assemble(("$ ", "green"), (command, "bold")), sep="\n")
        lines = screen(output(command))
        kept = [line for line in lines if leave_out is None or not re.search(leave_out, Text.from_ansi(line).plain)]
        for line in "\n".join(kept).strip("\n").split("\n"):
            console.print(Text.from_ansi(line), no_wrap=True, crop=True, highlight=False)
    drawn = console.export_svg(title="", theme=THEME, font_aspect_ratio=0.6)
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    return re.sub(r"font-family: [^;]*;", f"font-family: {FONTS};", drawn)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("commands", nargs="+")
    parser.add_argument("--leave-out", metavar="REGEX", help="lines to leave out: those that name run and model again")
    asked = parser.parse_args()
    asked.picture.write_text(draw(asked.commands, asked.leave_out) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
