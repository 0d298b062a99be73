"""How stable vectors are, where a run has siblings, as `dct rank` shows it."""

from typing import TYPE_CHECKING

from dct.cli.terminal import Terminal

if TYPE_CHECKING:
    from dct.factors import Factors
    from dct.runs import Run
    from dct.siblings import Stability


def found_again(run: "Run", factors: "Factors") -> "Stability | None":
    """How near the matches in sibling fits are; None where there is none in the same folder, and of rank-1 changes,
    which cosines of rows do not compare."""
    if factors.info.get("perturbation"):
        return None
    from dct.siblings import siblings, stability

    return stability(factors, siblings(run, factors))


def note_steady(terminal: Terminal, steady: "Stability | None") -> None:
    """Says what the column is."""
    if steady is not None:
        mean = sum(steady.values) / len(steady.values)
        fits = "another fit" if steady.runs == 1 else f"{steady.runs} other fits"
        terminal.note(
            f"stable: |cos| with the matched vector of {fits} of other seeds or prompts; {mean:.2f} on average where "
            f"chance gives {steady.chance:.2f}"
        )
