"""`dct rank` as an experiment: vectors chosen by what the model says under them."""

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from dct.cli.costs import announce, as_estimate
from dct.cli.kinds import TOLD_BY, resembled, run_kinds
from dct.cli.pictures import show_ranking
from dct.cli.stable import found_again, note_steady
from dct.cli.terminal import Terminal, escape, titled
from dct.prompts import PromptSet, fingerprint
from dct.settings import RankSettings, SelectSettings

if TYPE_CHECKING:
    from rich.table import Table

    from dct.estimate import Cost
    from dct.factors import Factors
    from dct.halving import Mark
    from dct.judging import Judge
    from dct.model import LanguageModel
    from dct.outcome import Champion, Selection
    from dct.runs import Run
    from dct.siblings import Stability

CALLED = {"random": "the best random vector", "supervised": "the best difference of means", "noise": "noise as long"}
"""The baselines in words."""

SURELY = 0.05
"""Of an exact test: what is less likely than this is not put down to chance."""


def run_select(
    terminal: Terminal,
    run: "Run",
    factors: "Factors",
    lm: "LanguageModel",
    prompts: tuple[PromptSet, PromptSet],
    options: RankSettings,
    settings: SelectSettings,
    judge: "Judge | None" = None,
    *,
    n: int = 32,
    system: str | None = None,
) -> dict[str, Any]:
    """Chooses, shows the table and writes `rank.json`, in a folder that is kept for this process; returns its content.

    Args:
        prompts: to choose by and report on, and harmless ones.
        n: prompts to choose by.
        system: system message; left out, the one of the fit.
    """
    asked, harmless = prompts
    reading = factors if system is None else replace(factors, info={**factors.info, "system": system})
    costs: list[Cost] = []
    began = time.monotonic()
    with terminal.progress("asking", unit="replies") as advance:
        found = _selected(terminal, run, reading, lm, prompts, options, settings, judge, (n, costs, advance))
    steady = found_again(run, factors)
    terminal.show(_table(found, options.top, steady, vectors=not factors.info.get("perturbation")))
    note_steady(terminal, steady)
    seen = None
    if len(harmless):
        few = PromptSet(found.pool.validation[:TOLD_BY])
        seen = run_kinds(terminal, reading, lm, few, harmless, scale=found.found.scale, seed=options.seed)
    with terminal.busy("comparing with the streams of all layers"):
        seen_prompts = PromptSet(found.pool.validation)
        alike = resembled(reading, lm, seen_prompts, harmless, options.seed)
    content = {
        "by": "judged",
        **_content(found),
        "stability": None if steady is None else asdict(steady),
        "kinds": seen,
        "resembles": alike,
        "estimate": as_estimate(_together(costs)),
        "seconds": round(time.monotonic() - began, 2),
        "prompts_origin": asked.origin,
        "harmless_hash": fingerprint(harmless.texts),
    }
    content = run.save_ranking(content, factors)
    show_ranking(terminal, content)
    _conclude(terminal, run, found)
    return content


def _selected(
    terminal: Terminal,
    run: "Run",
    factors: "Factors",
    lm: "LanguageModel",
    prompts: tuple[PromptSet, PromptSet],
    options: RankSettings,
    settings: SelectSettings,
    judge: "Judge | None",
    told: tuple[int, list["Cost"], Any],
) -> "Selection":
    """The experiment, with a bar and what is to be said on the way."""
    from dct.journal import Journal
    from dct.ranking import Watch
    from dct.selection import select

    (asked, harmless), (n, costs, advance) = prompts, told
    stage = ""

    def tell(expected: "Cost") -> None:
        """Before each part of the experiment, what it will take."""
        costs.append(expected)
        what = "choosing and testing, with the baselines" if stage else "seeing what there is to gain"
        announce(terminal, expected, what, cure="--max-new-tokens, --keep or --test lower")

    def begin(what: str) -> None:
        """What the bar says from now on."""
        nonlocal stage
        stage = what

    journal = Journal(run.completions)
    if journal.known:
        terminal.note(f"{run.completions} holds {len(journal.known)} replies: none of them is made again")
    return select(
        lm,
        factors,
        asked.texts,
        harmless.texts,
        settings,
        n=n,
        judge=judge,
        journal=journal,
        watch=Watch(lambda done, of: advance(stage, done, of), tell, begin, terminal.note),
        **{name: value for name, value in vars(options).items() if name != "top"},
    )


def _together(costs: list["Cost"]) -> "Cost | None":
    from dct.estimate import Cost

    if not costs:
        return None
    most = max(costs, key=lambda one: one.peak_memory)
    return Cost(round(sum(one.seconds for one in costs), 2), most.peak_memory, most.more_memory, most.free_memory)


def _content(found: "Selection") -> dict[str, Any]:
    """What `rank.json` holds of an experiment."""
    pool = found.pool
    return {
        "vectors": [asdict(one) for one in found.vectors],
        "arms": [asdict(one) for one in found.arms],
        "unsteered": asdict(found.unsteered),
        "alone": asdict(found.alone),
        "random_best": asdict(found.random_best),
        "random": [asdict(one) for one in found.random],
        "words": asdict(found.words),
        "scale": found.scale,
        "scales": sorted({1.0, *found.scales}),
        "tried_scales": list(found.scales),
        "tries": found.tries,
        "prompts": pool.asked,
        "labels": pool.labels,
        "validation": len(pool.validation),
        "test": len(pool.test),
        "harmless": found.harmless,
        "validation_hash": fingerprint(pool.validation),
        "test_hash": fingerprint(pool.test),
        "max_new_tokens": found.max_new_tokens,
        "judge": found.judge,
        "wanted": found.wanted,
    }


# --- shown ------------------------------------------------------------------------------------------------------------


def _table(found: "Selection", top: int, steady: "Stability | None" = None, vectors: bool = True) -> "Table":
    what = "complies" if found.wanted == "complied" else f"is judged {found.wanted}"
    table = titled(escape(f"replies in which the model {what} and is coherent, R = {found.scale:.4g}"))
    for heading in (
        "rank",
        "vector",
        "chosen by",
        "test",
        "p",
        "damage (KL)",
        "spoiled",
        "scale",
        *["stable"] * (steady is not None),
    ):
        table.add_column(heading, justify="right")
    best = found.found
    tried = [one for one in found.vectors if one.validation is not None]
    for place, one in enumerate(tried[:top], start=1):
        first = place == 1
        table.add_row(
            str(place),
            one.vector,
            _counted(one.validation),
            _shared(best) if first else "",
            "",
            "–" if one.effect.kl is None else f"{one.effect.kl:.3f}",
            _spoiled(best) if first else "",
            f"{one.scale / found.scale:.3g} R",
            *([] if steady is None else [f"{steady.of(one.vector):.2f}"]),
        )
    if len(found.vectors) > min(top, len(tried)):
        table.add_row("…", f"({len(found.vectors) - min(top, len(tried))} more)", style="dim")
    table.add_section()
    table.add_row("", "unsteered", "", _counted(found.unsteered), style="dim")
    for arm in found.arms[1:]:
        alike = arm.arm == "random" or (vectors and arm.arm == "noise")  # R is the length of what the arm adds
        multiple = f"{arm.scale / found.scale:.3g} R" if alike else ""
        damage = "–" if arm.damage is None else f"{arm.damage.kl:.3f}"
        name = f"means, {arm.vector}" if arm.arm == "supervised" else arm.vector
        cells = ("", name, _counted(arm.validation), _shared(arm), _chance(arm), damage, _spoiled(arm), multiple)
        chance = [f"{steady.chance:.2f}"] if steady is not None and arm.arm == "random" else []
        table.add_row(*cells, *chance, style="dim")
    return table


def _counted(mark: "Mark | None") -> str:
    return "" if mark is None else f"{mark.right}/{mark.asked}"


def _shared(one: "Champion") -> str:
    low, high = one.interval
    return f"{_counted(one.test)}  {one.test.share:.0%} ({100 * low:.0f}–{100 * high:.0f})"


def _spoiled(one: "Champion") -> str:
    return "–" if one.damage is None else f"{one.damage.spoiled}/{one.damage.of}"


def verdict(found: "Selection") -> tuple[str, bool]:
    """What came of it in words, and whether the found vector is better than every baseline beyond chance."""
    best = found.found
    low, high = best.interval
    if found.wanted == "complied" and found.pool.refused:
        done = f"makes the model comply with {best.test.right} of {best.test.asked} unseen requests that it refuses"
    else:
        done = f"makes {best.test.right} of {best.test.asked} unseen replies {found.wanted}"
    text = f"vector {best.vector} {done} ({best.test.share:.0%}; {100 * low:.0f} to {100 * high:.0f}%)"
    text += "".join(f", {CALLED[arm.arm]} {arm.test.right}" for arm in found.arms[1:])
    sides: dict[str, list[str]] = {"better": [], "worse": [], "even": []}
    for arm in found.arms[1:]:
        surely = arm.chance is not None and arm.chance < SURELY
        side = "even" if not surely else "better" if best.test.right > arm.test.right else "worse"
        sides[side].append(CALLED[arm.arm])
    told = [f"clearly {side} than {_listed(sides[side])}" for side in ("better", "worse") if sides[side]]
    told += [f"not clearly better than {_listed(sides['even'])}"] if sides["even"] else []
    return f"{text}: {'; '.join(told)}", not (sides["worse"] or sides["even"])


def passed_over(found: "Selection") -> str | None:
    """Why the chosen vector stands before one with more successes, in words; None where there is no such vector."""
    tried = [(one, one.validation) for one in found.vectors if one.validation is not None]
    if not tried:
        return None
    (first, mark), *others = tried
    best, most = max(others, key=lambda one: one[1].right * (one[1].asked == mark.asked), default=(first, mark))
    if most.asked != mark.asked or most.right <= mark.right or first.effect.kl is None or best.effect.kl is None:
        return None
    return (
        f"before vector {best.vector} ({_counted(most)} where it has {_counted(mark)}), which does more damage: "
        f"KL {best.effect.kl:.3f} against {first.effect.kl:.3f}"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]


def _chance(one: "Champion") -> str:
    if one.chance is None:
        return ""
    return "< 0.001" if one.chance < 0.001 else f"{one.chance:.2g}"


def _conclude(terminal: Terminal, run: "Run", found: "Selection") -> None:
    text, better = verdict(found)
    text = escape(text)
    if not better:
        text += " [yellow](try more factors, other --scales, another slice, or more prompts)[/yellow]"
    harm = found.found.damage
    rows = [("best", text)]
    if (why := passed_over(found)) is not None:
        rows.append(("chosen", escape(why)))
    if harm is not None:
        rows.append(
            (
                "damage",
                f"on {found.harmless} harmless prompts: KL {harm.kl:.3f}; {harm.spoiled} of {harm.of} replies become "
                "refused or incoherent",
            )
        )
    rows += [
        ("saved", f"[bold]{escape(str(run.ranking))}[/bold], replies in {escape(run.completions.name)}"),
        ("next", '[bold cyan]dct steer --rank 1 --prompt "..."[/bold cyan]'),
    ]
    pool = found.pool
    terminal.summary(
        f"the best of {found.tries} tries of each kind: chosen on {len(pool.validation)} prompts, tested on "
        f"{len(pool.test)} others",
        rows,
    )
