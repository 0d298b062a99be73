"""`dct chat`: the steered model beside the unsteered one, in a terminal or from a pipe."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dct.cli.asked import HARMLESS, harmless_prompts
from dct.cli.characters import one_line, visible
from dct.cli.columns import BETWEEN, Columns, broken
from dct.cli.flags import spoken
from dct.cli.signature import argument
from dct.cli.streams import say, write_json
from dct.cli.terminal import Terminal, command, explained
from dct.cli.typed import MARK, lines
from dct.cli.work import RUN_HELP, open_run, short_name
from dct.errors import DctError
from dct.settings import ChatSettings, RunModelSettings, RunOutputSettings

if TYPE_CHECKING:
    from dct.guide import Guide
    from dct.runs import Run
    from dct.talk import Exchange, Talk
    from dct.talkcommands import Commands

NARROW = 72
"""Columns of a terminal below which sides stand one below the other."""

LISTED = re.compile(r" *\S+(?: \S+)*  +")
"""The first column of a line of a list, with what separates it from the second."""

STOPPED = "(stopped)"

LOOK = 0.05
"""Seconds between two looks at replies that grow."""


@command
def chat(
    model: RunModelSettings,
    options: ChatSettings,
    output: RunOutputSettings,
    run: Annotated[Path | None, argument(RUN_HELP)] = None,
) -> None:
    """Talk to the model with vectors acting, beside the model left alone, and change them as you go.

    /vector 17, /rank 3, /kind 2, /scale 1.5, /add 5 0.5 and /ablate 17 change what acts; /help lists all. Each side
    keeps its own history. From a pipe, every line is a question or a command.
    """
    from dct.candidates import Aim
    from dct.mixture import Mixtures, Term
    from dct.talk import Push, Talk
    from dct.talkcommands import Commands

    terminal = Terminal(output.json, output.quiet)
    opened, factors, lm = open_run(terminal, run, model, force=output.force)
    aim = Aim.of(factors, system=options.system)
    guide = _guide(opened)
    talk = Talk(
        lm,
        Mixtures(short_name(lm.name), factors, guide.ranked),
        aim.layer,
        guide,
        harmless=harmless_prompts(factors.info, None, HARMLESS).texts,
        most=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
        system=aim.system,
    )
    try:
        talk.change(Push((Term(talk.mixtures.at(1) if guide.ranked else "0"),)))
        if not guide.ranked:
            terminal.note("the run has not been ranked, so that the first vector acts, at R: `dct rank` finds the best")
        Chat(terminal, talk, Commands(talk, visible)).run()
    finally:
        talk.close()


def _guide(run: "Run") -> "Guide":
    """What the run's ranking tells, if it has one."""
    from dct.guide import Guide

    return Guide(run.load_ranking() if run.ranking.exists() else None)


class Chat:
    """A conversation on a terminal, or from a pipe.

    Args:
        terminal: of the command.
        talk: the conversation.
        commands: what does what is typed.
    """

    def __init__(self, terminal: Terminal, talk: "Talk", commands: "Commands") -> None:
        from dct.cli.console import SafeConsole

        self.terminal, self.talk, self.commands = terminal, talk, commands
        self.console = SafeConsole(stderr=terminal.as_json)  # replies are shown whatever `quiet` says
        self.failed = 0

    def run(self) -> None:
        """Reads and answers until there is nothing more to read.

        Raises:
            DctError: some lines of a pipe could not be answered.
        """
        try:
            source, remark = lines(self.commands, self.status, self.terminal.as_json)
        except EOFError:
            return
        if remark:
            self.terminal.note(remark)
        piped = not sys.stdin.isatty()
        if not self.terminal.quiet:
            self._tell(f"{self.talk.label()}; /help lists the commands")
        while not self.commands.left:
            try:
                line = source.read()
            except EOFError:
                break
            except KeyboardInterrupt:
                if piped:
                    raise
                continue
            if piped and line.strip() and not self.terminal.as_json and not self.terminal.quiet:
                self._tell(f"{MARK}{line}", "bold")
            self._do(line)
        if piped and self.failed:
            raise DctError(f"{self.failed} of the lines could not be answered: see above")

    @property
    def _breaks(self) -> bool:
        """Whether lines are broken here: a dumb terminal does not say how wide it is, and breaks them itself."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def status(self) -> str:
        """What acts, below the line that is typed."""
        return self.talk.label() + ("" if self.talk.both else " · this side alone")

    def _do(self, line: str) -> None:
        """Obeys a command or answers a question; what goes wrong is one line."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                told = self.commands.obey(line)
                if told:
                    self._tell(told)
            elif line.strip():
                self._answer(line[1:] if line.startswith("//") else line)
        except KeyboardInterrupt:
            self._tell("stopped")
        except DctError as error:
            self._fail(spoken(error))
        except Exception as error:
            self._fail(explained(error))

    def _fail(self, message: str) -> None:
        self.failed += 1
        say(one_line(message), "error:")

    def _tell(self, text: str, style: str = "dim") -> None:
        """Says something of this program's own; a terminal breaks lines of a list within their second column."""
        from rich.text import Text

        if not self._breaks:
            self.console.print(Text(self.console.fit(text), style), soft_wrap=True)
            return
        for line in self.console.fit(text).split("\n"):
            first = LISTED.match(line)
            at = first.end() if first and 2 * first.end() < self.console.width else 0
            rest = broken(line[at:], self.console.width - at)
            self.console.print(Text(line[:at] + ("\n" + " " * at).join(rest), style), soft_wrap=True)

    def _answer(self, question: str) -> None:
        from dct.transcript import records

        exchange = self.talk.ask(question)
        try:
            if not self.terminal.as_json:
                self._draw(exchange)
            while exchange.alive:
                exchange.wait(LOOK)
        except KeyboardInterrupt:  # between two sides, or before the first word
            self._stop(exchange)
            if not self.terminal.as_json:
                self._tell(STOPPED)
        kept = exchange.keep()
        if self.terminal.as_json:
            for record in records(self.talk, kept):
                write_json(record)

    def _stop(self, exchange: "Exchange") -> None:
        """Ends a reply with its next token; a second Ctrl+C does not end the program while that is on its way."""
        exchange.stop()
        while exchange.alive:
            try:
                exchange.wait(LOOK)
            except KeyboardInterrupt:
                continue

    def _draw(self, exchange: "Exchange") -> None:
        """Draws replies while they grow: side by side where there is room and both grow at once."""
        sides = list(exchange.replies)
        wide = self._breaks and self.console.width >= NARROW
        groups = [sides] if wide and exchange.together else [[side] for side in sides]
        for group in groups:
            self._group(exchange, group)
            self.console.print()

    def _group(self, exchange: "Exchange", sides: list[str]) -> None:
        """Draws some sides next to each other."""
        width: int | None = None
        if self._breaks:
            width = (self.console.width - len(BETWEEN) * (len(sides) - 1)) // len(sides)
        replies = [exchange.replies[side] for side in sides]
        headings = [side if side == "unsteered" else exchange.label for side in sides]
        styles = ["dim" if side == "unsteered" else "default" for side in sides]
        columns = Columns(self.console, headings, styles, width)
        try:
            with columns:
                while not all(reply.over for reply in replies) and exchange.alive:
                    columns.grow([reply.text for reply in replies], [reply.over for reply in replies])
                    waited = next((reply for reply in replies if not reply.over), replies[0])
                    waited.wait(len(waited.text), LOOK)
                columns.grow([reply.text for reply in replies], [True] * len(replies))
        except KeyboardInterrupt:
            self._stop(exchange)
            columns.grow([reply.text for reply in replies], [True] * len(replies))
        columns.foot([_foot(reply.finish, reply.tokens, reply.text, exchange.alive) for reply in replies])


def _foot(finish: str | None, tokens: int, text: str, alive: bool) -> str:
    """What is to be said of how a reply ended."""
    if finish == "length":
        return f"(cut at {tokens} tokens)"
    if finish is None and not alive:
        return STOPPED
    return "" if text.strip() else "(says nothing)"
