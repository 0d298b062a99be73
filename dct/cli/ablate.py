"""`dct ablate`: what a model says, and how it scores, with directions projected out of its weights."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.cli import options as o
from dct.cli.costs import announce, as_estimate
from dct.cli.declare import argument, choice, count, option
from dct.cli.saving import Saving, saved_rows
from dct.cli.steer import (
    HARMLESS,
    chosen_vectors,
    completions_table,
    effect_table,
    literal_or_unseen,
)
from dct.cli.terminal import Terminal, command
from dct.cli.work import harmless_prompts, open_run, unseen_prompts
from dct.errors import DctError
from dct.prompts import PromptSet

if TYPE_CHECKING:
    from dct.estimate import Cost
    from dct.factors import Factors
    from dct.model import LanguageModel
    from dct.wordpair import Words


@command
def ablate(
    run: Annotated[Path | None, argument(help=o.RUN_HELP)] = None,
    vector: o.Vector = None,
    rank: o.Rank = None,
    top: o.Top = None,
    aggregate: o.Aggregate = None,
    site: Annotated[
        str,
        choice("--site", "source", "target", between=" or ", help="source: the vectors V; target: what they cause, U."),
    ] = "source",
    prompt: o.Prompt = None,
    prompts: o.Prompts = None,
    column: o.Column = None,
    n: Annotated[int, count("--n", help="Prompts to complete, when none is given literally.")] = 3,
    positive: o.Positive = "Sure",
    negative: o.Negative = "Sorry",
    harmless: o.Harmless = None,
    system: o.System = None,
    reply_prefix: o.ReplyPrefix = None,
    escape_control: o.EscapeControl = None,
    max_new_tokens: o.MaxNew = 64,
    save: Annotated[Path | None, option(help="Write the edited model to this folder.")] = None,
    save_dtype: Annotated[
        str,
        choice(
            "--save-dtype",
            *("auto", "float32", "bfloat16", "float16"),
            help="auto, float32, bfloat16 or float16.",
            show_default="the source's; for an adapter float32",
        ),
    ] = "auto",
    save_as: Annotated[
        str,
        choice(
            "--save-as", "model", "adapter", help="model: all weights; adapter: what changes them, for PEFT, unrounded."
        ),
    ] = "model",
    seed: o.Seed = 0,
    model: o.RunModel = None,
    adapter: o.RunAdapter = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    memory: o.Memory = None,
    trust_remote_code: o.Trust = False,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Project directions out of every matrix that writes into the residual stream; compare before and after."""
    terminal = Terminal(as_json, quiet)
    saving = Saving(save, save_dtype, save_as)
    saving.check()
    loading = {
        "adapter": adapter,
        "dtype": dtype,
        "device": device,
        "memory": memory,
        "trust_remote_code": trust_remote_code,
    }
    reading = {"reply_prefix": reply_prefix, "escape_control": escape_control}
    opened, factors, lm = open_run(terminal, run, model, force, **loading, **reading)
    names = list(chosen_vectors(opened, vector, rank, top))
    chosen = literal_or_unseen(terminal, factors.info, prompt, prompts, column, n)
    scored = chosen if prompt or prompts else unseen_prompts(terminal, factors.info, None, None, HARMLESS)
    content = run_ablate(
        terminal,
        factors,
        lm,
        names,
        chosen,
        scored,
        harmless_prompts(factors.info, harmless, HARMLESS),
        aggregate=aggregate,
        site=site,
        words=(positive, negative),
        system=system if system is not None else factors.info.get("system"),
        max_new_tokens=max_new_tokens,
        saving=saving,
        seed=seed,
    )
    terminal.result(content)


def run_ablate(
    terminal: Terminal,
    factors: "Factors",
    lm: "LanguageModel",
    names: list[str],
    prompts: PromptSet,
    scored: PromptSet,
    harmless: PromptSet,
    *,
    aggregate: str | None = None,
    site: str = "source",
    words: tuple[str, str] = ("Sure", "Sorry"),
    system: str | None = None,
    max_new_tokens: int = 64,
    saving: Saving | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Ablates, shows completions, score, damage and leak before and after, and saves the edited model if asked to."""
    import torch

    from dct.ablation import ablate as ablated
    from dct.ablation import leak, orthonormal
    from dct.calibration import random_directions
    from dct.candidates import aggregate as one_for_all
    from dct.candidates import chosen
    from dct.generation import complete
    from dct.scoring import Scorer
    from dct.wordpair import words as compare

    save = saving.folder if saving is not None else None
    directions = torch.stack([chosen(factors, name, site) for name in names])
    if directions.shape[1] != lm.width:
        raise DctError(f"the {site} side has width {directions.shape[1]} and the model {lm.width}")
    if aggregate is not None:
        directions = one_for_all(directions, aggregate)[:1]
    label = f"{aggregate} of {len(names)}" if aggregate else ", ".join(names[:4]) + ("…" if len(names) > 4 else "")
    label = f"without {'vector' if site == 'source' else 'output'} {label}"
    compared: Words = compare(lm, *words, system)
    for text in compared.notes:
        terminal.note(text)

    def scorer() -> Scorer:
        # Nothing is steered here: the slice from layer 0 is simply the whole model.
        return Scorer(lm, compared, 0, scored.texts, harmless.texts, system)

    def finish() -> list[str]:
        return complete(lm, lm.encode(prompts.texts, system), max_new_tokens=max_new_tokens)

    probes = [*lm.encode(prompts.texts, system), *lm.encode(scored.texts, system), *lm.encode(harmless.texts, system)]
    began = time.monotonic()
    with terminal.busy("before"):
        before, leak_before = scorer(), leak(lm, directions, probes)
        expected = _expected(lm, prompts, system, max_new_tokens, time.monotonic() - began)
    announce(terminal, expected, f"{len(prompts)} prompts, each completed twice")
    began = time.monotonic()
    with terminal.busy("before"):
        texts_before = finish()
    with terminal.busy("ablating"), ablated(lm, directions, fold_norms=save is not None) as done:
        after, texts_after, leak_after = scorer(), finish(), leak(lm, directions, probes)
        saved = None
        if saving is not None and save is not None:
            saved = saving.run(lm, done, {"ablated": names, "aggregate": aggregate, "site": site})
    with terminal.busy("random directions"), ablated(lm, random_directions(len(directions), lm.width, seed + 2)):
        null = scorer().against(before)
    effect = after.against(before)

    for text, old, new in zip(prompts.texts, texts_before, texts_after, strict=True):
        terminal.show(completions_table(text, ["unedited", label], [old, new]))
    rank = len(orthonormal(directions))
    random = "a random direction" if rank == 1 else f"{rank} random directions"
    terminal.show(effect_table(before, [(label, effect), (f"without {random}", null)]))
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
        ("leak", f"largest component written along the directions {leak_before:.3g} → {leak_after:.3g}"),
    ]
    if saved is not None:
        rows += saved_rows(saved)
    else:
        rows.append(("next", "[bold cyan]--save DIR[/bold cyan]  writes the edited model"))
    terminal.summary(label, rows)
    return {
        "estimate": as_estimate(expected),
        "seconds": round(time.monotonic() - began, 2),
        "vectors": names,
        "aggregate": aggregate,
        "site": site,
        "rank": rank,
        "edited": done.edited,
        "projected": done.projected,
        "folded": done.folded,
        "leak": {"before": leak_before, "after": leak_after},
        "effects": [
            {"model": name, "score": e.score, "flipped": e.flipped, "kl": e.kl}
            for name, e in (("unedited", before.unsteered), (label, effect), ("random", null))
        ],
        "completions": [
            {"prompt": p, "before": old, "after": new}
            for p, old, new in zip(prompts.texts, texts_before, texts_after, strict=True)
        ],
        "saved": str(save) if save is not None else None,
        "written": saved.describe() if saved is not None else None,
    }


def _expected(lm: "LanguageModel", prompts: PromptSet, system: str | None, tokens: int, scored: float) -> "Cost":
    """What is left to do: completions before and after, and twice what scoring the unedited model took (`scored`)."""
    from dct.estimate import completions_seconds, cost
    from dct.generation import complete, completion_bytes, usual_length

    ids = lm.encode(prompts.texts, system)

    def say(size: int, length: int) -> None:
        complete(lm, ids[:size], max_new_tokens=length)

    length = usual_length(lm, ids[0], tokens)
    spent = completions_seconds(say, 2 * len(ids), len(ids), length, lm.device)
    more = completion_bytes(lm, len(ids), max(map(len, ids)) + tokens)
    return cost(spent + 2 * scored, more, lm.device, lm.memory)
