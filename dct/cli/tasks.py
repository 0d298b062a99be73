"""`dct rank --task`: vectors by the questions that they make a model answer."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dct.cli.costs import announce, as_estimate
from dct.cli.terminal import Terminal, escape, plain, titled
from dct.errors import UsageError
from dct.prompts import PromptSet, default_origin, fingerprint
from dct.settings import ContestSettings, PromptSettings, RankSettings, TaskSettings

if TYPE_CHECKING:
    from rich.table import Table

    from dct.estimate import Cost
    from dct.factors import Factors
    from dct.halving import Mark
    from dct.model import LanguageModel
    from dct.runs import Run
    from dct.task_ranking import TaskRanking
    from dct.tasks import Task

OWN = "locked"
"""The task that the demo model brings along."""


@dataclass(frozen=True)
class TaskChoice:
    """The task that the user named, and how its answers are matched."""

    name: str
    column: str | None
    match: str | None
    unlock: str | None

    def read(self, model: str) -> "Task":
        """The task, for a model; `locked` is the one that the demo model brings along."""
        from dct.tasks import read

        name = default_origin(model, OWN) if self.name == OWN else self.name
        return read(name, self.column, self.match, self.unlock)


def chosen_task(task: TaskSettings, prompts: PromptSettings, ranking: RankSettings) -> TaskChoice | None:
    """What `task` and the options that belong to it say; refused before a model is loaded where they cannot be.

    Raises:
        UsageError: options that do not go together.
        DctError: as in `tasks.read`.
    """
    if task.task is None:
        for name in ("match", "unlock"):
            if getattr(task, name) is not None:
                raise UsageError(f"`{name}` belongs to `task`, which is missing", argument=name)
        return None
    if prompts.prompts is not None:
        raise UsageError("`task` brings its own prompts: leave `prompts` out", argument="prompts")
    if ranking.by != "score" or ranking.max_damage is not None:
        raise UsageError("`task` orders vectors by right answers: leave `by` and `max_damage` out", argument="by")
    choice = TaskChoice(task.task, prompts.column, task.match, task.unlock)
    if task.task != OWN:
        choice.read("")  # what is wrong with it is said before a model is loaded
    return choice


def run_task(
    terminal: Terminal,
    run: "Run",
    factors: "Factors",
    lm: "LanguageModel",
    questions: tuple["Task", "Task"],
    harmless: PromptSet,
    ranking: RankSettings,
    settings: ContestSettings,
    system: str | None,
) -> dict[str, Any]:
    """Ranks by right answers, shows the table and writes `rank.json`; returns its content.

    Args:
        questions: those to choose by, and those to report on.
    """
    chosen, reported = questions
    costs: list[Cost] = []
    began = time.monotonic()
    with terminal.progress("asking", unit="completions") as advance:

        def tell(expected: "Cost") -> None:
            nonlocal began
            began = time.monotonic()
            costs.append(expected)
            announce(terminal, expected, f"asking {len(chosen)} and {len(reported)} questions")

        from dct.ranking import Watch
        from dct.task_ranking import rank_by_task

        found = rank_by_task(
            lm,
            factors,
            questions,
            harmless.texts,
            settings,
            scale=factors.scale * ranking.scale,
            system=system,
            watch=Watch(lambda n, of: advance("", n, of), tell),
            **{name: getattr(ranking, name) for name in ("positive", "negative", "scales", "seed")},
        )
    content = {
        **asdict(found),
        "estimate": as_estimate(costs[0]),
        "seconds": round(time.monotonic() - began, 2),
        "recovered": found.recovered,
        "by": "task",
        "validation_hash": fingerprint([q.prompt for q in chosen.questions]),
        "test_hash": fingerprint([q.prompt for q in reported.questions]),
        "harmless_hash": fingerprint(harmless.texts),
    }
    content = run.save_ranking(content, factors)
    terminal.show(_table(found, ranking.top))
    _conclude(terminal, run, found)
    return content


def _conclude(terminal: Terminal, run: "Run", ranking: "TaskRanking") -> None:
    best, lucky = ranking.vectors[0], ranking.random_best
    assert best.test is not None
    assert lucky.test is not None
    verdict = f"vector {best.vector} answers {best.test.share:.0%} of the test questions"
    if ranking.recovered is not None:
        verdict += f", {ranking.recovered:.0%} of what the unlocked model gains"
    verdict += f"; the best of as many random vectors {lucky.test.share:.0%}, the unsteered model "
    verdict += f"{ranking.unsteered.share:.0%}"
    if best.test.share <= max(lucky.test.share, ranking.unsteered.share):
        verdict += " [yellow](no better than chance: try --scales, more factors or another slice)[/yellow]"
    terminal.summary(
        f"{len(ranking.vectors)} vectors chosen on {ranking.validation} questions, tested on {ranking.test} others",
        [
            ("best", verdict),
            ("saved", f"[bold]{escape(str(run.ranking))}[/bold]"),
            ("next", '[bold cyan]dct steer --rank 1 --prompt "..."[/bold cyan]'),
        ],
    )


def _table(ranking: "TaskRanking", top: int) -> "Table":
    table = titled(f"right answers to {escape(ranking.task)}, R = {ranking.scale:.4g}")
    for heading in ("rank", "vector", "chosen by", "test", "damage (KL)", "alpha", "scale"):
        table.add_column(heading, justify="right")

    def shown(mark: "Mark | None") -> str:
        return "" if mark is None else f"{mark.right}/{mark.asked}"

    for place, s in enumerate(ranking.vectors[:top], start=1):
        kl = "" if s.effect is None or s.effect.kl is None else f"{s.effect.kl:.3f}"
        share = "" if s.test is None else f"{s.test.share:.0%}  {shown(s.test)}"
        strength = "" if s.alpha is None else plain(s.alpha)
        table.add_row(str(place), s.vector, shown(s.validation), share, kl, strength, f"{s.scale / ranking.scale:g} R")
    if len(ranking.vectors) > top:
        table.add_row("…", f"({len(ranking.vectors) - top} more)", style="dim")
    table.add_section()
    lucky = ranking.random_best
    kl = "" if lucky.effect is None or lucky.effect.kl is None else f"{lucky.effect.kl:.3f}"

    def baseline(name: str, chosen: str, mark: "Mark | None", kl: str = "", scale: str = "") -> None:
        share = "" if mark is None else f"{mark.share:.0%}  {shown(mark)}"
        table.add_row("", name, chosen, share, kl, "", scale, style="dim")

    baseline("unsteered", "", ranking.unsteered)
    baseline("random, all", shown(ranking.random_mean), None)
    baseline("random, best", shown(lucky.validation), lucky.test, kl, f"{lucky.scale / ranking.scale:g} R")
    if ranking.unlocked is not None:
        baseline("unlocked", "", ranking.unlocked)
    return table
