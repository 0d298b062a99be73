"""`dct rank`: put the vectors of a run in order, beside baselines: by judged replies, by likelihood, or by a task."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.cli.asked import HARMLESS, harmless_prompts, prompts_to_gain_on, screening_sets
from dct.cli.costs import announce, as_estimate
from dct.cli.difference_ranking import check_apart, run_apart
from dct.cli.judge import own_options
from dct.cli.kinds import resembled
from dct.cli.minus import load_minus
from dct.cli.pictures import check_plot, save_plot
from dct.cli.select import run_select
from dct.cli.signature import argument
from dct.cli.stable import found_again, note_steady
from dct.cli.tasks import chosen_task, run_task
from dct.cli.terminal import Terminal, command, escape, plain, titled
from dct.cli.work import RUN_HELP, open_run
from dct.errors import UsageError
from dct.judging import Judge, kind_of
from dct.lock import held
from dct.prompts import PromptSet, fingerprint
from dct.settings import (
    JudgeSettings,
    RankOutputSettings,
    RankPromptSettings,
    RankSettings,
    RunModelSettings,
    SelectSettings,
    TaskSettings,
    WorkSettings,
)

if TYPE_CHECKING:
    from rich.table import Table

    from dct.estimate import Cost
    from dct.factors import Factors
    from dct.model import LanguageModel
    from dct.ranking import Ranking
    from dct.runs import Run
    from dct.scoring import Effect
    from dct.siblings import Stability


CHOSEN_BY, SCORED_ON = 32, 16
"""Prompts that vectors are chosen by in the experiment, and otherwise, unless told."""

MUCH = 1.5
"""Nats of damage from which on a score alone says little of a vector."""


@command
def rank(
    model: RunModelSettings,
    prompts: RankPromptSettings,
    options: RankSettings,
    experiment: SelectSettings,
    judge: JudgeSettings,
    task: TaskSettings,
    work: WorkSettings,
    output: RankOutputSettings,
    run: Annotated[Path | None, argument(RUN_HELP)] = None,
) -> None:
    """Find the vector that best makes the model do what it refuses, by judged replies, beside baselines.

    All vectors are screened by likelihood. The best, the best of as many random ones, differences of means and noise
    then make the model reply to prompts that it refuses and the fit did not see; each is chosen on --n prompts and
    reported on --test others. Go on with an interrupted one by the same command. With --screen-only, the likelihoods
    alone order the vectors; with --task, right answers to questions do. Vectors of a difference (`dct fit --minus`) are
    ordered by what they make the one model say and the other not.
    """
    terminal = Terminal(output.json, output.quiet)
    check_plot(output.plot)
    asked = chosen_task(task, prompts, options)
    if asked is not None and experiment.screen_only:
        raise UsageError("`task` is answered by completions: leave `screen_only` out", argument="screen_only")
    judging = _judge(judge, options, experiment, completes=asked is None and not experiment.screen_only)
    opened, factors, lm = open_run(terminal, run, model, prompts, output.force)
    on, few, info = (terminal, opened, factors, lm), prompts.n or SCORED_ON, factors.info
    if asked is not None:
        mild = harmless_prompts(info, prompts.harmless, few)
        questions = asked.read(str(info.get("model")))
        split = questions.without(info.get("prompts") or ()).split(few, experiment.test)
        content = run_task(*on, split, mild, options, experiment, prompts.system)
    elif experiment.screen_only:
        content = run_rank(*on, *screening_sets(terminal, info, prompts, few), options, prompts.system)
    elif info.get("minus"):
        check_apart(judge, options)
        minus = load_minus(terminal, factors, lm, model, output.force)
        sets = screening_sets(terminal, info, prompts, few)
        content = run_apart(*on[:3], (lm, minus), sets, options, experiment, prompts.system)
    else:
        mild = harmless_prompts(info, prompts.harmless, HARMLESS)
        pool = prompts_to_gain_on(terminal, info, prompts.prompts, prompts.column)
        n, read = prompts.n or CHOSEN_BY, judging(lm)
        with held(opened.folder):
            content = run_select(*on, (pool, mild), options, experiment, read, n=n, system=prompts.system)
    from dct.plots import figures

    save_plot(terminal, output.plot, lambda: [figures.arms(content) or figures.scores(content)])
    terminal.result(content)


def _judge(
    asked: JudgeSettings, options: RankSettings, experiment: SelectSettings, completes: bool
) -> Callable[["LanguageModel"], Judge]:
    """Makes the judge once the model is there; what cannot be is refused before.

    Raises:
        UsageError: options that do not go together, or that the judge does not have.
    """
    kind = kind_of(asked.judge)
    given = own_options(kind, asked.judge_option)
    if not completes:
        if asked != JudgeSettings():
            raise UsageError("`judge` reads completions: leave `screen_only` and `task` out", argument="judge")
    else:
        options.leave_order()
    if kind.uses_model:
        return lambda lm: kind(lm, **given)
    made = kind(None, **given)
    return lambda lm: made


def run_rank(
    terminal: Terminal,
    run: "Run",
    factors: "Factors",
    lm: "LanguageModel",
    prompts: PromptSet,
    harmless: PromptSet,
    options: RankSettings,
    system: str | None = None,
) -> dict[str, Any]:
    """Ranks, shows the table and writes `rank.json`; returns its content."""
    ranking, about = _ranked(terminal, factors, lm, prompts, harmless, options, system)
    content = {
        **asdict(ranking),
        **about,
        "by": options.by,
        "resembles": resembled(factors, lm, prompts, harmless, options.seed),
        "prompts_origin": prompts.origin,
        "prompts_hash": fingerprint(prompts.texts),
        "harmless_hash": fingerprint(harmless.texts),
    }
    steady = found_again(run, factors)
    content["stability"] = None if steady is None else asdict(steady)
    content = run.save_ranking(content, factors)
    for said in ranking.words.notes:
        terminal.note(said)
    terminal.show(_table(ranking, options.top, steady))
    note_steady(terminal, steady)
    _conclude(terminal, run, ranking, len(prompts), vectors=not factors.info.get("perturbation"))
    return content


def _ranked(
    terminal: Terminal,
    factors: "Factors",
    lm: "LanguageModel",
    prompts: PromptSet,
    harmless: PromptSet,
    options: RankSettings,
    system: str | None,
) -> tuple["Ranking", dict[str, Any]]:
    """The ranking, with what it was expected to take and took; a bar in the meantime."""
    from dct.candidates import candidates
    from dct.ranking import Watch, multiples
    from dct.ranking import rank as rank_vectors

    costs: list[Cost] = []
    began = time.monotonic()
    done, total = 0, (2 * len(candidates(factors)[0]) + 1) * len(multiples(options))
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

        ranking = rank_vectors(
            lm,
            factors,
            prompts.texts,
            harmless.texts,
            options,
            system=system,
            watch=Watch(on_rows, tell),
        )
    return ranking, {"estimate": as_estimate(costs[0]), "seconds": round(time.monotonic() - began, 2)}


def _conclude(terminal: Terminal, run: "Run", ranking: "Ranking", prompts: int, vectors: bool) -> None:
    most = min(32, len(ranking.vectors))
    best = ranking.vectors[0]
    gain = best.effect.score - ranking.unsteered.score
    null = ranking.random_best.score - ranking.unsteered.score
    verdict = (
        f"vector {best.vector} moves the score by {gain:+.3g}{_at(best.effect.kl)}, the best of as many random vectors "
        f"by {null:+.3g}{_at(ranking.random_best.kl)}"
    )
    if gain <= null:
        verdict += " [yellow](no better than chance: try more factors, another slice or --scale)[/yellow]"
    elif best.effect.kl is not None and best.effect.kl > MUCH:
        verdict += f" [yellow](much damage: --max-damage {MUCH:g} leaves such vectors out)[/yellow]"
    terminal.summary(
        f"{len(ranking.vectors)} vectors ranked on {prompts} prompts",
        [
            ("best", verdict),
            ("saved", f"[bold]{escape(str(run.ranking))}[/bold]"),
            (
                "next",
                '[bold cyan]dct steer --rank 1 --prompt "..."[/bold cyan]'
                + f"  or  [bold cyan]dct ablate --top {most} --aggregate mean[/bold cyan]" * vectors,
            ),
        ],
    )


def _at(kl: float | None) -> str:
    """The damage of a vector, behind its score."""
    return "" if kl is None else f" at a damage of {kl:.3f}"


def _table(ranking: "Ranking", top: int, steady: "Stability | None" = None) -> "Table":
    table = titled(escape(f"{ranking.words.label} after the prompt, R = {ranking.scale:.4g}"))
    several = ranking.scales != (1.0,)
    headings = ["rank", "vector", "score", "change", "flipped", "damage (KL)", "alpha"]
    for heading in headings + ["scale"] * several + ["stable"] * (steady is not None):
        table.add_column(heading, justify="right")

    def row(rank: str, name: str, effect: "Effect", alpha: str, scale: str = "", stable: float | None = None) -> None:
        change = effect.score - ranking.unsteered.score
        kl = "–" if effect.kl is None else f"{effect.kl:.3f}"
        cells = [rank, name, f"{effect.score:.2f}", f"{change:+.2f}", f"{effect.flipped:.0%}", kl, alpha]
        cells += [scale] * several + ["" if stable is None else f"{stable:.2f}"] * (steady is not None)
        table.add_row(*cells, style="" if rank else "dim")

    for place, ranked in enumerate(ranking.vectors[:top], start=1):
        again = None if steady is None else steady.of(ranked.vector)
        row(str(place), ranked.vector, ranked.effect, plain(ranked.alpha), f"{ranked.scale / ranking.scale:g} R", again)
    if len(ranking.vectors) > top:
        table.add_row("…", f"({len(ranking.vectors) - top} more)", style="dim")
    table.add_section()
    row("", "unsteered", ranking.unsteered, "")
    row("", "random, mean", ranking.random_mean, "", stable=None if steady is None else steady.chance)
    row("", "random, best", ranking.random_best, "")
    if ranking.supervised is not None:
        row("", "supervised", ranking.supervised, "")
    return table
