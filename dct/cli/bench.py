"""`dct bench`: what the vectors of each fit elicit, measured."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dct.aliases import DEMO
from dct.cli.asked import note_repeated
from dct.cli.costs import announce, as_estimate
from dct.cli.judge import own_options
from dct.cli.planted import planted
from dct.cli.reports import clock, conclude, show
from dct.cli.tasks import OWN, TaskChoice
from dct.cli.terminal import Terminal, command
from dct.cli.work import load_model, short_name
from dct.errors import InterruptedWorkError, UsageError
from dct.judging import kind_of
from dct.prompts import default_origin, read
from dct.recipe import Recipe
from dct.settings import (
    BenchOutputSettings,
    BenchPromptSettings,
    BenchSettings,
    FitPromptSettings,
    JudgeSettings,
    LayerSettings,
    ModelSettings,
    TaskSettings,
    WorkSettings,
)

if TYPE_CHECKING:
    from dct.bench.runner import Outcome, Progress
    from dct.bench.subject import Sizes, Subject
    from dct.bench.workshop import Workshop
    from dct.estimate import Cost


@command
def bench(
    model: ModelSettings,
    layers: LayerSettings,
    prompts: BenchPromptSettings,
    options: BenchSettings,
    judge: JudgeSettings,
    task: TaskSettings,
    work: WorkSettings,
    output: BenchOutputSettings,
) -> None:
    """Measure what the vectors of each fit elicit: six experiments, as tables and figures.

    i sample complexity, ii addition against ablation, iii password-locked skill, iv enumeration of behaviours,
    v feature multiplicity, vi training curves. Every finished measurement is kept: the same command goes on where it
    was interrupted. Completions are read by a judge, who also chooses the vectors; on the demo model, and on any other
    that `dct organism train` made, by the planted truth, and vectors are chosen by the score of two words.
    """
    terminal = Terminal(output.json, output.quiet)
    if task.task is None and (task.match is not None or (task.unlock is not None and not _is_organism(model.model))):
        raise UsageError("`match` and `unlock` belong to `task`, which is missing", argument="task")
    from dct.bench.figures import available
    from dct.bench.runner import chosen
    from dct.bench.subject import full
    from dct.bench.subject import quick as small
    from dct.lock import held

    experiments = chosen(options.only)
    figures = output.figures and available()
    if output.figures and not figures:
        terminal.warn(
            "no figures: matplotlib is missing; pip install 'deep-causal-transcoders[bench]' (or --no-figures)"
        )
    subject = _subject(terminal, (model, layers, prompts), options, judge, task)
    sizes = (small if options.quick else full)(subject.lm.width, options.factors, options.shuffles)
    name = f"bench-{short_name(model.model)}{'-quick' if options.quick else ''}"
    folder = output.out or Path("runs") / name
    with held(folder):
        content = run_bench(terminal, subject, sizes, folder, experiments, figures, output.force)
    terminal.result(content)


COMMANDS = {"": bench, "planted": planted}


def _subject(
    terminal: Terminal,
    asked: tuple[ModelSettings, LayerSettings, BenchPromptSettings],
    options: BenchSettings,
    judge: JudgeSettings,
    task: TaskSettings,
) -> "Subject":
    """The model with its layers, prompts, task and judge."""
    from dct.bench.subject import Reader, Subject, organism_folder, organism_judge, organism_unlock
    from dct.model import check_layers, choose_layers

    model, layers, prompts = asked
    kind = kind_of(judge.judge)
    given = own_options(kind, judge.judge_option)
    if layers.source is not None and layers.target is not None:
        check_layers(layers.source, layers.target)
    name = model.model
    organism = organism_folder(name)
    known = organism is not None and judge == JudgeSettings()

    def origin(kind: str) -> str:
        if organism is not None and name != DEMO:
            return str(organism / "prompts" / f"{kind}.jsonl")
        return default_origin(name, kind)

    harmful = read(prompts.prompts or origin("harmful"), prompts.column)
    mild = read(prompts.harmless or origin("harmless"))
    note_repeated(terminal, harmful)
    note_repeated(terminal, mild)
    skill = None
    locked = organism is not None and (organism / "prompts" / f"{OWN}.jsonl").is_file()
    if task.task is not None or locked:
        own = task.task in (None, OWN)
        template = organism_unlock() if task.unlock is None and locked and own else task.unlock
        skill = TaskChoice(origin(OWN) if own else str(task.task), None, task.match, template).read(name)
    reading = FitPromptSettings(reply_prefix=prompts.reply_prefix, escape_control=prompts.escape_control)
    lm = load_model(terminal, name, **Recipe(model, prompts=reading).loading())
    first, last = choose_layers(lm.depth, name, layers.source, layers.target)
    check_layers(first, last, lm.depth)
    return Subject(
        lm=lm,
        source=first,
        target=last,
        harmful=harmful.texts,
        harmless=mild.texts,
        task=skill,
        judge=organism_judge() if known else Reader(kind(lm if kind.uses_model else None, **given)),
        words=(options.positive, options.negative),
        system=prompts.system,
        ratio=options.ratio,
        scale=options.scale,
        seed=options.seed,
    )


def _is_organism(model: str) -> bool:
    from dct.bench.subject import organism_folder

    return organism_folder(model) is not None


def run_bench(
    terminal: Terminal,
    subject: "Subject",
    sizes: "Sizes",
    folder: Path,
    experiments: list[str],
    figures: bool,
    force: bool = False,
) -> dict[str, Any]:
    """Measures what is not on record, shows the tables, writes tables and figures; returns what results.json holds."""
    import time

    from dct.bench import report as written
    from dct.bench.records import Records
    from dct.bench.workshop import Workshop

    began = time.monotonic()
    records = Records(folder)
    if force:
        records.clear()
    w = Workshop(subject, sizes, records)
    w.keep_rendered()
    with terminal.busy("calibrating"):
        R = w.scale
    parts = w.split()
    about = (
        f"slice {subject.source} to {subject.target}, R = {R:.4g}; {sizes.factors} vectors a fit; "
        f"{len(parts.train)} prompts to learn from, {len(parts.validation)} to choose by, {len(parts.test)} to report "
        "on"
    )
    terminal.note(about)
    outcome, expected, finished = _measured(terminal, w, experiments)
    if records.damaged:
        terminal.warn(f"{records.damaged} damaged files in {folder} could not be read: measured again")
    for report in outcome.reports:
        show(terminal, report)
    seconds = time.monotonic() - began
    content = {
        "title": f"dct bench: {subject.lm.name}",
        "description": about,
        "model": subject.lm.describe(),
        "scale": R,
        "subject": subject.identity,
        "sizes": asdict(sizes),
        "seconds": round(seconds, 1),
        "estimate": as_estimate(expected),
        "measured seconds": round(outcome.seconds, 1),
    }
    paths = written.write(folder, outcome.reports, content)
    if figures:
        from dct.bench.figures import draw

        none = subject.judge.none if subject.judge is not None else "other"
        with terminal.busy("drawing"):
            paths += draw(folder, outcome.reports, outcome.results, none)
    conclude(terminal, subject, folder, outcome, finished, seconds, paths if figures else None)
    content["experiments"] = {r.experiment: written.as_json(r) for r in outcome.reports}
    return content | {"files": [str(p) for p in paths]}


def _measured(terminal: Terminal, w: "Workshop", experiments: list[str]) -> tuple["Outcome", "Cost", int]:
    """What the experiments found, what they were expected to take, and how many measurements are new."""
    from dct.bench.runner import run

    finished = 0
    costs: list[Cost] = []
    try:
        with terminal.progress("bench", unit="") as advance:

            def tell(now: "Progress") -> None:
                nonlocal finished
                left = "" if now.left is None else f", about {clock(now.left)} left"
                if now.seconds is None:
                    percent = 100 * now.done / now.total
                    advance(f"({now.cell.experiment}) {now.cell.name}{left}", int(percent), 100)
                    return
                finished += 1
                if not terminal.console.is_terminal:
                    terminal.note(
                        f"[{now.number}/{now.of}] ({now.cell.experiment}) {now.cell.name}: {now.seconds:.1f} s{left}"
                    )

            def told(expected: "Cost") -> None:
                costs.append(expected)
                announce(terminal, expected, f"experiments {', '.join(experiments)}", cure="`quick`, fewer `factors`")

            outcome = run(w, experiments, tell, told)
    except KeyboardInterrupt:
        raise InterruptedWorkError(
            f"interrupted; {finished} new measurements are kept in {w.records.folder}: the same command goes on"
        ) from None
    return outcome, costs[0], finished
