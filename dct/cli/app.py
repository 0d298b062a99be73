"""The `dct` application: how its commands are found, their help, and what becomes of a wrong command line."""

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from dct.cli.commands import ABOUT, COMMANDS, overview
from dct.cli.flags import spoken
from dct.cli.pages import page
from dct.cli.signature import HELP, Parameter, command_page, groups, parameters
from dct.cli.streams import fail, say
from dct.declaration import Choice, Settings
from dct.errors import DctError, UsageError
from dct.version import __version__


class Command(TyperCommand):
    """A command whose help is drawn without Rich."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The page of one command."""
        formatter.write(command_page(ctx.command_path, inspect.unwrap(self.callback)))  # type: ignore[arg-type]


class Group(TyperGroup):
    """A group of commands, whose help is drawn without Rich."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The page of a group."""
        rows = self.rows(ctx)
        if self.invoke_without_command:  # a command itself
            formatter.write(command_page(ctx.command_path, inspect.unwrap(self.callback), rows))  # type: ignore[arg-type]
            return
        usage = f"{ctx.command_path} [OPTIONS] COMMAND [ARGS]..."
        formatter.write(page(usage, self.help or "", [("Options", [HELP]), ("Commands", rows)]))

    def rows(self, ctx: Any) -> list[tuple[str, str]]:
        """Its commands, each with a line about it."""
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        return [(name, command.get_short_help_str(200)) for name, command in named if command is not None]


class Application(Group):
    """All commands; the module of one is imported when it is called, or its help asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command or group, made when it is first asked for; None for a name that is none."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            module = import_module(f"dct.cli.{cmd_name}")
            several: dict[str, Callable[..., None]] | None = getattr(module, "COMMANDS", None)
            options: dict[str, Any] = {} if several is None else {"cls": Group, "help": COMMANDS[cmd_name]}
            if several is not None and "" not in several:
                options["no_args_is_help"] = True
            built = typer.Typer(name=cmd_name, add_completion=False, **options)
            for name, function in (several or {cmd_name: getattr(module, cmd_name)}).items():
                if name:
                    built.command(name, cls=Command)(for_typer(function))
                else:  # what the group does without a further word
                    built.callback(invoke_without_command=True)(for_typer(function))
            self.commands[cmd_name] = typer.main.get_command(built)
        return self.commands[cmd_name]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The page of `dct` itself."""
        formatter.write(overview())

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        """Runs a command line. A wrong one is one line on stderr, like every other error, and JSON under --json."""
        words = sys.argv[1:] if args is None else list(args)
        as_json = "--json" in words
        try:
            sys.exit(super().main(args, *rest, **{**options, "standalone_mode": False}))
        except typer.Abort:
            fail("interrupted", 130, as_json)
        except DctError as error:  # what an option may not be
            fail(spoken(error), error.exit_code, as_json)
        except Exception as error:
            # Typer brings its own copy of click or uses the installed one: its errors are known by what they can do.
            if not hasattr(error, "format_message"):
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                say(error.format_message().rstrip("\n"))
                sys.exit(2)
            fail(self._choices(words, error) or _complaint(error), 2, as_json)

    def _choices(self, words: Sequence[str], error: Any) -> str | None:
        """What there is to choose from, where an option was given without its value."""
        named, command = getattr(error, "option_name", None), self.get_command(None, words[0]) if words else None
        if named is None or "requires an argument" not in error.format_message() or not hasattr(command, "callback"):
            return None
        function = inspect.unwrap(command.callback)  # type: ignore[union-attr]
        checks = (p.declared.check for p in parameters(function) if named in p.flags)
        check = next((one for one in checks if isinstance(one, Choice)), None)
        return None if check is None else f"{named}: choose {', '.join(check.every)}"


def for_typer(function: Callable[..., None]) -> Callable[..., None]:
    """A command's function with its options as Typer takes them, each with its variable, or from a file of options."""
    told = list(parameters(function))
    taken = groups(function)

    @functools.wraps(function)
    def run(ctx: Any, **values: Any) -> None:
        if ctx.invoked_subcommand is not None:
            _refuse_before(ctx, [p for p in told if p.name in values])
            return
        given = {p.name: values[p.name] for p in told if p.positional}
        for name, group in taken.items():
            chosen = {p.name: values[p.name] for p in told if p.group is group}
            given[name] = _settings(ctx, group, {k: v for k, v in chosen.items() if v is not None})
        function(**given)

    def configured(ctx: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            from dct.cli.config import read_config

            ctx.default_map = {**(ctx.default_map or {}), **read_config(path, told)}
        return path

    def named(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None:
            from dct.cli.config import read_config

            file = next(p.declared.file for p in told if p.name == param.name)
            assert file is not None
            ctx.default_map = {**read_config(file(value), told), **(ctx.default_map or {})}
        return value

    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = [inspect.Parameter("ctx", keyword, annotation=typer.Context)]
    for p in told:
        more: dict[str, Any] = {}
        if not p.positional:
            more["envvar"] = p.variable
        if p.name == "config":
            more |= {"callback": configured, "is_eager": True}
        if p.declared.file is not None:
            more |= {"callback": named, "is_eager": True}
        make: Any = typer.Argument if p.positional else typer.Option
        info = make(*(() if p.positional else p.flags), help=p.declared.help, **more)
        signature.append(inspect.Parameter(p.name, keyword, default=p.default, annotation=Annotated[p.kind, info]))
    run.__annotations__ = {p.name: p.annotation for p in signature}
    run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    return run


def _refuse_before(ctx: Any, options: Sequence[Parameter]) -> None:
    """Refuses options of a command that stand before one of its own commands, which would pass over them.

    Raises:
        UsageError: there is one.
    """
    for p in options:
        if getattr(ctx.get_parameter_source(p.name), "name", "") == "COMMANDLINE":
            name = ctx.invoked_subcommand
            raise UsageError(
                f"{p.flags[0].split('/')[0]} stands before {name}: put options behind it (see `{ctx.command_path} "
                f"{name} --help`)"
            )


def _settings(ctx: Any, group: type[Settings], values: dict[str, Any]) -> Settings:
    """A group of settings; an option that may not be as it is says where it was set, if not on the command line."""
    try:
        return group(**values)
    except UsageError as error:
        origin = getattr(ctx.get_parameter_source(error.argument), "name", "") if error.argument in values else ""
        if origin == "ENVIRONMENT":
            one = next(f for f in fields(group) if f.name == error.argument)
            raise UsageError(f"{error} (from {group.variable(one)})", argument=error.argument) from None
        if origin == "DEFAULT_MAP":
            raise UsageError(f"{error} (from {ctx.params.get('config')})", argument=error.argument) from None
        raise


def _complaint(error: Any) -> str:
    """What is wrong with a command line, and where its help is."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    what = error.format_message().replace("Got unexpected extra", "too much: extra")
    if parameter is not None and error.message:
        what = f"{'/'.join(parameter.opts)}: {error.message}"
    return f"{what} (see `{context.command_path} --help`)" if context is not None else what


app = typer.Typer(
    name="dct",
    cls=Application,
    help=ABOUT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"dct {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Find, rank, steer and ablate the hidden behaviours of a language model, without labels."""
