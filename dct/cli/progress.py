"""A progress bar with its stage, rate and time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dct.cli.characters import one_line

Advance = Callable[[str, int, int], None]
"""Called with the stage, what is done and what there is to do."""


@contextmanager
def bar(console: Console, what: str, unit: str, spinner: str) -> Iterator[Advance]:
    """A bar that goes when the context ends."""
    columns = (
        SpinnerColumn(spinner),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        _Rate(unit),
        TimeElapsedColumn(),
        TextColumn("[dim]left[/dim]"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(one_line(what), total=1)

        def advance(stage: str, done: int, total: int) -> None:
            text = one_line(f"{what}: {stage}" if stage else what)
            shown.update(task, description=text, completed=done, total=max(total, 1))

        yield advance


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g} {self.unit}/s" if speed else "", style="dim")
