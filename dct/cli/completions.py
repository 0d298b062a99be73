"""Completions side by side, and the effect and damage of what changed them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dct.cli.terminal import Terminal, escape, shown

if TYPE_CHECKING:
    from rich.table import Table

    from dct.generation import OnToken
    from dct.scoring import Effect
    from dct.wordpair import Words


@contextmanager
def growing(terminal: Terminal, prompt: str, names: list[str]) -> Iterator["OnToken | None"]:
    """A table that grows with the completions on a terminal, and makes room for the finished one."""
    if not terminal.live:
        yield None
        return
    from rich.live import Live

    rows = [""] * len(names)
    with Live(console=terminal.console, auto_refresh=False, transient=True) as live:

        def grow(row: int, so_far: str) -> None:
            rows[row] = so_far
            live.update(completions_table(prompt, names, rows), refresh=True)

        yield grow


def effect_table(words: "Words", effects: list[tuple[str, "Effect"]]) -> "Table":
    """Effect and damage of each, the model left alone first."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for heading in (f"{escape(words.shown_positive)} − {escape(words.shown_negative)}", "flipped", "damage (KL)"):
        table.add_column(heading, justify="right")
    for name, effect in effects:
        kl = "–" if effect.kl is None else f"{effect.kl:.3f}"
        table.add_row(name, f"{effect.score:+.2f}", f"{effect.flipped:.0%}", kl)
    return table


def planned(prompts: int, times: int) -> str:
    """What is to be completed, in words."""
    often = {1: "once", 2: "twice"}.get(times, f"{times} times")
    return f"1 prompt, completed {often}" if prompts == 1 else f"{prompts} prompts, each completed {often}"


def completions_table(prompt: str, names: list[str], texts: list[str]) -> "Table":
    """Completions of a prompt, the untouched model's first: side by side, or one below the other if they are many."""
    table = _frame(prompt)
    if len(names) <= 3:
        for k, name in enumerate(names):
            table.add_column(name, ratio=1, style="dim" if k == 0 else "", overflow="fold")
        table.add_row(*(shown(text) for text in texts))
        return table
    table.add_column("", no_wrap=True)
    table.add_column("completion", ratio=1, overflow="fold")
    for k, (name, text) in enumerate(zip(names, texts, strict=True)):
        table.add_row(name, shown(text), style="dim" if k == 0 else "")
    return table


def _frame(prompt: str) -> "Table":
    from rich import box
    from rich.table import Table

    return Table(
        title=f"[bold]{escape(prompt)}[/bold]",
        title_justify="left",
        expand=True,
        show_lines=True,
        header_style="bold",
        box=box.ROUNDED,
    )
