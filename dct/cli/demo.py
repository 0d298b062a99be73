"""`dct demo`: the whole tour, on the model that ships with the package or on any other."""

from typing import Any

from dct.cli.ablate import run_ablate
from dct.cli.asked import HARMLESS, harmless_prompts, prompts_to_gain_on, unseen_prompts
from dct.cli.fit import run_fit
from dct.cli.select import run_select
from dct.cli.steer import run_steer
from dct.cli.terminal import Terminal, command
from dct.lock import held
from dct.recipe import Recipe
from dct.settings import (
    AblateSettings,
    DemoOutputSettings,
    FitOutputSettings,
    FitSettings,
    ModelSettings,
    RankSettings,
    SaveSettings,
    SeedSettings,
    SelectSettings,
    SteerSettings,
)

FACTORS = 40
"""A fifth of the demo model's width: the whole tour should take a minute."""

MULTIPLES = (1.0, 1.5)
"""Of R, at which the tour tries the vectors."""

KEPT, CHOSEN_BY, TESTED, LENGTH = 4, 8, 24, 32
"""Vectors that go on from the screen, prompts to choose by and to report on, tokens of a reply: small, for the same
reason."""


@command
def demo(model: ModelSettings, options: SeedSettings, output: DemoOutputSettings) -> None:
    """Fit, rank, steer and ablate, start to finish: a minute on the model that ships with the package.

    `--model` takes any other that refuses some of the packaged prompts; each step says beforehand how long it takes.
    """
    terminal = Terminal(output.json, output.quiet)
    named = f" --model {model.model}" if model != ModelSettings() else ""
    _heading(terminal, "1  fit", "find steering vectors, without labels", f"dct fit{named} --factors {FACTORS}")
    recipe = Recipe(model, fit=FitSettings(factors=FACTORS, seed=options.seed))
    run, factors, lm = run_fit(terminal, recipe, FitOutputSettings(out=output.out, force=True), whole=True)
    unseen = unseen_prompts(terminal, factors.info, None, None, HARMLESS)
    harmless = harmless_prompts(factors.info, None, HARMLESS)
    multiples = ",".join(f"{c:g}" for c in MULTIPLES)
    line = f"dct rank --keep {KEPT} --n {CHOSEN_BY} --test {TESTED} --scales {multiples} --max-new-tokens {LENGTH}"
    _heading(terminal, "2  rank", "which of them turn refusals into answers", line)
    asked = RankSettings(top=5, scales=MULTIPLES)
    small = SelectSettings(keep=KEPT, test=TESTED, max_new_tokens=LENGTH)
    pool = prompts_to_gain_on(terminal, factors.info, None, None)
    with held(run.folder):
        ranking = run_select(terminal, run, factors, lm, (pool, harmless), asked, small, n=CHOSEN_BY)
    ranked = {str(v["vector"]): v["scale"] for v in ranking["vectors"]}
    best = dict(list(ranked.items())[:1])
    _heading(terminal, "3  steer", "add the best one to the residual stream", "dct steer --rank 1")
    steered = run_steer(terminal, factors, lm, best, unseen.first(2), harmless, SteerSettings(max_new_tokens=40))
    _heading(terminal, "4  ablate", "or take a direction out of the weights", "dct ablate --top 8 --aggregate mean")
    edited = run_ablate(
        terminal,
        factors,
        lm,
        list(ranked)[:8],
        (unseen.first(2), unseen, harmless),
        AblateSettings(max_new_tokens=40),
        SaveSettings(),
        aggregate="mean",
    )
    terminal.summary("that was the tour", [("yours", "[bold cyan]dct fit --model qwen --s 10 --t 20[/bold cyan]")])
    content: dict[str, Any] = {
        "run": str(run.folder),
        "rank": ranking,
        "steer": steered,
        "ablate": edited,
    }
    terminal.result(content)


def _heading(terminal: Terminal, title: str, what: str, line: str) -> None:
    terminal.show("")
    terminal.show(f"[bold reverse] {title} [/bold reverse]  {what}  [dim]({line})[/dim]")
