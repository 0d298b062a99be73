"""`dct steer`: what a model says with a vector added, beside what it says without."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.cli import options as o
from dct.cli.costs import announce, as_estimate
from dct.cli.declare import argument, choice, count, number, option
from dct.cli.ranges import LARGE
from dct.cli.terminal import Terminal, command, escape, shown
from dct.cli.work import harmless_prompts, open_run, unseen_prompts
from dct.errors import DctError, UsageError
from dct.plainjson import dumps
from dct.prompts import PromptSet

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from dct.estimate import Cost
    from dct.factors import Factors
    from dct.generation import OnToken
    from dct.model import LanguageModel
    from dct.runs import Run
    from dct.scoring import Effect, Scorer

HARMLESS = 16
"""Harmless prompts on which the damage of a vector is measured."""


@command
def steer(
    run: Annotated[Path | None, argument(help=o.RUN_HELP)] = None,
    vector: o.Vector = None,
    rank: o.Rank = None,
    top: o.Top = None,
    aggregate: o.Aggregate = None,
    prompt: o.Prompt = None,
    prompts: o.Prompts = None,
    column: o.Column = None,
    n: Annotated[int, count("--n", help="Prompts, when none is given literally.")] = 3,
    scale: Annotated[
        float,
        number("--scale", least=-LARGE, most=LARGE, help="Multiplies R, or the scale that --rank brings along."),
    ] = 1.0,
    positive: o.Positive = "Sure",
    negative: o.Negative = "Sorry",
    harmless: o.Harmless = None,
    system: o.System = None,
    reply_prefix: o.ReplyPrefix = None,
    escape_control: o.EscapeControl = None,
    tokens: Annotated[
        str,
        choice(
            "--tokens", "all", "prompt", "generated", help="Steer all tokens, only the prompt, or only those generated."
        ),
    ] = "all",
    max_new_tokens: o.MaxNew = 64,
    temperature: o.Temperature = 0.0,
    seed: o.Seed = 0,
    model: o.RunModel = None,
    adapter: o.RunAdapter = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    memory: o.Memory = None,
    trust_remote_code: o.Trust = False,
    out: Annotated[Path | None, option("--out", help="Also write the completions to this JSONL file.")] = None,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Complete prompts with vectors added to the residual stream, beside the unsteered model.

    The vector R v is added at the source layer, at every token of the prompt and of the completion.
    """
    terminal = Terminal(as_json, quiet)
    loading = {
        "adapter": adapter,
        "dtype": dtype,
        "device": device,
        "memory": memory,
        "trust_remote_code": trust_remote_code,
    }
    reading = {"reply_prefix": reply_prefix, "escape_control": escape_control}
    opened, factors, lm = open_run(terminal, run, model, force, **loading, **reading)
    picked = chosen_vectors(opened, vector, rank, top)
    chosen = literal_or_unseen(terminal, factors.info, prompt, prompts, column, n)
    content = run_steer(
        terminal,
        factors,
        lm,
        list(picked),
        chosen,
        harmless_prompts(factors.info, harmless, HARMLESS),
        norms=list(picked.values()),
        aggregate=aggregate,
        scale=scale,
        words=(positive, negative),
        system=system if system is not None else factors.info.get("system"),
        tokens=tokens,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    if out is not None:
        from dct.factors import write_whole

        write_whole(out, "".join(dumps(c, strict=False) + "\n" for c in content["completions"]).encode())
        terminal.note(f"written to {out}")
    terminal.result(content)


def chosen_vectors(
    run: "Run", vector: list[str] | None, rank: list[int] | None, top: int | None, *, default: bool = True
) -> dict[str, float | None]:
    """The vectors that a command was asked for, by number, by rank, or the best of the ranking when by neither.

    Returns:
        Their names, each with the norm at which the ranking found it best; None for one chosen by its number.

    Raises:
        DctError: the run has not been ranked, or has fewer vectors than asked for.
    """
    picked: dict[str, float | None] = dict.fromkeys(vector or [])
    places = list(rank or []) + list(range(1, (top or 0) + 1))
    if not picked and not places and default:
        if not run.ranking.exists():
            raise UsageError("say which vector: --vector 17, or rank the run first and use --rank 1")
        places = [1]
    if places:
        ranked = [(str(v["vector"]), v.get("scale")) for v in run.load_ranking()["vectors"]]
        for place in places:
            if not 1 <= place <= len(ranked):
                raise DctError(f"rank {place} is out of range: the ranking holds 1 to {len(ranked)}")
            picked.setdefault(*ranked[place - 1])
    return picked


def literal_or_unseen(
    terminal: Terminal,
    info: dict[str, Any],
    literal: list[str] | None,
    origin: str | None,
    column: str | None,
    n: int,
) -> PromptSet:
    """The prompts given literally, or the first n that the fit did not see."""
    if literal and origin is None:
        return PromptSet(tuple(literal), origin="--prompt")
    rest = unseen_prompts(terminal, info, origin, column, n)
    return PromptSet(tuple(literal or ()) + rest.texts, origin=rest.origin)


def run_steer(
    terminal: Terminal,
    factors: "Factors",
    lm: "LanguageModel",
    names: list[str],
    prompts: PromptSet,
    harmless: PromptSet,
    *,
    norms: Sequence[float | None] | None = None,
    aggregate: str | None = None,
    scale: float = 1.0,
    words: tuple[str, str] = ("Sure", "Sorry"),
    system: str | None = None,
    tokens: str = "all",
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Streams completions, prompt by prompt, and shows each vector's effect and damage beside a random one's.

    Each vector is added at its own of the `norms`, R where it has none, times `scale`; the random one and an aggregate
    at the mean of them.
    """
    import torch

    from dct.calibration import random_directions
    from dct.candidates import chosen
    from dct.generation import complete
    from dct.scoring import Scorer
    from dct.wordpair import words as compare

    if factors.info.get("source") is None:
        raise DctError("these factors do not say at which layer they were fitted: set info['source'] before saving")
    layer = int(factors.info["source"])
    each = scale * torch.tensor([n or factors.scale for n in norms or [None] * len(names)])
    R = float(each.mean())
    directions = torch.stack([chosen(factors, name) for name in names])
    scorer = Scorer(lm, compare(lm, *words, system), layer, prompts.texts, harmless.texts, system)
    for said in scorer.words.notes:
        terminal.note(said)
    expected = _expected(lm, scorer, prompts, system, 1 + len(names), max_new_tokens, layer)
    announce(terminal, expected, f"{len(prompts)} prompts, each completed {_times(1 + len(names))}")
    began = time.monotonic()
    labels = [f"vector {name}" for name in names]
    if aggregate is not None:
        labels, directions = _aggregated(scorer, directions, aggregate, R, names)
        each = each.mean()[None]
    steered = each[:, None] * directions
    effects = scorer.effects(steered)
    null = scorer.effects(R * random_directions(1, lm.width, seed + 2))[0]

    vectors = torch.cat([torch.zeros(1, lm.width), steered]).to(lm.device)
    columns = ["unsteered", *labels]
    completions = []
    for text in prompts.texts:
        ids = lm.encode([text], system) * len(columns)
        with _growing(terminal, text, columns) as grow:
            rows = complete(
                lm,
                ids,
                vectors,
                layer,
                tokens=tokens,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                on_token=grow,
            )
        terminal.show(completions_table(text, columns, rows))
        completions += [
            {"prompt": text, "vector": name.removeprefix("vector "), "scale": norm, "completion": row}
            for name, norm, row in zip(columns, [0.0, *each.tolist()], rows, strict=True)
        ]
    terminal.show(effect_table(scorer, [*zip(labels, effects, strict=True), ("a random vector", null)]))
    return {
        "layer": layer,
        "scale": R,
        "estimate": as_estimate(expected),
        "seconds": round(time.monotonic() - began, 2),
        "effects": [
            {"vector": label.removeprefix("vector "), "score": e.score, "flipped": e.flipped, "kl": e.kl}
            for label, e in [
                ("unsteered", scorer.unsteered),
                *zip(labels, effects, strict=True),
                ("random", null),
            ]
        ],
        "completions": completions,
    }


def _expected(
    lm: "LanguageModel",
    scorer: "Scorer",
    prompts: PromptSet,
    system: str | None,
    rows: int,
    tokens: int,
    layer: int,
) -> "Cost":
    """What scores and completions will take: every prompt is completed in so many rows."""
    import torch

    from dct.estimate import completions_seconds, cost
    from dct.generation import complete, completion_bytes, usual_length

    ids = lm.encode(prompts.texts, system)
    longest = max(ids, key=len)

    def say(size: int, length: int) -> None:
        complete(lm, [longest] * size, torch.zeros(size, lm.width), layer, max_new_tokens=length)

    length = usual_length(lm, ids[0], tokens)
    spent = completions_seconds(say, rows * len(prompts), rows, length, lm.device)
    scored = scorer.expected(rows)
    more = completion_bytes(lm, rows, len(longest) + tokens)
    return cost(spent + scored.seconds, max(more, scored.more_memory), lm.device, lm.memory)


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


@contextmanager
def _growing(terminal: Terminal, prompt: str, names: list[str]) -> "Iterator[OnToken | None]":
    """A table that grows with the completions on a terminal, and makes room for the finished one."""
    if not terminal.live:
        yield None
        return
    from rich.live import Live

    rows = [""] * len(names)
    with Live(console=terminal.console, auto_refresh=False, transient=True) as live:

        def grow(row: int, so_far: str) -> None:
            rows[row] = so_far
            live.update(completions_table(prompt, names, rows), refresh=True)

        yield grow


def _aggregated(
    scorer: "Scorer", directions: "Tensor", how: str, R: float, names: list[str]
) -> tuple[list[str], "Tensor"]:
    """One direction for all that were chosen; of the two senses of an SVD direction, the one that scores higher."""
    from dct.candidates import aggregate

    found = aggregate(directions, how)
    scores = [e.score for e in scorer.effects(R * found)]
    best = max(range(len(found)), key=lambda k: scores[k])
    return [f"{how} of {len(names)} vectors"], found[best : best + 1]


def effect_table(scorer: "Scorer", effects: list[tuple[str, "Effect"]]) -> "Table":
    """Effect and damage of each, the unsteered model first."""
    from rich.table import Table

    w = scorer.words
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for heading in (f"{escape(w.shown_positive)} − {escape(w.shown_negative)}", "flipped", "damage (KL)"):
        table.add_column(heading, justify="right")
    for name, effect in [("unsteered", scorer.unsteered), *effects]:
        kl = "–" if effect.kl is None else f"{effect.kl:.3f}"
        table.add_row(name, f"{effect.score:+.2f}", f"{effect.flipped:.0%}", kl)
    return table


def completions_table(prompt: str, names: list[str], texts: list[str]) -> "Table":
    """Completions of a prompt, the untouched model's first: side by side, or one below the other if they are many."""
    table = _frame(prompt)
    if len(names) <= 3:
        for k, name in enumerate(names):
            table.add_column(name, ratio=1, style="dim" if k == 0 else "", overflow="fold")
        table.add_row(*(shown(text) for text in texts))
        return table
    table.add_column("", no_wrap=True)
    table.add_column("completion", ratio=1, overflow="fold")
    for k, (name, text) in enumerate(zip(names, texts, strict=True)):
        table.add_row(name, shown(text), style="dim" if k == 0 else "")
    return table


def _frame(prompt: str) -> "Table":
    from rich import box
    from rich.table import Table

    return Table(
        title=f"[bold]{escape(prompt)}[/bold]",
        title_justify="left",
        expand=True,
        show_lines=True,
        header_style="bold",
        box=box.ROUNDED,
    )
