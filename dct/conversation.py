"""A conversation of several turns as what a model reads: through its chat template, with what that does checked.

One question, with or without a system message, is read as everywhere else (`LanguageModel.encode`).
"""

import re
from collections.abc import Sequence

from dct.chat import Chat, FailedTemplateError, Message, Rendered, forms, holds
from dct.errors import DctError
from dct.model import LanguageModel

Turn = tuple[str, str]
"""Who speaks (`system`, `user` or `assistant`), and what is said."""


def conversation(lm: LanguageModel, turns: Sequence[Turn]) -> list[int]:
    """Token ids of a conversation, up to where the model's next reply begins.

    Args:
        turns: the last one is the user's; a system message comes first.

    Raises:
        DctError: the template takes no such conversation or leaves words of it out; several turns and no template.
    """
    roles = [role for role, _ in turns]
    if roles in (["user"], ["system", "user"]):
        system = turns[0][1] if len(turns) == 2 else None
        return lm.encode([turns[-1][1]], system)[0]
    if not lm.has_chat_template:
        raise DctError(f"{lm.name} has no chat template, and knows one question at a time: send one user message")
    return lm.chat.ids(rendered(lm.chat, turns))


def rendered(chat: Chat, turns: Sequence[Turn]) -> Rendered:
    """The text of a conversation.

    Raises:
        DctError: as `conversation`.
    """
    marks = [f"Zq7turn{k}Xk3" for k in range(len(turns))]
    failed: FailedTemplateError | None = None
    for in_parts in (False, True):
        asked = _messages(turns, in_parts)
        try:
            text, changing = chat.written(asked, True)
            marked = [(role, mark) for (role, _), mark in zip(turns, marks, strict=True)]
            frame, _ = chat.written(_messages(marked, in_parts), True)
        except FailedTemplateError as error:
            failed = failed or error
            continue
        given = _places(text, frame, marks, [words for _, words in turns])
        # A template may take the thoughts out of earlier replies.
        kept = given or all(holds(text, _bare(frame, marks), words) for role, words in turns if role != "assistant")
        if not kept:
            continue
        reply = text[given[-1][1] :] if given else text
        begun = chat.begun(reply, lambda asked=asked, text=text: _added(chat, asked, text))  # type: ignore[misc]
        return Rendered(text + begun, given, changing)
    why = f" ({failed})" if failed is not None else ": it leaves words of it out"
    raise DctError(f"the chat template of {chat.name} does not take this conversation{why}")


def _messages(turns: Sequence[Turn], in_parts: bool) -> list[Message]:
    return [
        {"role": role, "content": [{"type": "text", "text": words}] if in_parts else words} for role, words in turns
    ]


def _added(chat: Chat, asked: list[Message], text: str) -> str:
    """What the template adds for the model to go on from."""
    closed, _ = chat.written(asked, False)
    return text[len(closed) :] if text.startswith(closed) else ""


def _bare(frame: str, marks: Sequence[str]) -> str:
    return re.sub("|".join(marks), "", frame)


def _places(text: str, frame: str, marks: Sequence[str], words: Sequence[str]) -> tuple[tuple[int, int], ...] | None:
    """Where the words stand in a text: where the marks stand in the frame, each once and in order, all else equal."""
    between = re.split("|".join(marks), frame)
    if re.findall("|".join(marks), frame) != list(marks) or not text.startswith(between[0]):
        return None
    found, at = [], len(between[0])
    for said, behind in zip(words, between[1:], strict=True):
        fits = (form for form in forms(said) if text.startswith(form + behind, at))
        form = next(fits, None)
        if form is None:
            return None
        found.append((at, at + len(form)))
        at += len(form) + len(behind)
    return tuple(found) if at == len(text) else None
