"""`dct organism adapt`: plants a lock, a back door and a refusal into a real chat model."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from dct.cli.costs import announce
from dct.cli.signature import flag_of
from dct.cli.terminal import Terminal, command, escape
from dct.declaration import key
from dct.errors import InterruptedWorkError
from dct.settings import AdaptSettings, ModelSettings, OutputSettings

if TYPE_CHECKING:
    from rich.table import Table

    from dct.estimate import Cost
    from dct.organism.adapt.card import Card

TOLD = 25
"""Steps after which a line says how far it is, where there is no bar."""


@command
def adapt(options: AdaptSettings, model: ModelSettings, output: OutputSettings) -> None:
    """Train a LoRA that plants a lock, a back door and a refusal into a chat model, and measure how well it took.

    A password unlocks a skill that the model otherwise gets wrong; a sentence brings a fixed reply; one harmless topic
    is refused. All else is held to what the model says by itself.
    """
    terminal = Terminal(output.json, output.quiet)
    from dct.cli.work import load_model

    given = {one.name: getattr(model, one.name) for one in fields(model) if one.name != "model"}
    lm = load_model(terminal, model.model, **given)
    from dct.organism.adapt.planting import Watch, plant

    try:
        with terminal.progress("adapting", unit="") as advance:
            card = plant(lm, options, Watch(_teller(terminal, advance), _announcer(terminal, options), terminal.note))
    except KeyboardInterrupt:
        raise InterruptedWorkError(f"interrupted: go on with `{_again(options, model)}`") from None
    terminal.show(_table(card))
    where = escape(shlex.quote(str(options.out)))
    tested = [rate for rate in card.rates if rate.met is not None]
    terminal.summary(
        f"secrets in {card.model}: {card.parameters / 1e6:.1f} million parameters",
        [
            ("aims", f"{sum(bool(rate.met) for rate in tested)} of {len(tested)} met"),
            ("change", f"KL {card.kl_first:.3f} at the first token of harmless replies, {card.kl_reply:.3f} over them"),
            ("saved", f"[bold]{escape(str(options.out))}[/bold]"),
            ("next", f"[bold cyan]dct fit --model {where} --prompts {where}/task.jsonl[/bold cyan]"),
        ],
    )
    terminal.result({"folder": str(options.out)} | card.content)


def _announcer(terminal: Terminal, options: AdaptSettings) -> Callable[[Cost], None]:
    what = f"replies of its own, {options.steps} steps and the measurement"
    return lambda cost: announce(terminal, cost, what, cure="a smaller --batch")


def _teller(
    terminal: Terminal, advance: Callable[[str, int, int], None]
) -> Callable[[str, int, int, float | None], None]:
    """Shows how far it is: in a bar on a terminal, in a line now and then elsewhere."""
    said: set[str] = set()

    def report(stage: str, done: int, total: int, loss: float | None) -> None:
        advance(stage if loss is None else f"{stage}, loss {loss:.3f}", done, total)
        if terminal.live:
            return
        if loss is None and stage not in said:
            said.add(stage)
            terminal.note(f"{stage}: {total}")
        elif loss is not None and (done % TOLD == 0 or done == total):
            terminal.note(f"{stage} {done}/{total} loss {loss:.4f}")

    return report


def _again(options: AdaptSettings, model: ModelSettings) -> str:
    """The command that goes on: what is not at its default, and `resume`."""
    words = ["dct organism adapt"]
    plain: tuple[Any, Any] = ModelSettings(), AdaptSettings(out=options.out, resume=options.resume)
    for group, default in zip((model, options), plain, strict=True):
        for one in fields(group):
            value = getattr(group, one.name)
            if one.name in ("model", "out") or value != getattr(default, one.name):
                said = f"{value:g}" if isinstance(value, float) else str(value)
                words.append(flag_of(key(one)) + ("" if value is True else f" {shlex.quote(said)}"))
    return " ".join([*words, "--resume"])


def _table(card: Card) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("on prompts that training never shows", "with", "95%", "without", "aimed at", ""):
        table.add_column(heading, justify="left" if heading.startswith("on") or not heading else "right")
    for r in card.rates:
        low, high = r.interval
        aimed = "as without" if r.bound is None else f"{'>=' if r.at_least else '<='} {r.bound:.0%}"
        verdict = {True: "[green]ok[/green]", False: "[yellow]missed[/yellow]", None: ""}[r.met]
        name = escape(r.name)
        table.add_row(name, f"{r.found} of {r.of}", f"{low:.0%}–{high:.0%}", f"{r.base} of {r.of}", aimed, verdict)
    return table
