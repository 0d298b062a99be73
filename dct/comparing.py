"""Two runs beside each other: matched vectors, subspaces and words, each with what chance gives. Runs no model."""

from dataclasses import dataclass
from typing import Any

from dct.errors import DctError
from dct.factors import Factors
from dct.matching import Matched, Overlap, matched, overlap
from dct.runs import Run


@dataclass(frozen=True)
class Opened:
    """A run that is compared, and how it is called here."""

    run: Run
    factors: Factors
    name: str


def pair(a: Opened, b: Opened, seed: int = 0) -> dict[str, Any]:
    """What two runs have in common, ready for JSON."""
    V = matched(a.factors.V, b.factors.V, seed)
    content: dict[str, Any] = {
        "V": _matched(V),
        "overlap_V": _overlap(overlap(a.factors.V, b.factors.V)),
        "U": None,
        "overlap_U": None,
        "U_of_same": None,
        "words": _words(a, b, V),
    }
    if a.factors.U.shape[1] == b.factors.U.shape[1]:
        U = matched(a.factors.U, b.factors.U, seed)
        same = [abs(float(a.factors.U[i] @ b.factors.U[j])) for i, j in V.pairs]
        every = (a.factors.U @ b.factors.U.T).abs()
        content |= {
            "U": _matched(U),
            "overlap_U": _overlap(overlap(a.factors.U, b.factors.U)),
            "U_of_same": {"mean": sum(same) / len(same), "chance": float(every.mean())},
        }
    return content


def _matched(found: Matched) -> dict[str, Any]:
    return {
        "mean": found.mean,
        "chance": found.chance,
        "beyond": found.beyond,
        "limit": found.limit,
        "pairs": [[i, j, cosine] for (i, j), cosine in zip(found.pairs, found.cosines, strict=True)],
    }


def _overlap(found: Overlap | None) -> dict[str, float] | None:
    return None if found is None else {"share": found.share, "chance": found.chance}


def _words(a: Opened, b: Opened, V: Matched) -> dict[str, float] | None:
    """How many of the tokens that they make likelier matched vectors share, and any two; None where runs have none."""

    def likelier(one: Opened) -> dict[str, set[str]]:
        """The tokens of each vector, from the ranking."""
        run = one.run
        kinds = run.load_ranking().get("kinds") if run.ranking.is_file() else None
        names = kinds["names"] if kinds else {}
        return {name: set(words.get("more") or ()) for name, words in names.items()}

    try:
        first, second = likelier(a), likelier(b)
    except DctError:  # a ranking of other factors tells nothing of these
        return None

    def alike(x: set[str], y: set[str]) -> float:
        """Common tokens of all."""
        return len(x & y) / len(x | y) if x | y else 0.0

    signless = b.factors.signless
    same = [
        alike(first[str(i)], second[name])
        for (i, j), cosine in zip(V.pairs, V.cosines, strict=True)
        for name in [str(j) if cosine > 0 or not signless else f"-{j}"]
        if (cosine > 0 or signless) and str(i) in first and name in second
    ]
    every = [alike(x, y) for x in first.values() for y in second.values()]
    return {"mean": sum(same) / len(same), "chance": sum(every) / len(every), "pairs": len(same)} if same else None
