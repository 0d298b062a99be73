"""Blocks of thought that a chat template opens for the model: how they look, and how they are closed again."""

import re
from collections.abc import Callable

_NAMES = r"(?:inner_?)?(?:think(?:ing)?|thoughts?|reasoning|reason|reflection|scratch_?pad|analysis|chain_of_thought)"

_TAG = re.compile(
    rf"<(?P<bar>\|?)(?P<before>(?:\w+[:_])?){_NAMES}(?P<after>(?:_\w+)?)(?P=bar)>"
    rf"|\[{_NAMES}\]|◁{_NAMES}▷|<\|channel>thought|<\|channel\|>analysis<\|message\|>|<unused94>thought"
    r"|<\|inner_prefix\|>",
    re.IGNORECASE,
)
"""What opens a block of thought, in the ways that models have."""

_CLOSED_BY = {
    "<|channel>thought": "<channel|>",
    "<|channel|>analysis<|message|>": "<|end|><|start|>assistant<|channel|>final<|message|>",
    "<unused94>thought": "<unused95>",
    "<|inner_prefix|>": "<|inner_suffix|>",
}
"""Ends that do not look like their beginning."""

_SWAPPED = (("START", "END"), ("Start", "End"), ("start", "end"), ("BEGIN", "END"), ("Begin", "End"), ("begin", "end"))


def closing(tag: str) -> str:
    """What ends a block that `tag` begins; empty where the tag itself is an end."""
    if tag.lower() in _CLOSED_BY:
        return _CLOSED_BY[tag.lower()]
    if re.search(r"(?:^|[\W_])end(?:[\W_]|$)", tag, re.IGNORECASE):
        return ""
    for begin, end in _SWAPPED:
        if re.search(rf"(?<![A-Za-z]){begin}(?![A-Za-z])", tag):
            return tag.replace(begin, end)
    return re.sub(r"^(<\|?|\[|◁)", r"\1/", tag)


def left_open(reply: str, is_opening: Callable[[], str]) -> tuple[str, str] | None:
    """The tag of a block of thought that is not closed in what begins a reply, and what closes it.

    Args:
        reply: what stands behind the user's words.
        is_opening: gives the part of `reply` that the template adds for the model to go on from, where that is known:
            behind a tag in it, words of the thought itself may stand.
    """
    found = None
    for match in _TAG.finditer(reply):
        end = closing(match[0])
        if end:
            found = (match, end) if end not in reply[match.end() :] else None
    if found is None:
        return None
    match, end = found
    if reply[match.end() :].strip() and match.start() < len(reply) - len(is_opening()):
        return None  # words about such tags, not the beginning of a thought
    return match[0], end


def closed(reply: str, tag: str, end: str) -> str:
    """What to put behind a reply's beginning, so that the thought that it opens is over and empty.

    Blocks between `<tag>` and `</tag>` get the blank lines that the non-thinking form of their templates has.
    """
    if not re.fullmatch(r"<[\w:]+>", tag):
        return end
    inside = reply[reply.rindex(tag) + len(tag) :]
    blank = "\n" * max(0, 2 - (len(inside) - len(inside.rstrip("\n"))))
    return f"{blank}{end}\n\n"
