"""What the vectors of a run say, one of each kind: a look around before anything is asked of them."""

from typing import TYPE_CHECKING, Any

from dct.cli.terminal import Terminal, escape, titled
from dct.prompts import PromptSet

if TYPE_CHECKING:
    from dct.factors import Factors
    from dct.kinds import Kind
    from dct.model import LanguageModel

SHOWN = 8
"""Kinds that are shown."""


def run_kinds(
    terminal: Terminal,
    factors: "Factors",
    lm: "LanguageModel",
    prompts: PromptSet,
    harmless: PromptSet,
    *,
    multiple: float = 1.0,
    max_new_tokens: int = 24,
    seed: int = 0,
) -> dict[str, Any]:
    """Groups the vectors at `multiple` times R and shows what one of each kind says; beside it, how many kinds as many
    random vectors make.

    Args:
        prompts: the first of them is answered in the table; all of them tell kinds apart.
        harmless: the same; damage is measured on them.
    """
    from dct.calibration import random_directions
    from dct.candidates import Aim, candidates
    from dct.kinds import HEARD, kinds
    from dct.nexttoken import NextTokens

    aim = Aim.of(factors, scale=multiple * factors.scale)
    names, directions = candidates(factors)
    names, vectors = names[:HEARD], aim.scale * directions[:HEARD]
    with terminal.busy("looking for kinds"):
        near = NextTokens(lm, aim.layer, lm.encode([*prompts.texts, *harmless.texts], aim.system))
        found = kinds(near, vectors)
        null = kinds(near, aim.scale * random_directions(len(vectors), lm.width, seed + 2))
    shown = [kind for kind in found if not kind.unchanged][:SHOWN]
    asked = [prompts.texts[0], harmless.texts[0]]
    with terminal.busy("listening to one of each"):
        rows = _rows(lm, shown, vectors, asked, harmless, aim, max_new_tokens)
    changed, random = (sum(not kind.unchanged for kind in some) for some in (found, null))
    told = f"{changed} kinds in {len(vectors)} vectors at {multiple:.3g} R; {random} in as many random ones"
    _show(terminal, told, asked, names, shown, rows)
    still = sum(len(kind.members) for kind in found if kind.unchanged)
    if still or len(shown) < changed:
        left = [f"{changed - len(shown)} smaller kinds"] if len(shown) < changed else []
        left += [f"{still} vectors that change little"] if still else []
        terminal.note(f"not shown: {' and '.join(left)}")
    return {
        "scale": aim.scale,
        "kinds": [{"vectors": [names[k] for k in kind.members], "unchanged": kind.unchanged} for kind in found],
        "random_kinds": random,
        "prompts": asked,
        "shown": [
            {"vector": names[kind.members[0]], "completions": row[1:], "damage": damage}
            for kind, (row, damage) in zip(shown, rows[1:], strict=True)
        ],
    }


def _rows(
    lm: "LanguageModel", shown: list["Kind"], vectors: Any, asked: list[str], harmless: PromptSet, aim: Any, length: int
) -> list[tuple[list[str], float]]:
    """What the unsteered model and one of each kind say to both prompts, each with its damage."""
    import torch

    from dct.generation import complete
    from dct.nexttoken import NextTokens
    from dct.scoring import divergence

    pushed = torch.cat([torch.zeros(1, lm.width), *(vectors[[kind.members[0]]] for kind in shown)])
    said = complete(
        lm,
        lm.encode(asked, aim.system) * len(pushed),
        pushed.repeat_interleave(len(asked), 0),
        aim.layer,
        max_new_tokens=length,
    )
    mild = NextTokens(lm, aim.layer, lm.encode(harmless.texts, aim.system))
    damage = torch.cat(mild.under(pushed, lambda logs: divergence(mild.base, logs).cpu())).tolist()
    return [(said[k * len(asked) : (k + 1) * len(asked)], damage[k]) for k in range(len(pushed))]


def _show(
    terminal: Terminal,
    told: str,
    asked: list[str],
    names: list[str],
    shown: list["Kind"],
    rows: list[tuple[list[str], float]],
) -> None:
    table = titled(escape(told))
    table.add_column("vectors", justify="right")
    table.add_column("such as", justify="right")
    for prompt in asked:
        table.add_column(escape(_short(prompt)), ratio=1)
    table.add_column("damage (KL)", justify="right")
    for kind, (texts, damage) in zip(shown, rows[1:], strict=True):
        cells = [escape(_short(text)) for text in texts]
        table.add_row(str(len(kind.members)), names[kind.members[0]], *cells, f"{damage:.3f}")
    table.add_section()
    table.add_row("", "unsteered", *(escape(_short(text)) for text in rows[0][0]), "", style="dim")
    terminal.show(table)


def _short(text: str, most: int = 100) -> str:
    """Its beginning, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
