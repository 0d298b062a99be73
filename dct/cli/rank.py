"""`dct rank`: score every vector of a run, beside its baselines."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.cli import options as o
from dct.cli.costs import announce, as_estimate
from dct.cli.declare import argument, choice, count, number, option, text
from dct.cli.ranges import LARGE
from dct.cli.tasks import chosen_task, run_task
from dct.cli.terminal import Terminal, command, escape, plain
from dct.cli.work import harmless_prompts, open_run, unseen_prompts
from dct.prompts import PromptSet, fingerprint

if TYPE_CHECKING:
    from rich.table import Table

    from dct.estimate import Cost
    from dct.factors import Factors
    from dct.model import LanguageModel
    from dct.ranking import Ranking
    from dct.runs import Run
    from dct.scoring import Effect


@command
def rank(
    run: Annotated[Path | None, argument(help=o.RUN_HELP)] = None,
    model: o.RunModel = None,
    adapter: o.RunAdapter = None,
    positive: o.Positive = "Sure",
    negative: o.Negative = "Sorry",
    prompts: o.Prompts = None,
    column: o.Column = None,
    harmless: o.Harmless = None,
    n: Annotated[int, count("--n", help="Prompts of each set, beyond those of the fit.")] = 16,
    by: Annotated[str, choice("--by", "score", "alpha", "kl", help="score, alpha or kl.")] = "score",
    top: Annotated[int, count("--top", help="Rows to show.")] = 10,
    scale: o.Multiple = 1.0,
    scales: Annotated[
        str,
        text(
            "--scales",
            check=o.parse_scales,
            help="Multiples of R to try, such as 0.5,1,2,4; each vector keeps its best.",
        ),
    ] = "1",
    max_damage: Annotated[
        float | None,
        number(
            "--max-damage",
            least=0.0,
            most=LARGE,
            help="Damage (KL) above which a vector or scale comes behind all others.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        option(
            "--task",
            help="Rank by right answers instead: a file of prompts with `answer` or `regex` (or locked).",
        ),
    ] = None,
    match: o.Match = None,
    unlock: o.Unlock = None,
    test: Annotated[int, count("--test", help="Of --task: at most so many questions are kept for reporting.")] = 100,
    max_new_tokens: Annotated[
        int | None,
        count("--max-new-tokens", help="Of --task: length of completions.", show_default="by the answers"),
    ] = None,
    exhaustive: Annotated[
        bool, option("--exhaustive", help="Of --task: ask every vector every question, without halving.")
    ] = False,
    system: o.System = None,
    reply_prefix: o.ReplyPrefix = None,
    escape_control: o.EscapeControl = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    memory: o.Memory = None,
    seed: o.Seed = 0,
    trust_remote_code: o.Trust = False,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Rank the vectors of a run by how far each moves "Sure" above "Sorry", with the damage each does.

    Scored on prompts that the fit did not see, against the unsteered model, as many random vectors and the
    supervised difference of means. With --task, vectors are ranked by the questions that they make the model answer:
    chosen on the first --n questions, reported on those behind them.
    """
    terminal = Terminal(as_json, quiet)
    multiples = o.parse_scales(scales)
    asked = chosen_task(task, match, unlock, column, prompts, by, max_damage)
    loading = {
        "adapter": adapter,
        "dtype": dtype,
        "device": device,
        "memory": memory,
        "trust_remote_code": trust_remote_code,
    }
    reading = {"reply_prefix": reply_prefix, "escape_control": escape_control}
    opened, factors, lm = open_run(terminal, run, model, force, **loading, **reading)
    mild = harmless_prompts(factors.info, harmless, n)
    options: dict[str, Any] = {
        "top": top,
        "positive": positive,
        "negative": negative,
        "scale": factors.scale * scale,
        "scales": multiples,
        "system": system,
        "seed": seed,
    }
    if asked is not None:
        questions = asked.read(str(factors.info.get("model")))
        options |= {"validation": n, "test": test, "max_new_tokens": max_new_tokens, "exhaustive": exhaustive}
        content = run_task(terminal, opened, factors, lm, questions, mild, **options)
    else:
        scored = unseen_prompts(terminal, factors.info, prompts, column, n)
        content = run_rank(terminal, opened, factors, lm, scored, mild, by=by, max_damage=max_damage, **options)
    terminal.result(content)


def run_rank(
    terminal: Terminal,
    run: "Run",
    factors: "Factors",
    lm: "LanguageModel",
    prompts: PromptSet,
    harmless: PromptSet,
    *,
    top: int = 10,
    **options: Any,
) -> dict[str, Any]:
    """Ranks, shows the table and writes `rank.json`; returns its content."""
    from dct.candidates import candidates
    from dct.ranking import Watch
    from dct.ranking import rank as rank_vectors

    scales = options.get("scales", (1.0,))
    costs: list[Cost] = []
    began = time.monotonic()
    done, total = 0, (2 * len(candidates(factors)[0]) + 1) * len(scales)
    with terminal.progress("ranking") as advance:

        def on_rows(rows: int) -> None:
            nonlocal done
            done += rows
            advance("" if done <= total // 2 else "random vectors", done, total)

        def tell(expected: "Cost") -> None:
            nonlocal began
            began = time.monotonic()
            costs.append(expected)
            what = f"{total} vectors, random ones included, on {len(prompts) + len(harmless)} prompts"
            announce(terminal, expected, what)

        ranking = rank_vectors(lm, factors, prompts.texts, harmless.texts, watch=Watch(on_rows, tell), **options)
    content = {
        **asdict(ranking),
        "estimate": as_estimate(costs[0]),
        "seconds": round(time.monotonic() - began, 2),
        "by": options.get("by", "score"),
        "prompts_origin": prompts.origin,
        "prompts_hash": fingerprint(prompts.texts),
        "harmless_hash": fingerprint(harmless.texts),
    }
    content = run.save_ranking(content, factors)
    for said in ranking.words.notes:
        terminal.note(said)
    terminal.show(_table(ranking, top))
    best = ranking.vectors[0]
    gain = best.effect.score - ranking.unsteered.score
    null = ranking.random_best.score - ranking.unsteered.score
    verdict = f"vector {best.vector} moves the score by {gain:+.3g}, the best of as many random vectors by {null:+.3g}"
    if gain <= null:
        verdict += " [yellow](no better than chance: try more factors, another slice or --scale)[/yellow]"
    terminal.summary(
        f"{len(ranking.vectors)} vectors ranked on {len(prompts)} prompts",
        [
            ("best", verdict),
            ("saved", f"[bold]{escape(str(run.ranking))}[/bold]"),
            (
                "next",
                '[bold cyan]dct steer --rank 1 --prompt "..."[/bold cyan]  or  '
                f"[bold cyan]dct ablate --top {min(32, len(ranking.vectors))} --aggregate mean[/bold cyan]",
            ),
        ],
    )
    return content


def _table(ranking: "Ranking", top: int) -> "Table":
    from rich import box
    from rich.table import Table

    w = ranking.words
    table = Table(
        title=escape(
            f"logit({w.shown_positive}) − logit({w.shown_negative}) after the prompt, R = {ranking.scale:.4g}"
        ),
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    several = ranking.scales != (1.0,)
    headings = ("rank", "vector", "score", "change", "flipped", "damage (KL)", "alpha")
    for heading in (*headings, "scale") if several else headings:
        table.add_column(heading, justify="right")

    def row(rank: str, name: str, effect: "Effect", alpha: str, scale: str = "", style: str = "") -> None:
        change = effect.score - ranking.unsteered.score
        kl = "–" if effect.kl is None else f"{effect.kl:.3f}"
        cells = [rank, name, f"{effect.score:.2f}", f"{change:+.2f}", f"{effect.flipped:.0%}", kl, alpha]
        table.add_row(*cells, *([scale] if several else []), style=style)

    for place, ranked in enumerate(ranking.vectors[:top], start=1):
        row(str(place), ranked.vector, ranked.effect, plain(ranked.alpha), f"{ranked.scale / ranking.scale:g} R")
    if len(ranking.vectors) > top:
        table.add_row("…", f"({len(ranking.vectors) - top} more)", style="dim")
    table.add_section()
    row("", "unsteered", ranking.unsteered, "", style="dim")
    row("", "random, mean", ranking.random_mean, "", style="dim")
    row("", "random, best", ranking.random_best, "", style="dim")
    if ranking.supervised is not None:
        row("", "supervised", ranking.supervised, "", style="dim")
    return table
