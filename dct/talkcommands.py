"""What may be typed in a conversation beside questions: commands, what they do, and how their words are completed.

Knows no terminal: a command answers with text, or with an error of one line.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dct.candidates import candidates
from dct.conversation import conversation
from dct.errors import DctError
from dct.mixture import Term
from dct.talk import Push, Talk
from dct.transcript import save

LISTED = 10
"""Lines of a list, at most."""

VECTOR = re.compile(r"-?[0-9]{1,9}")
WHOLE = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Command:
    """How a command is written.

    Attributes:
        usage: its arguments; brackets around what may be left out.
        about: what it does.
    """

    usage: str
    about: str


COMMANDS = {
    "vector": Command("N [C]", "steer with vector N alone, at C R or as the ranking found"),
    "rank": Command("[K [C]]", "with the K-th of the ranking; without K, list them"),
    "kind": Command("[K [C]]", "with the most typical of kind K; without K, list the kinds"),
    "add": Command("N [C]", "add vector N to what acts; C = 0 takes it away"),
    "scale": Command("C", "change the scale to C R; -1 is the opposite"),
    "ablate": Command("N ...", "project vectors out of the weights instead"),
    "off": Command("", "let nothing act; restore the weights"),
    "damage": Command("", "measure what that breaks: KL on harmless prompts"),
    "ab": Command("[on|off]", "both sides, or the steered one alone"),
    "system": Command("[TEXT]", "set the system message; - is none; without TEXT, show it"),
    "new": Command("", "begin another conversation: both sides forget"),
    "save": Command("FILE", "write the conversation to FILE.jsonl or FILE.md"),
    "help": Command("", "this list"),
    "quit": Command("", "leave; so does Ctrl+D"),
}
"""By name, in the order in which they are listed."""


class Commands:
    """Does what is typed to a conversation.

    Args:
        talk: the conversation.
        clean: makes text of a saved page fit to be looked at in a terminal.

    Attributes:
        left: it was asked to quit.
    """

    def __init__(self, talk: Talk, clean: Callable[[str], str] = str) -> None:
        self.talk, self.clean, self.left = talk, clean, False
        self._files: set[Path] = set()
        self._vectors, _ = candidates(talk.mixtures.factors)

    def obey(self, line: str) -> str:
        """Does what a line that begins with a slash says, and tells what has become of it.

        Raises:
            DctError: there is no such command, or it cannot be done; all stays as it was.
        """
        name, _, rest = line.strip().removeprefix("/").partition(" ")
        if name not in COMMANDS:
            raise DctError(f"no command /{name[:40]}: /help lists them, and // at the beginning sends a slash")
        return str(getattr(self, f"_{name}")(rest.strip()))

    # --- what acts ----------------------------------------------------------------------------------------------------

    def _vector(self, rest: str) -> str:
        name, scale = self._named("vector", rest, VECTOR)
        return self._push(Push((Term(self._known(name), scale),)))

    def _rank(self, rest: str) -> str:
        ranked = [str(one["vector"]) for one in self.talk.guide.ranked]
        if not rest and ranked:
            return _listed([f"{k:>3}  vector {name}{self._words(name)}" for k, name in enumerate(ranked, 1)])
        place, scale = self._named("rank", rest or "1", WHOLE)
        return self._push(Push((Term(self.talk.mixtures.at(int(place)), scale),)))

    def _kind(self, rest: str) -> str:
        guide = self.talk.guide
        if not guide.kinds:
            raise DctError("the run's kinds are not known: `dct rank` finds them, or choose a vector: /vector 0")
        if not rest:
            return _listed([f"{k:>3}  {guide.kind(k)}" for k in range(len(guide.kinds))], 2 * LISTED)
        number, scale = self._named("kind", rest, WHOLE)
        if int(number) >= len(guide.kinds):
            raise DctError(f"kind {number} is out of range: /kind lists those from 0 to {len(guide.kinds) - 1}")
        if scale is None and guide.kinds_scale is not None:
            scale = guide.kinds_scale / self.talk.mixtures.factors.scale
        return self._push(Push((Term(guide.kinds[int(number)][0], scale),)))

    def _add(self, rest: str) -> str:
        name, scale = self._named("add", rest, VECTOR)
        name, push = self._known(name), self.talk.push
        kept = tuple(term for term in push.terms if term.vector != name)
        return self._push(replace(push, terms=kept if scale == 0 else (*kept, Term(name, scale))))

    def _scale(self, rest: str) -> str:
        scale, push = self._number("scale", rest), self.talk.push
        if not push.terms:
            raise DctError("no vector is added, so there is nothing to scale: add one first, such as /vector 0")
        return self._push(replace(push, terms=tuple(replace(term, scale=scale) for term in push.terms)))

    def _ablate(self, rest: str) -> str:
        names = rest.replace(",", " ").split()
        if not names or not all(VECTOR.fullmatch(name) for name in names):
            raise _misused("ablate")
        return self._push(Push(ablated=tuple(dict.fromkeys(self._known(name) for name in names))))

    def _off(self, _: str) -> str:
        return self._push(Push())

    def _damage(self, _: str) -> str:
        self.talk.measure()
        return self.talk.label()

    def _push(self, push: Push) -> str:
        self.talk.change(push)
        return self.talk.label()

    # --- the conversation ---------------------------------------------------------------------------------------------

    def _ab(self, rest: str) -> str:
        if rest not in ("", "on", "off"):
            raise _misused("ab")
        self.talk.both = not self.talk.both if not rest else rest == "on"
        if not self.talk.both:
            return "the steered side alone"
        missed = self.talk.behind()
        told = f"both sides; the unsteered one has not heard {missed} of the questions, /new lets both begin again"
        return told if missed else "both sides"

    def _system(self, rest: str) -> str:
        if rest:
            wanted = None if rest == "-" else rest
            turns = [("system", wanted)] if wanted else []
            conversation(self.talk.lm, [*turns, ("user", "Hello")])  # a template may take no system message
            self.talk.system = wanted
        return f"system: {self.talk.system}" if self.talk.system else "no system message"

    def _new(self, _: str) -> str:
        self.talk.said.clear()
        return "a new conversation: both sides have forgotten"

    def _save(self, rest: str) -> str:
        if not rest:
            raise _misused("save")
        path = Path(rest).expanduser()
        if path.exists() and path.resolve() not in self._files:
            raise DctError(f"{path} is there already: name another file")
        count = save(self.talk, path, self.clean)
        self._files.add(path.resolve())
        return f"{count} replies written to {path}"

    def _help(self, _: str) -> str:
        rows = [(f"/{name} {one.usage}".rstrip(), one.about) for name, one in COMMANDS.items()]
        width = max(len(usage) for usage, _ in rows)
        return "\n".join(f"{usage:<{width}}  {about}" for usage, about in rows)

    def _quit(self, _: str) -> str:
        self.left = True
        return ""

    # --- words --------------------------------------------------------------------------------------------------------

    def completions(self, line: str) -> Iterator[tuple[str, str]]:
        """What the last word of a line that is being typed may become, each with what it means."""
        if not line.startswith("/"):
            return
        name, space, rest = line[1:].partition(" ")
        if not space:
            begun = (one for one in COMMANDS if one.startswith(name))
            yield from ((f"/{one} " if COMMANDS[one].usage else f"/{one}", COMMANDS[one].about) for one in begun)
            return
        *before, word = rest.split(" ")
        if not before or name == "ablate":
            yield from ((value, about) for value, about in self._values(name) if value.startswith(word))

    def _values(self, name: str) -> Iterator[tuple[str, str]]:
        guide = self.talk.guide
        if name in ("vector", "add", "ablate"):
            yield from ((one, " ".join(guide.words(one))) for one in self._vectors)
        elif name == "rank":
            ranked = (str(one["vector"]) for one in guide.ranked)
            yield from ((str(k), f"vector {one}{self._words(one)}") for k, one in enumerate(ranked, 1))
        elif name == "kind":
            yield from ((str(k), guide.kind(k)) for k in range(len(guide.kinds)))
        elif name == "ab":
            yield from (("on", "both sides"), ("off", "the steered side alone"))

    def _words(self, vector: str) -> str:
        words = " ".join(self.talk.guide.words(vector))
        return f": {words}" if words else ""

    def _known(self, name: str) -> str:
        """A vector's name as it is told, "17" for "017".

        Raises:
            DctError: there is no such vector.
        """
        self.talk.mixtures.mix([Term(name)])
        return str(int(name)) if int(name) else name[:1].replace("0", "") + "0"

    def _named(self, command: str, rest: str, form: re.Pattern[str]) -> tuple[str, float | None]:
        """A number of a command, and the scale behind it."""
        first, _, scale = rest.partition(" ")
        if not form.fullmatch(first):
            raise _misused(command)
        return first, self._number(command, scale) if scale else None

    def _number(self, command: str, word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise _misused(command)
        return value


def _misused(name: str) -> DctError:
    return DctError(f"write /{name} {COMMANDS[name].usage}: {COMMANDS[name].about}")


def _listed(lines: list[str], most: int = LISTED) -> str:
    left = len(lines) - most
    return "\n".join([*lines[:most], *([f"and {left} more"] if left > 0 else [])])
