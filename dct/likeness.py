"""Which kinds of behaviour the vectors of several runs share: vectors with small cosines can do the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dct.kinds import ALIKE, Kind, kinds
from dct.matching import strangers
from dct.nexttoken import NextTokens


@dataclass(frozen=True)
class Likeness:
    """Vectors of several runs, and as many random ones as the largest has, grouped together.

    Attributes:
        kinds: those that change what the model says, the largest first; members count through all sets.
        counts: of each kind, its vectors in each run, random ones last.
        changing: vectors of each set that change what the model says.
        mates: [a][b] vectors of set a with a vector of their kind in set b.
        cosine: median |cos| of pairs of one kind in two runs; None where there is none.
        cosine_chance: that of all pairs of random directions.
    """

    kinds: list[Kind]
    counts: list[list[int]]
    changing: list[int]
    mates: list[list[int]]
    cosine: float | None
    cosine_chance: float

    def shared(self, runs: int) -> int:
        """Kinds that every one of the first so many sets has."""
        return sum(all(count[:runs]) for count in self.counts)


def likeness(near: NextTokens, runs: Sequence[Float[Tensor, "n width"]], seed: int = 0, cut: float = ALIKE) -> Likeness:
    """Groups vectors of all runs together.

    Args:
        near: what the model says next.
        runs: vectors as they stand, R v; random ones have the norms of the first run's.
        seed: of the random vectors.
        cut: mean distance below which groups are of one kind.
    """
    most = max(map(len, runs))
    random = runs[0].norm(dim=1).mean() * strangers(most, runs[0].shape[1], seed)
    sets = [*runs, random]
    home = [k for k, vectors in enumerate(sets) for _ in range(len(vectors))]
    together = torch.cat(sets)
    found = [kind for kind in kinds(near, together, cut) if not kind.unchanged]
    counts = [[sum(home[m] == k for m in kind.members) for k in range(len(sets))] for kind in found]
    count = range(len(sets))
    mates = [[sum(row[a] for row in counts if row[b]) for b in count] for a in count]
    unit = torch.nn.functional.normalize(together, dim=1)
    near_by = [
        float((unit[one] @ unit[other]).abs())
        for kind in found
        for one in kind.members
        for other in kind.members
        if home[one] < home[other] < len(runs)
    ]
    lone = strangers(2 * most, together.shape[1], seed + 1)
    null = (lone[:most] @ lone[most:].T).abs().median()
    cosine = float(torch.tensor(near_by).median()) if near_by else None
    return Likeness(found, counts, [sum(row[k] for row in counts) for k in count], mates, cosine, float(null))
