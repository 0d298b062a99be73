"""`dct ablate`: what a model says, and how it scores, with directions projected out of its weights."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.cli.asked import HARMLESS, harmless_prompts, literal_or_unseen, unseen_prompts
from dct.cli.comparison import Comparison
from dct.cli.completions import completions_table, effect_table, planned
from dct.cli.costs import announce, as_estimate
from dct.cli.saving import check_saving, saved_rows
from dct.cli.signature import argument
from dct.cli.terminal import Terminal, command
from dct.cli.vectors import chosen_vectors
from dct.cli.work import RUN_HELP, open_run
from dct.errors import DctError
from dct.prompts import PromptSet
from dct.settings import (
    AblateSettings,
    ReplyPromptSettings,
    RunModelSettings,
    RunOutputSettings,
    SaveSettings,
    VectorSettings,
)

if TYPE_CHECKING:
    from torch import Tensor

    from dct.ablation import Ablation
    from dct.factors import Factors
    from dct.model import LanguageModel
    from dct.saving import Saved


@command
def ablate(
    model: RunModelSettings,
    vectors: VectorSettings,
    prompts: ReplyPromptSettings,
    options: AblateSettings,
    saving: SaveSettings,
    output: RunOutputSettings,
    run: Annotated[Path | None, argument(RUN_HELP)] = None,
) -> None:
    """Project directions out of every matrix that writes into the residual stream; compare before and after."""
    terminal = Terminal(output.json, output.quiet)
    check_saving(saving)
    opened, factors, lm = open_run(terminal, run, model, prompts, output.force)
    from dct.perturbation import vectors_alone

    if options.site == "source":
        vectors_alone(
            factors.info, "an ablation", "pass `site` target for what they cause, or act with one by `dct steer`"
        )
    names = list(chosen_vectors(opened, vectors))
    chosen = literal_or_unseen(terminal, factors.info, prompts)
    literal = prompts.prompt or prompts.prompts
    scored = chosen if literal else unseen_prompts(terminal, factors.info, None, None, HARMLESS)
    content = run_ablate(
        terminal,
        factors,
        lm,
        names,
        (chosen, scored, harmless_prompts(factors.info, prompts.harmless, HARMLESS)),
        options,
        saving,
        aggregate=vectors.aggregate,
        system=prompts.system if prompts.system is not None else factors.info.get("system"),
    )
    terminal.result(content)


def run_ablate(
    terminal: Terminal,
    factors: "Factors",
    lm: "LanguageModel",
    names: list[str],
    prompts: tuple[PromptSet, PromptSet, PromptSet],
    options: AblateSettings,
    saving: SaveSettings,
    *,
    aggregate: str | None = None,
    system: str | None = None,
) -> dict[str, Any]:
    """Ablates, shows completions, score, damage and leak before and after, and saves the edited model if asked to.

    Args:
        prompts: those that are completed, those that are scored, and harmless ones for the damage.
    """
    from dct.ablation import orthonormal

    directions = _directions(factors, lm, names, options.site, aggregate)
    label = f"{aggregate} of {len(names)}" if aggregate else ", ".join(names[:4]) + ("…" if len(names) > 4 else "")
    label = f"without {'vector' if options.site == 'source' else 'output'} {label}"
    bench = Comparison.of(terminal, lm, prompts, options, system)
    began = time.monotonic()
    with terminal.busy("before"):
        before = bench.look(directions)
        expected = bench.expected(time.monotonic() - began)
    announce(terminal, expected, planned(len(bench.completed), 2))
    began = time.monotonic()
    about = {"ablated": names, "aggregate": aggregate, "site": options.site}
    with terminal.busy("before"):
        before.texts = bench.complete()
    after, null, done, saved = bench.edited(directions, saving, about)
    alone, effect, random = (one.against(before.reading) for one in (before.reading, after.reading, null))
    for text, old, new in zip(bench.completed.texts, before.texts, after.texts, strict=True):
        terminal.show(completions_table(text, ["unedited", label], [old, new]))
    rank = len(orthonormal(directions))
    null_label = "without a random direction" if rank == 1 else f"without {rank} random directions"
    shown = [("unedited", alone), (label, effect), (null_label, random)]
    terminal.show(effect_table(bench.words, shown))
    _conclude(terminal, lm, label, rank, (before.leak, after.leak), done, saved)
    return {
        "estimate": as_estimate(expected),
        "seconds": round(time.monotonic() - began, 2),
        "vectors": names,
        "aggregate": aggregate,
        "site": options.site,
        "rank": rank,
        "edited": done.edited,
        "projected": done.projected,
        "folded": done.folded,
        "leak": {"before": before.leak, "after": after.leak},
        "effects": [
            {"model": name, "score": e.score, "flipped": e.flipped, "kl": e.kl}
            for name, e in (("unedited", alone), (label, effect), ("random", random))
        ],
        "completions": [
            {"prompt": p, "before": old, "after": new}
            for p, old, new in zip(bench.completed.texts, before.texts, after.texts, strict=True)
        ],
        "saved": str(saving.save) if saving.save is not None else None,
        "written": saved.describe() if saved is not None else None,
    }


def _directions(
    factors: "Factors", lm: "LanguageModel", names: list[str], site: str, aggregate: str | None
) -> "Tensor":
    """What is projected out: vectors or outputs by their names, or one direction for all of them."""
    import torch

    from dct.candidates import aggregate as one_for_all
    from dct.candidates import chosen

    directions = torch.stack([chosen(factors, name, site) for name in names])
    if directions.shape[1] != lm.width:
        raise DctError(f"the {site} side has width {directions.shape[1]} and the model {lm.width}")
    return directions if aggregate is None else one_for_all(directions, aggregate)[:1]


def _conclude(
    terminal: Terminal,
    lm: "LanguageModel",
    label: str,
    rank: int,
    leaks: tuple[float, float],
    done: "Ablation",
    saved: "Saved | None",
) -> None:
    """How the edit was made, what it still writes, before and after, and where it was saved."""
    how = f"{len(done.edited)} matrices edited" if done.edited else ""
    if done.projected:
        how += f"{', ' if how else ''}{len(done.projected)} sites projected while the model runs"
        terminal.note(
            f"a norm or unknown part stands between {lm.name}'s matrices and the stream, where a weight edit would "
            f"not be the projection: the output of {done.projected[0]} and {len(done.projected) - 1} more is projected"
        )
    if done.folded:
        terminal.note(
            f"the gain of {len(done.folded)} norms between matrices and stream was folded into the directions: nothing "
            "of them reaches the stream, but the edit is an oblique projection, not the orthogonal one"
        )
    rows = [
        ("edit", f"{how}; rank {rank}"),
        ("leak", f"largest component written along the directions {leaks[0]:.3g} → {leaks[1]:.3g}"),
    ]
    if saved is not None:
        rows += saved_rows(saved)
    else:
        rows.append(("next", "[bold cyan]--save DIR[/bold cyan]  writes the edited model"))
    terminal.summary(label, rows)
