"""A hook of mkdocs: formulas become MathML, which browsers show without a script.

`pymdownx.arithmatex` marks them; pages keep LaTeX, which GitHub shows too.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

MARKED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with each page's HTML."""
    return MARKED.sub(_mathml, content)


def _mathml(marked: re.Match[str]) -> str:
    display = "block" if marked[2] == "[" else "inline"
    tag = marked[1]
    return f'<{tag} class="formula">{convert(html.unescape(marked[3]).strip(), display=display)}</{tag}>'
