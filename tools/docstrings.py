"""An extension of griffe: docstrings are text, in which `hidden_states[t](theta)` is no link."""

import re
from typing import Any

import griffe

LINK = re.compile(r"\[([^\]\n]*)\](?=\()")


class PlainText(griffe.Extension):
    """Escapes what Markdown would take for a link."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = LINK.sub(r"\\[\1\\]", obj.docstring.value)
