"""The vectors that a command was asked for."""

from typing import TYPE_CHECKING

from dct.errors import DctError, UsageError
from dct.settings import VectorSettings

if TYPE_CHECKING:
    from dct.runs import Run


def chosen_vectors(run: "Run", asked: VectorSettings) -> dict[str, float | None]:
    """The vectors that a command was asked for, by number, by rank, or the best of the ranking when by neither.

    Returns:
        Their names, each with the norm at which the ranking found it best; None for one chosen by its number.

    Raises:
        DctError: the run has not been ranked, or has fewer vectors than asked for.
    """
    picked: dict[str, float | None] = dict.fromkeys(asked.vector)
    places = list(asked.rank) + list(range(1, (asked.top or 0) + 1))
    if not picked and not places:
        if not run.ranking.exists():
            raise UsageError("say which vector: --vector 17, or rank the run first and use --rank 1", argument="vector")
        places = [1]
    if places:
        ranked = [(str(v["vector"]), v.get("scale")) for v in run.load_ranking()["vectors"]]
        for place in places:
            if not 1 <= place <= len(ranked):
                raise DctError(f"rank {place} is out of range: the ranking holds 1 to {len(ranked)}")
            picked.setdefault(*ranked[place - 1])
    return picked
