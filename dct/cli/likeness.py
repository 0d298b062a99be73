"""Kinds of behaviour that several runs share, as `dct compare --kinds` shows them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dct.cli.asked import unseen_prompts
from dct.cli.kinds import SHOWN, TOLD_BY
from dct.cli.terminal import Terminal, escape, titled
from dct.cli.work import open_run
from dct.errors import DctError
from dct.prompts import default_origin, read
from dct.settings import RunModelSettings

if TYPE_CHECKING:
    from dct.comparing import Opened
    from dct.likeness import Likeness


def run_likeness(terminal: Terminal, opened: Sequence["Opened"], model: RunModelSettings, seed: int) -> dict[str, Any]:
    """Groups the vectors of all runs together, and shows which kinds appear in which of them.

    Raises:
        DctError: runs of different models or source layers.
    """
    first = opened[0].factors.info
    for one in opened[1:]:
        for key, what in (("fingerprint", "models"), ("source", "source layers")):
            if one.factors.info.get(key) != first.get(key):
                raise DctError(
                    f"{opened[0].name} and {one.name} are of different {what}: leave `kinds` out, or compare others"
                )
    from dct.candidates import Aim, candidates
    from dct.kinds import groupable
    from dct.likeness import likeness
    from dct.nexttoken import NextTokens
    from dct.prompts import PromptSet

    _, factors, lm = open_run(terminal, opened[0].run.factors, model)
    most = max(1, groupable(2 * TOLD_BY, lm.vocabulary) // (len(opened) + 1))
    every = [candidates(one.factors) for one in opened]
    if any(len(names) > most for names, _ in every):
        terminal.note(f"the first {most} vectors of each run are grouped")
    names = [some[:most] for some, _ in every]
    sets = [Aim.of(one.factors).scale * some[:most] for one, (_, some) in zip(opened, every, strict=True)]
    fitted = PromptSet(tuple(p for one in opened for p in one.factors.info.get("prompts") or ()))
    asked = unseen_prompts(terminal, {**first, "prompts": list(fitted.texts)}, None, None, TOLD_BY)
    mild = read(default_origin(str(first.get("model")), "harmless")).first(TOLD_BY)
    aim = Aim.of(factors)
    with terminal.busy("looking for kinds"):
        near = NextTokens(lm, aim.layer, lm.encode([*asked.texts, *mild.texts], aim.system))
        found = likeness(near, sets, seed)
    labels = [(k, name) for k, some in enumerate(names) for name in some]
    labels += [(len(sets), str(k)) for k in range(max(map(len, sets)))]
    members = [[labels[m] for m in kind.members] for kind in found.kinds]
    _show(terminal, [one.name for one in opened], found, members)
    return {
        "kinds": [
            {"vectors": [[n for home, n in kind if home == k] for k in range(len(sets))], "random": count[-1]}
            for kind, count in zip(members, found.counts, strict=True)
        ],
        "vectors": [len(some) for some in sets],
        "changing": found.changing[:-1],
        "random_changing": found.changing[-1],
        "mates": [row[:-1] for row in found.mates[:-1]],
        "random_mates": [row[-1] for row in found.mates[:-1]],
        "cosine": found.cosine,
        "cosine_chance": found.cosine_chance,
        "meaning": meaning(found, len(sets)),
    }


def meaning(found: "Likeness", runs: int) -> str:
    """What the runs share, in words."""
    own = [k for k, count in enumerate(found.counts) if sum(count[:runs])]
    total = sum(found.changing[a] for a in range(runs)) * (runs - 1)
    again = sum(found.mates[a][b] for a in range(runs) for b in range(runs) if a != b)
    lucky = sum(found.mates[a][runs] for a in range(runs)) * (runs - 1)
    if not total:
        return "no vector changes what the model says: try a larger scale"
    told = (
        f"{found.shared(runs)} of {len(own)} kinds are in every run; {again / total:.0%} of the vectors that change "
        f"what is said have one that does the same in another run, {lucky / total:.0%} among as many random ones"
    )
    if found.cosine is not None:
        told += (
            f"; two that do the same in two runs have |cos| {found.cosine:.2f} (median), "
            f"random directions {found.cosine_chance:.2f}"
        )
    return told


def _show(terminal: Terminal, names: list[str], found: "Likeness", members: list[list[tuple[int, str]]]) -> None:
    table = titled("kinds of behaviour, and how many vectors of each run are of them")
    table.add_column("kind", justify="right")
    for name in (*names, "random"):
        table.add_column(escape(name), justify="right")
    table.add_column("such as")
    for place, (count, kind) in enumerate(zip(found.counts[:SHOWN], members, strict=False), start=1):
        such = []
        for k, name in enumerate(names):
            one = next((n for home, n in kind if home == k), None)
            such += [] if one is None else [f"{one} of {name}"]
        table.add_row(str(place), *map(str, count), escape(", ".join(such)))
    if len(found.counts) > SHOWN:
        table.add_row("…", *[""] * (len(names) + 1), f"({len(found.counts) - SHOWN} smaller)", style="dim")
    table.add_section()
    table.add_row("", *map(str, found.changing), "of all kinds", style="dim")
    terminal.show(table)
