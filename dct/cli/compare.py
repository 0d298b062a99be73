"""`dct compare`: how far runs found the same vectors, subspaces and kinds of behaviour, or the features of an SAE."""

import shlex
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.cli.likeness import run_likeness
from dct.cli.sae import run_sae
from dct.cli.signature import argument
from dct.cli.terminal import Terminal, command, escape, titled
from dct.errors import DctError, UsageError
from dct.settings import CompareOutputSettings, CompareSettings, RunModelSettings

if TYPE_CHECKING:
    from dct.comparing import Opened


@command
def compare(
    options: CompareSettings,
    model: RunModelSettings,
    output: CompareOutputSettings,
    runs: Annotated[list[Path] | None, argument("Run folders or factors files; one is enough with --sae.")] = None,
) -> None:
    """Say how far runs found the same: vectors, subspaces and kinds, beside random directions; or an SAE's features.

    Vectors are matched one to one by |cos|. No model is loaded, except for --kinds: vectors with a small cosine can do
    the same.
    """
    terminal = Terminal(output.json, output.quiet)
    opened = _opened(terminal, runs or [], options)
    from dct.comparing import pair

    pairs = [pair(a, b, options.seed) for a, b in combinations(opened, 2)]
    content: dict[str, Any] = {
        "runs": [_told(one) for one in opened],
        "pairs": [
            {"runs": [i, j], **one} for (i, j), one in zip(combinations(range(len(opened)), 2), pairs, strict=True)
        ],
    }
    if pairs:
        _show(terminal, opened, content["pairs"])
    steady = _stability(opened, options.seed)
    content["stability"] = steady
    content["kinds"] = run_likeness(terminal, opened, model, options.seed) if options.kinds else None
    content["sae"] = run_sae(terminal, opened, options.sae, options.seed) if options.sae is not None else None
    if output.out is not None:
        from dct.plainjson import dumps
        from dct.writing import write_whole

        write_whole(output.out, (dumps(content, indent=1) + "\n").encode())
    _conclude(terminal, opened, content, output.out)
    terminal.result(content)


def _opened(terminal: Terminal, where: list[Path], options: CompareSettings) -> list["Opened"]:
    """The runs, which must be such that they can be compared.

    Raises:
        UsageError: too few, or one twice.
        DctError: one cannot be read, or is of another width.
    """
    if len(where) < (1 if options.sae is not None and not options.kinds else 2):
        raise UsageError(
            "a comparison takes two runs or more, such as `dct compare runs/a runs/b`; one is enough with `sae`"
        )
    from dct.comparing import Opened
    from dct.factors import Factors
    from dct.perturbation import vectors_alone
    from dct.runs import find_run

    runs = [find_run(one) for one in where]
    if len({run.factors.resolve() for run in runs}) < len(runs):
        raise UsageError("the same run is named twice: name others")
    names = [
        run.folder.resolve().name if run.factors.name == "factors.safetensors" else run.factors.stem for run in runs
    ]
    if len(set(names)) < len(names):
        names = [str(one) for one in where]
    opened = [Opened(run, Factors.load(run.factors), name) for run, name in zip(runs, names, strict=True)]
    for one in opened:
        vectors_alone(
            one.factors.info, "a comparison", "compare what the model says under them, as `dct rank` counts it"
        )
    first = opened[0]
    for one in opened[1:]:
        widths = first.factors.V.shape[1], one.factors.V.shape[1]
        if widths[0] != widths[1]:
            raise DctError(
                f"{first.name} has vectors of width {widths[0]}, {one.name} of {widths[1]}: compare runs of one model"
            )
    _warn(terminal, opened)
    return opened


def _warn(terminal: Terminal, opened: list["Opened"]) -> None:
    """Says where a cosine means less than it seems to."""
    for key, what in (("fingerprint", "models"), ("source", "source layers"), ("target", "target layers")):
        if len({str(one.factors.info.get(key)) for one in opened}) > 1:
            side = "U" if key == "target" else "V" if key == "source" else "V and U"
            terminal.warn(
                f"these runs are of different {what}: the same direction of {side} need not mean the same there"
            )


def _told(one: "Opened") -> dict[str, Any]:
    info = one.factors.info
    keys = ("model", "fingerprint", "method", "seed", "source", "target", "prompts_hash")
    return {
        "folder": str(one.run.folder),
        "name": one.name,
        "vectors": len(one.factors),
        "scale": one.factors.scale,
        **{key: info.get(key) for key in keys},
    }


def _stability(opened: list["Opened"], seed: int) -> list[dict[str, Any] | None]:
    """Of each run, how near the matches of its vectors are in those of the others that are its siblings."""
    from dataclasses import asdict

    from dct.siblings import are_siblings, stability

    found = []
    for one in opened:
        others = [other.factors for other in opened if are_siblings(one.factors, other.factors)]
        steady = stability(one.factors, others, seed)
        found.append(None if steady is None else asdict(steady))
    return found


# --- shown ------------------------------------------------------------------------------------------------------------


def _show(terminal: Terminal, opened: list["Opened"], pairs: list[dict[str, Any]]) -> None:
    from dct.matching import BEYOND

    table = titled("how near matched vectors are, |cos|, and how far runs span the same; in brackets random directions")
    table.add_column("runs")
    for heading in ("V, matched", "beyond chance", "V, subspace", "U of the same", "U, matched", "U, subspace"):
        table.add_column(heading, justify="right")
    for one in pairs:
        i, j = one["runs"]
        V = one["V"]
        table.add_row(
            escape(f"{opened[i].name} – {opened[j].name}"),
            beside(V, "mean"),
            f"{V['beyond']}/{len(V['pairs'])} ({(1 - BEYOND) * len(V['pairs']):.2g})",
            beside(one["overlap_V"], "share"),
            beside(one["U_of_same"], "mean"),
            beside(one["U"], "mean"),
            beside(one["overlap_U"], "share"),
        )
    terminal.show(table)


def beside(numbers: dict[str, float] | None, key: str) -> str:
    """A number with its baseline in brackets."""
    return "–" if numbers is None else f"{numbers[key]:.2f} ({numbers['chance']:.2f})"


def meaning(pairs: list[dict[str, Any]]) -> str:
    """What matched vectors say of some runs, in words."""
    mean, chance = (sum(one["V"][key] for one in pairs) / len(pairs) for key in ("mean", "chance"))
    beyond = sum(one["V"]["beyond"] for one in pairs) / sum(len(one["V"]["pairs"]) for one in pairs)
    told = f"a vector's match in another run has |cos| {mean:.2f} on average, random directions {chance:.2f}"
    if mean > 0.9:
        return f"{told}: the runs found the same vectors"
    if beyond <= 0.1:
        return f"{told}: no more of the same directions than chance would give"
    share = f"{beyond:.0%} of the matches are nearer than chance"
    few = "a few directions are found again, most are not" if beyond < 0.5 else "near directions, not the same vectors"
    return f"{told}; {share}: {few}"


def _conclude(terminal: Terminal, opened: list["Opened"], content: dict[str, Any], out: Path | None) -> None:
    """What it means, and what to do next."""
    rows = []
    if content["pairs"]:
        rows.append(("V", meaning(content["pairs"])))
    words = [one["words"] for one in content["pairs"] if one["words"]]
    if words:
        mean, chance = (sum(one[key] for one in words) / len(words) for key in ("mean", "chance"))
        rows.append(
            ("words", f"matched vectors share {mean:.0%} of the words that they make likelier, any two {chance:.0%}")
        )
    steady = [(sum(s["values"]) / len(s["values"]), s["chance"]) for s in content["stability"] if s is not None]
    if steady:
        mean, chance = (sum(column) / len(steady) for column in zip(*steady, strict=True))
        rows.append(
            (
                "stability",
                f"{mean:.2f} where chance gives {chance:.2f}, over {len(steady)} fits that differ in seed or prompts",
            )
        )
    rows += [(key, content[key]["meaning"]) for key in ("kinds", "sae") if content[key] is not None]
    rows = [(name, escape(text)) for name, text in rows]
    if out is not None:
        rows.append(("saved", f"[bold]{escape(str(out))}[/bold]"))
    folders = [shlex.quote(str(one.run.folder)) for one in opened]
    if content["kinds"] is None and len(opened) > 1:
        step, why = f"dct compare {' '.join(folders)} --kinds", "says whether they do the same (loads the model)"
    else:
        step, why = f"dct rank {folders[0]}", "says which vectors do what is wanted, and how stable each is"
    rows.append(("next", f"[bold cyan]{escape(step)}[/bold cyan]  {why}"))
    named = f"{len(opened)} runs compared" if len(opened) > 1 else f"{opened[0].name} compared"
    terminal.summary(named, rows)
