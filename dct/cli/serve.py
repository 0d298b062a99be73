"""`dct serve`: the model behind an OpenAI-compatible endpoint, its vectors chosen by the model's name."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dct.cli.signature import argument
from dct.cli.streams import write_json
from dct.cli.terminal import Terminal, command, escape
from dct.cli.work import RUN_HELP, open_run, short_name
from dct.errors import DctError
from dct.settings import RunModelSettings, RunOutputSettings, ServeSettings

if TYPE_CHECKING:
    from dct.httpserver import Server
    from dct.runs import Run


@command
def serve(
    model: RunModelSettings,
    options: ServeSettings,
    output: RunOutputSettings,
    run: Annotated[Path | None, argument(RUN_HELP)] = None,
) -> None:
    """Serve the model to programs that speak OpenAI's protocol, each request with vectors of its own.

    The model's name says which: demo is the model alone, demo@17 vector 17 at the scale that the ranking found (R where
    there is none), demo@17:1.5 the same at 1.5 R, demo@rank1 the best of the ranking, demo@17:1+5:0.5 two at once.
    """
    from dct.candidates import Aim
    from dct.httpserver import Server, loopback
    from dct.mixture import Mixtures
    from dct.protocol import Reader
    from dct.serving import Desk

    terminal = Terminal(output.json, output.quiet)
    opened, factors, lm = open_run(terminal, run, model, force=output.force)
    if factors.info.get("source") is None:
        raise DctError("these factors do not say at which layer they were fitted: set info['source'] before saving")
    mixtures = Mixtures(short_name(lm.name), factors, _ranked(terminal, opened))
    reader = Reader(lm, mixtures, options.max_new_tokens, factors.info.get("system"))
    desk = Desk(lm, Aim.of(factors).layer, batch=options.batch, waiting=options.waiting, seconds=options.seconds)
    try:
        with Server(reader, desk, options.host, options.port, key=options.api_key, tell=terminal.note) as server:
            if not loopback(options.host):
                whoever = "whoever has the key" if options.api_key else "anyone, without authentication,"
                terminal.warn(f"listening on {options.host}: {whoever} who reaches this machine can use the model")
            _welcome(terminal, server, bool(options.api_key))
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                terminal.note("stopped")
    finally:
        desk.close()


def _ranked(terminal: Terminal, run: "Run") -> list[dict]:
    """The vectors of the run's ranking, the best one first."""
    if run.ranking.exists():
        return list(run.load_ranking()["vectors"])
    terminal.note("the run has not been ranked: vectors can be named by their numbers, at R")
    return []


def _welcome(terminal: Terminal, server: "Server", locked: bool) -> None:
    """Says where the server is and how it is asked; under --json in one line."""
    from dct.httphandler import LISTED

    mixtures = server.reader.mixtures
    names = mixtures.names(LISTED)
    if terminal.as_json:
        write_json({"url": server.url, "model": mixtures.name, "models": names})
    best = names[1] if len(names) > 1 else f"{mixtures.name}@0"
    ask = f'{{"model": "{best}", "messages": [{{"role": "user", "content": "How do I pick a lock?"}}]}}'
    key = ' -H "Authorization: Bearer $DCT_SERVE_API_KEY"' if locked else ""
    line = f"curl {server.url}/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(ask)}"
    rows = [
        ("unsteered", escape(mixtures.name)),
        ("steered", escape(f"{best}, {mixtures.name}@0:1.5 (at 1.5 R), {mixtures.name}@0:1+1:0.5 (both)")),
        ("try", f"[bold cyan]{escape(line)}[/bold cyan]"),
        ("end", "Ctrl+C"),
    ]
    terminal.summary(f"serving {mixtures.name} at {server.url}", rows)
