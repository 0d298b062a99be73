"""A Rich console through which nothing reaches the terminal that could act on it, or that it cannot write."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from dct.cli.characters import encodable, visible


class SafeConsole(Console):
    """Rich's console, with all text made fit for the terminal: before it is measured, so that tables stay straight,
    and once more as it is written, so that no way round is left. Styles are Rich's own and stay.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, **options)

    def fit(self, text: str) -> str:
        """The text as it will be shown."""
        return encodable(visible(text), self.encoding)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(self.fit(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None and (fitted := self.fit(segment.text)) != segment.text:
                segment = Segment(fitted, segment.style)
            yield segment
