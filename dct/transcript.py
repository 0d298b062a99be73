"""A conversation as a file: JSON lines, one a reply, or Markdown. What a model wrote is text in both, never markup."""

import re
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from dct.errors import DctError
from dct.exportcard import plain
from dct.plainjson import dumps
from dct.talk import STEERED, UNSTEERED, Said, Talk
from dct.writing import write_whole

FORMS = (".jsonl", ".md")
"""How names of such files end."""


def save(talk: Talk, path: Path, clean: Callable[[str], str] = str) -> int:
    """Writes the conversation, as the name of the file says.

    Args:
        clean: makes text of a Markdown file fit to be looked at in a terminal.

    Returns:
        How many replies were written.

    Raises:
        DctError: nothing has been said, the name says neither, or the file cannot be written.
    """
    if path.suffix not in FORMS:
        raise DctError(f"{path} is neither JSON lines nor Markdown: end the name in {' or '.join(FORMS)}")
    if not talk.said:
        raise DctError("nothing has been said yet: ask something first")
    if path.suffix == ".md":
        text = markdown(talk, clean)
    else:
        text = "".join(dumps(one, strict=False) + "\n" for one in records(talk, talk.said))
    write_whole(path, text.encode())
    return len(talk.said)


def records(talk: Talk, said: list[Said]) -> Iterator[dict[str, Any]]:
    """Replies as `dct judge` reads them, each with what acted; a steered one with the unsteered one of its turn."""
    for _, turn in groupby(said, key=lambda one: one.prompt):
        pair = list(turn)
        for k, one in enumerate(pair):
            record: dict[str, Any] = {"prompt": one.prompt, "completion": one.completion, "side": one.side}
            if one.side == STEERED and k and pair[k - 1].side == UNSTEERED:
                record["unsteered"] = pair[k - 1].completion
            yield {
                **record,
                "vectors": [{"vector": t.vector, "scale": talk.mixtures.norm(t)} for t in one.push.terms],
                "ablated": list(one.push.ablated),
                "damage": one.damage,
                "system": one.system,
                "finish": one.finish,
            }


def markdown(talk: Talk, clean: Callable[[str], str] = str) -> str:
    """The conversation as a page: what was said stands in fences that it cannot close."""
    R = talk.mixtures.factors.scale
    parts = [f"# A conversation with {plain(talk.lm.name)}\n", f"R = {R:.4g}. Damage is KL on harmless prompts.\n"]
    before: Said | None = None
    for one in talk.said:
        if one.system and (before is None or one.system != before.system):
            parts.append(f"**system**\n\n{_fenced(clean(one.system))}")
        if before is None or one.side != STEERED or before.side != UNSTEERED or before.prompt != one.prompt:
            parts.append(f"## You\n\n{_fenced(clean(one.prompt))}")
        who = UNSTEERED if one.side == UNSTEERED else clean(talk.told(one.push, one.damage))
        end = {"length": ", cut", "stopped": ", stopped"}.get(one.finish, "")
        parts.append(f"**{plain(who)}**{end}\n\n{_fenced(clean(one.completion))}")
        before = one
    return "\n".join(parts)


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}\n"
