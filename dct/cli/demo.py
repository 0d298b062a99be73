"""`dct demo`: the whole tour on the model that ships with the package."""

from pathlib import Path
from typing import Annotated, Any

from dct.aliases import DEMO
from dct.cli import options as o
from dct.cli.ablate import run_ablate
from dct.cli.declare import option
from dct.cli.fit import Recipe, run_fit
from dct.cli.rank import run_rank
from dct.cli.steer import HARMLESS, run_steer
from dct.cli.terminal import Terminal, command
from dct.cli.work import harmless_prompts, unseen_prompts

FACTORS = 40
"""A fifth of the demo model's width: the whole tour should take less than a minute."""

MULTIPLE = 1.5
"""Of R, at which the tour tries the vectors: where most refusals of the demo turn, and random vectors turn none."""


@command
def demo(
    out: Annotated[Path, option(help="Run folder; an earlier demo in it is replaced.")] = Path("runs/demo"),
    seed: o.Seed = 0,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Fit, rank, steer and ablate on the model that ships with the package: start to finish in under a minute."""
    terminal = Terminal(as_json, quiet)
    _heading(terminal, "1  fit", "find steering vectors, without labels", f"dct fit --factors {FACTORS}")
    recipe = Recipe(
        model=DEMO,
        loading={"dtype": "float32", "device": "cpu"},
        options={"method": "exponential", "factors": FACTORS, "iterations": 10, "seed": seed},
        out=out,
        force=True,
        whole=True,
    )
    run, factors, lm = run_fit(terminal, recipe)
    unseen = unseen_prompts(terminal, factors.info, None, None, HARMLESS)
    harmless = harmless_prompts(factors.info, None, HARMLESS)
    _heading(terminal, "2  rank", "which of them turn a refusal into an answer", f"dct rank --scales {MULTIPLE}")
    ranking = run_rank(terminal, run, factors, lm, unseen, harmless, top=5, scales=(MULTIPLE,))
    names = [str(v["vector"]) for v in ranking["vectors"]]
    norms = [v["scale"] for v in ranking["vectors"]]
    _heading(terminal, "3  steer", "add the best one to the residual stream", "dct steer --rank 1")
    steered = run_steer(terminal, factors, lm, names[:1], unseen.first(2), harmless, norms=norms[:1], max_new_tokens=40)
    _heading(terminal, "4  ablate", "or take a direction out of the weights", "dct ablate --top 8 --aggregate mean")
    few = min(8, len(names))
    edited = run_ablate(
        terminal, factors, lm, names[:few], unseen.first(2), unseen, harmless, aggregate="mean", max_new_tokens=40
    )
    terminal.summary("that was the tour", [("yours", "[bold cyan]dct fit --model qwen --s 10 --t 20[/bold cyan]")])
    content: dict[str, Any] = {"run": str(run.folder), "rank": ranking, "steer": steered, "ablate": edited}
    terminal.result(content)


def _heading(terminal: Terminal, title: str, what: str, line: str) -> None:
    terminal.show("")
    terminal.show(f"[bold reverse] {title} [/bold reverse]  {what}  [dim]({line})[/dim]")
