"""What a run's ranking tells of its vectors: their words, their kinds, and the damage that was measured.

Knows `rank.json` and no model. A run without a ranking tells nothing.
"""

import math
from collections.abc import Mapping
from typing import Any


class Guide:
    """Reads a ranking.

    Args:
        ranking: the content of `rank.json`; None where there is none.

    Attributes:
        ranked: its vectors, the best one first, as they stand there.
        kinds: the names of each kind's vectors, the most typical one first, by the kind's number in the report.
        kinds_scale: the norm at which kinds were told apart.
    """

    def __init__(self, ranking: Mapping[str, Any] | None = None) -> None:
        content = ranking or {}
        kinds = content.get("kinds") or {}
        self.ranked: list[dict[str, Any]] = list(content.get("vectors", []))
        self.kinds: list[list[str]] = [list(kind["vectors"]) for kind in kinds.get("kinds", [])]
        self.kinds_scale: float | None = kinds.get("scale")
        self._unchanged = [bool(kind["unchanged"]) for kind in kinds.get("kinds", [])]
        self._names: dict[str, Any] = kinds.get("names") or {}
        self._damage: dict[str, list[tuple[float, float]]] = {}
        for one in self.ranked:
            self._measured(one["vector"], one.get("scale") or content.get("scale"), (one.get("effect") or {}).get("kl"))
        for sample in kinds.get("samples", []):
            self._measured(sample["vector"], self.kinds_scale, sample.get("damage"))

    def words(self, vector: str) -> list[str]:
        """The tokens that a vector makes likelier, most of all first."""
        return [str(word) for word in (self._names.get(vector) or {}).get("more", [])]

    def kind(self, number: int) -> str:
        """A kind in a few words."""
        vectors = self.kinds[number]
        what = "changes little" if self._unchanged[number] else " ".join(self.words(vectors[0])[:3])
        size = f"{len(vectors)} vectors, such as" if len(vectors) > 1 else "vector"
        return f"{size} {vectors[0]}" + (f": {what}" if what else "")

    def damage(self, vector: str, norm: float) -> float | None:
        """KL on harmless prompts of a vector that is added so far, in nats; None where that was not measured."""
        found = (kl for at, kl in self._damage.get(vector, ()) if math.isclose(at, norm, rel_tol=1e-6))
        return next(found, None)

    def _measured(self, vector: str, norm: float | None, kl: float | None) -> None:
        if norm is not None and kl is not None:
            self._damage.setdefault(vector, []).append((norm, kl))
