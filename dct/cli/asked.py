"""Which prompts a command works on: those that were asked for, or those that its run leaves."""

from typing import Any

from dct.cli.terminal import Terminal
from dct.errors import DctError
from dct.prompts import PromptSet, default_origin, read
from dct.settings import FitPromptSettings, RankPromptSettings, ReplyPromptSettings

HARMLESS = 16
"""Harmless prompts on which the damage of a vector is measured."""


def note_repeated(terminal: Terminal, prompts: PromptSet) -> None:
    """Says which prompts of a set are the same."""
    if prompts.repeated:
        terminal.note(prompts.repeated)


def fit_prompts(model: str, asked: FitPromptSettings) -> PromptSet:
    """The prompts of a fit: literal ones, or the first n of a set, or both."""
    if not asked.prompt:
        return read(asked.prompts or default_origin(model, "harmful"), asked.column).first(asked.n)
    chosen = PromptSet(tuple(asked.prompt), origin="--prompt")
    if asked.prompts is None:
        return chosen
    return PromptSet(chosen.texts + read(asked.prompts, asked.column).first(asked.n).texts, (), asked.prompts)


def unseen_prompts(
    terminal: Terminal, info: dict[str, Any], origin: str | None, column: str | None, n: int
) -> PromptSet:
    """The first n prompts of a set that the fit did not see; the fit's own where there are no others."""
    fitted = tuple(info.get("prompts") or ())
    column = column if origin is not None else info.get("column")
    source = origin or info.get("prompts_origin")
    if source in (None, "--prompt"):
        pool = PromptSet(fitted) if fitted else read(default_origin(str(info.get("model")), "harmful"))
    elif origin is None and not _readable(str(source)):
        terminal.note(f"{source} is no longer there: using the prompts of the fit")
        pool = PromptSet(fitted, origin="fit")
    else:
        pool = read(str(source), column)
    unseen = pool.without(fitted).first(n)
    note_repeated(terminal, unseen)
    if len(unseen):
        return unseen
    terminal.note("no prompts beyond those of the fit: scoring on them (in-sample)")
    return pool.first(n)


def screening_sets(
    terminal: Terminal, info: dict[str, Any], asked: RankPromptSettings, n: int
) -> tuple[PromptSet, PromptSet]:
    """The first n prompts that the fit did not see, and as many harmless ones."""
    mild = harmless_prompts(info, asked.harmless, n)
    return unseen_prompts(terminal, info, asked.prompts, asked.column, n), mild


def prompts_to_gain_on(terminal: Terminal, info: dict[str, Any], origin: str | None, column: str | None) -> PromptSet:
    """All prompts of a set that the fit did not see: of the fit's own set, or, where it has none, of the model's.

    Raises:
        DctError: there are none.
    """
    column = column if origin is not None else info.get("column")
    source = str(origin or info.get("prompts_origin") or "")
    own = default_origin(str(info.get("model")), "harmful")
    if origin is None and (source in ("", "--prompt") or not _readable(source)):
        why = "the fit's own is no longer there" if source not in ("", "--prompt") else "the fit's prompts are no set"
        terminal.note(f"asking the prompts of {own}: {why}")
        source, column = own, None
    unseen = read(source, column).without(info.get("prompts") or ())
    note_repeated(terminal, unseen)
    if not len(unseen):
        raise DctError(
            f"{source} has no prompts beyond those of the fit: give others with `prompts`, or use `screen_only`"
        )
    return unseen


def literal_or_unseen(terminal: Terminal, info: dict[str, Any], asked: ReplyPromptSettings) -> PromptSet:
    """The prompts given literally, or the first n that the fit did not see."""
    literal = tuple(asked.prompt)
    if literal and asked.prompts is None:
        return PromptSet(literal, origin="--prompt")
    rest = unseen_prompts(terminal, info, asked.prompts, asked.column, asked.n)
    return PromptSet(literal + rest.texts, origin=rest.origin)


def _readable(origin: str) -> bool:
    try:
        read(origin)
    except DctError as error:
        return "no prompt set" not in str(error)
    return True


def harmless_prompts(info: dict[str, Any], origin: str | None, n: int) -> PromptSet:
    """The first n prompts for measuring damage."""
    return read(origin or default_origin(str(info.get("model")), "harmless")).first(n)
