"""How a prompt becomes what a model reads: its chat template, and the text's tokens.

A template may drop what it is given, read the clock, open a thought or never end: what it does is checked, and said.
Knows tokenizers and templates; knows nothing of weights, blocks or files other than the tokenizer's.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import escape as escape_html
from transformers import PreTrainedTokenizerBase

from dct.control import control_tokens, encode_escaped
from dct.errors import DctError
from dct.template import StoppedTemplateError, try_template
from dct.thought import closed, left_open
from dct.tokenizer import load_tokenizer

__all__ = ["Chat", "Rendered", "load_tokenizer"]

USER_MARK, SYSTEM_MARK = "Zq7userXk3", "Zq7systemXk3"
"""Stand in for the user's and the system's text, to see what a template makes of whatever it is given."""

PROBE = "Zq7probeXk3"
"""A prompt whose words stand nowhere else."""

_AS_DATA = re.compile(r"""['"]type['"]: ?['"]text['"]""")

Message = dict[str, Any]

Tell = Callable[[str, str], None]
"""Called with the kind of a remark and the remark; whoever it is says each kind once."""


@dataclass(frozen=True)
class Rendered:
    """What a model reads for a prompt.

    Attributes:
        text: all of it.
        given: where in it the system's and the user's own words stand; None where that cannot be told.
        changing: whether the template read the clock or drew at random: another day it says something else.
    """

    text: str
    given: tuple[tuple[int, int], ...] | None
    changing: bool = False


@dataclass(frozen=True)
class Chat:
    """Renders and tokenises the prompts of one model.

    Attributes:
        tokenizer: the model's.
        name: the model, in messages.
        reply_prefix: what the model's reply begins with; None closes a block of thought that the template opens.
        escape_control: read control tokens in a prompt as the text that they are written with.
        tell: remarks go there.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    reply_prefix: str | None
    escape_control: bool
    tell: Tell

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def _template(self) -> str:
        return f"the chat template of {self.name}"

    def render(self, prompt: str, system: str | None = None, *, opened: bool = True) -> Rendered:
        """The text that the model reads: its chat template up to where the answer begins (or, not `opened`, up to the
        end of the user's message), or the prompt itself (with the system text above it) without a template.

        Raises:
            DctError: the template fails, does not end, takes no system message, or leaves out what it is given.
        """
        if not self.has_template:
            text = f"{system}\n\n{prompt}" if system else prompt
            return Rendered(text + (self.reply_prefix or "" if opened else ""), ((0, len(text)),))
        found = self._found(prompt, system, opened)
        if found.changing:
            self.tell(
                "clock",
                f"{self._template} reads the clock or draws at random: prompts are rendered once, and a run keeps what "
                "they were rendered to",
            )
        if not opened:
            return found
        reply = found.text[found.given[-1][1] :] if found.given else found.text
        begun = self.begun(reply, lambda: self._added(found.text, prompt, system))
        return Rendered(found.text + begun, found.given, found.changing)

    def ids(self, rendered: Rendered, behind: str = "") -> list[int]:
        """Token ids of a rendered prompt, with `behind` after it; special tokens come from the template where there is
        one, from the tokenizer elsewhere.

        Raises:
            DctError: control tokens are to be read as text, and cannot be.
        """
        text = rendered.text + behind
        found = control_tokens(self.tokenizer, [text[a:b] for a, b in rendered.given or ()])
        if found:
            shown = ", ".join(found)
            if self.escape_control:
                self.tell("control", f"the prompt holds control tokens {shown}: they are read as text")
                if rendered.given is None:
                    raise DctError(
                        f"{self._template} changes the prompt: its control tokens cannot be told from the template's; "
                        "leave `escape_control` out"
                    )
                return encode_escaped(self.tokenizer, text, rendered.given, special=not self.has_template)
            self.tell(
                "control",
                f"the prompt holds control tokens {shown}: they are read as such; `escape_control` reads them as text",
            )
        return list(self.tokenizer(text, add_special_tokens=not self.has_template)["input_ids"])

    def opening(self) -> list[int]:
        """Token ids that open the model's reply, behind the end of the user's message."""
        if not self.has_template:
            return []
        asked, opened = self.render(PROBE, opened=False).text, self.render(PROBE).text
        # Behind the user's words alone: what stands before them may hold the time of day.
        asked, opened = asked.rpartition(PROBE)[2], opened.rpartition(PROBE)[2]
        if not opened.startswith(asked):
            return []
        return list(self.tokenizer(opened[len(asked) :], add_special_tokens=False)["input_ids"])

    def continuation(self, word: str, system: str | None = None) -> list[int]:
        """Token ids of `word` as the first word of an answer (with the space that plain text puts before it)."""
        rendered = self.render("Hello", system)
        before = self.ids(rendered)
        after = self.ids(rendered, word if self.has_template else " " + word)
        end = self.tokenizer.eos_token_id
        if not self.has_template and end in (before[-1], after[-1]):
            before = [t for t in before if t != end]
            after = [t for t in after if t != end]
        if after[: len(before)] == before and len(after) > len(before):
            return after[len(before) :]
        return list(self.tokenizer(word, add_special_tokens=False)["input_ids"])

    def _found(self, prompt: str, system: str | None, opened: bool) -> Rendered:
        """The prompt rendered in the first of the shapes that the template keeps all words of."""
        failed: FailedTemplateError | None = None
        lost: set[str] = set()
        for shape, (asked, marked) in enumerate(_shapes(prompt, system)):
            try:
                text, changing = self.written(asked, opened)
                frame, _ = self.written(marked, opened)
            except FailedTemplateError as error:
                failed = failed or error
                continue
            if shape and _AS_DATA.search(frame):
                continue  # the list itself was written, as Python or JSON has it
            given = _places(text, frame, prompt, system)
            kept = {mark for mark, words in _marks(prompt, system) if given or holds(text, frame, words)}
            lost |= {mark for mark, _ in _marks(prompt, system)} - kept
            if len(kept) < len(_marks(prompt, system)):
                continue
            if shape:
                self.tell("parts", f"{self._template} takes messages in parts: prompts are given as parts of type text")
            if given is None and not _literal(text, frame, prompt):
                self.tell("changed", f"{self._template} changes the prompts that it is given (their case or spacing)")
            return Rendered(text, given, changing)
        raise self._refusal(prompt, system, failed, lost)

    def _refusal(
        self, prompt: str, system: str | None, failed: "FailedTemplateError | None", lost: set[str]
    ) -> DctError:
        if failed is not None and not lost:
            if system:
                try:
                    self._found(prompt, None, opened=True)
                except DctError:
                    return DctError(f"{self._template} fails: {failed}")
                return DctError(f"{self._template} takes no system message ({failed}); drop `system`")
            return DctError(f"{self._template} fails: {failed}")
        if USER_MARK in lost:
            return DctError(
                f"{self._template} leaves (part of) the prompt out, whether it is given as text or as parts: what the "
                f"model would read is not the prompt {prompt[:60]!r}; mend the template"
            )
        return DctError(f"{self._template} leaves the system message out: drop `system`, or put it into the prompts")

    def written(self, messages: list[Message], opened: bool) -> tuple[str, bool]:
        """What transformers makes of messages, and whether that changes with the time.

        Raises:
            FailedTemplateError: the template raised an error.
            DctError: it ran into a bound.
        """
        # Reasoning models open a scratch pad unless told not to; the first token of the answer is what is scored.
        options: dict[str, Any] = {"add_generation_prompt": opened, "enable_thinking": False}
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items() if token is not None}
        try:
            source = self.tokenizer.get_chat_template()
            context = {"messages": messages, "tools": None, "documents": None, **special, **options}
            trial = try_template(source, context, self._template)
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except StoppedTemplateError:
            raise
        except Exception as error:  # a template can raise whatever Python can
            said = str(error).strip().splitlines()
            raise FailedTemplateError(said[0] if said else type(error).__name__) from error
        return str(text), trial.changing

    def begun(self, reply: str, added: Callable[[], str]) -> str:
        """What is put behind the template's own beginning of a reply.

        Args:
            reply: what the template has written behind the last message.
            added: tells what of it was added for the model to go on from.
        """
        thought = left_open(reply, added)
        if self.reply_prefix is not None:
            still = "" if thought is None or thought[1] in self.reply_prefix else f", within a thought ({thought[0]})"
            if self.reply_prefix:
                self.tell("prefix", f"replies of {self.name} begin with {self.reply_prefix!r}{still}")
            return self.reply_prefix
        if thought is None:
            return ""
        tag, end = thought
        self.tell(
            "thought",
            f"{self._template} opens a thought ({tag}) although it is told not to: it is closed again with {end}, so "
            "that a reply is scored; `reply_prefix` begins replies otherwise",
        )
        return closed(reply, tag, end)

    def _added(self, text: str, prompt: str, system: str | None) -> str:
        """What the template adds for the model to go on from; nothing where that cannot be told."""
        asked = self._found(prompt, system, opened=False).text
        return text[len(asked) :] if text.startswith(asked) else ""


class FailedTemplateError(Exception):
    """A template raised an error."""


def _shapes(prompt: str, system: str | None) -> Iterator[tuple[list[Message], list[Message]]]:
    """The ways to hand over a conversation, each with the same conversation of marks: texts, parts with a type, and
    parts for the user alone."""

    def parts(text: str) -> list[dict[str, str]]:
        """A text as a list of one part with a type."""
        return [{"type": "text", "text": text}]

    def messages(user: Any, above: Any) -> list[Message]:
        """A conversation of one user message, below a system message if there is one."""
        first = [{"role": "system", "content": above}] if above else []
        return [*first, {"role": "user", "content": user}]

    mark = SYSTEM_MARK if system else None
    yield messages(prompt, system), messages(USER_MARK, mark)
    yield messages(parts(prompt), system and parts(system)), messages(parts(USER_MARK), mark and parts(mark))
    if system:
        yield messages(parts(prompt), system), messages(parts(USER_MARK), mark)


def _marks(prompt: str, system: str | None) -> list[tuple[str, str]]:
    return [(USER_MARK, prompt), *([(SYSTEM_MARK, system)] if system else [])]


def forms(text: str) -> list[str]:
    """What templates make of a text without changing its words: stripped, escaped for HTML or JSON."""
    ends = dict.fromkeys((text, text.strip(), text.rstrip(), text.lstrip()))
    escaped = [str(escape_html(t)) for t in ends]
    quoted = [json.dumps(t, ensure_ascii=ascii_only)[1:-1] for t in ends for ascii_only in (False, True)]
    return [t for t in dict.fromkeys((*ends, *escaped, *quoted)) if t]


def _places(text: str, frame: str, prompt: str, system: str | None) -> tuple[tuple[int, int], ...] | None:
    """Where the words that were given stand in a rendered text: where the marks stand in the frame, and all else is
    equal, or all but what comes before or behind (it may hold the time of day). Failing that, where they occur, if only
    once."""
    given = dict(_marks(prompt, system))
    if all(mark in frame for mark in given):
        segments = re.split("(" + "|".join(given) + ")", frame)
        filled = [
            [dict(zip(given, chosen, strict=True)).get(segment, segment) for segment in segments]
            for chosen in itertools.product(*(forms(words) for words in given.values()))
        ]
        for pieces in filled:
            if "".join(pieces) == text:
                return _spans(pieces, 0)
        for pieces in filled:
            if text.endswith("".join(pieces[1:])):
                before = len(text) - len("".join(pieces[1:]))
                return _spans(["", *pieces[1:]], before)
            if text.startswith("".join(pieces[:-1])):
                return _spans(pieces, 0)
    found = []
    for words in given.values():
        form = next((f for f in forms(words) if text.count(f) == 1 and _unmarked(frame).count(f) == 0), None)
        if form is None:
            return None
        found.append((text.index(form), text.index(form) + len(form)))
    found.sort()
    return tuple(found) if all(a[1] <= b[0] for a, b in itertools.pairwise(found)) else None


def _spans(pieces: Sequence[str], start: int) -> tuple[tuple[int, int], ...]:
    """Where every second of some pieces of text stands."""
    ends = list(itertools.accumulate(map(len, pieces), initial=start))
    return tuple(itertools.pairwise(ends))[1::2]


def _unmarked(frame: str) -> str:
    """What a template writes of its own."""
    return frame.replace(USER_MARK, "").replace(SYSTEM_MARK, "")


def _literal(text: str, frame: str, words: str) -> bool:
    """Whether words stand in a rendered text as they are, more often than in the template's own text."""
    return any(text.count(form) > _unmarked(frame).count(form) for form in forms(words))


def holds(text: str, frame: str, words: str) -> bool:
    """The same, case and spacing aside."""
    if _literal(text, frame, words):
        return True
    letters = [_letters(form) for form in forms(words)]
    there, outside = _letters(text), _letters(_unmarked(frame))
    return any(form and there.count(form) > outside.count(form) for form in letters)


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


def same_ids(rows: Sequence[Sequence[int]], texts: Sequence[str]) -> tuple[int, int] | None:
    """The numbers, from 1 on, of the first two different texts that are the same tokens."""
    first: dict[tuple[int, ...], int] = {}
    for number, row in enumerate(rows, start=1):
        earlier = first.setdefault(tuple(row), number)
        if texts[earlier - 1] != texts[number - 1]:
            return earlier, number
    return None
