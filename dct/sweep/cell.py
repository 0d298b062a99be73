"""One fit of a sweep with its ranking: what decides them, where they lie, and whether they are done.

A fit is known by what decides its factors, a ranking by what decides it on top of that: a fit that is there is not made
again because its ranking is asked for otherwise. What only decides how long they take (device, batch, processes) is not
part of it.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dct import plainjson
from dct.prompts import PromptSet, fingerprint
from dct.recipe import Recipe
from dct.runs import FACTORS, Run
from dct.settings import JudgeSettings, RankSettings, SelectSettings
from dct.writing import write_whole

FORMAT = 1
"""Counts what would make an older cell another one."""

FIT_ALONE = "fit"
"""What stands for the ranking of a cell that is not to be ranked."""


@dataclass(frozen=True)
class Judging:
    """How each fit is ranked.

    Attributes:
        prompts: that vectors are chosen by and reported on; no fit of the grid uses them.
        harmless: where damage is measured.
        options, experiment, judge: as `dct rank` takes them.
        n: prompts to choose by.
    """

    prompts: PromptSet
    harmless: PromptSet
    options: RankSettings
    experiment: SelectSettings
    judge: JudgeSettings
    n: int

    @property
    def decides(self) -> dict[str, Any]:
        """What the ranking depends on, beside the factors."""
        options = {name: value for name, value in self.options.record().items() if name != "top"}
        return {
            "prompts": fingerprint(self.prompts.texts),
            "harmless": fingerprint(self.harmless.texts),
            "rank": options,
            "experiment": self.experiment.record(),
            "judge": self.judge.record(),
            "n": self.n,
        }


@dataclass(frozen=True)
class Cell:
    """A fit and its ranking.

    Attributes:
        root: the sweep's folder.
        recipe: of the fit, with nothing left open but what memory decides.
        fingerprint: of the model.
        texts: the fit's prompts.
        judging: how it is ranked; None where it is not.
    """

    root: Path
    recipe: Recipe
    fingerprint: str
    texts: tuple[str, ...]
    judging: Judging | None

    @cached_property
    def decides(self) -> dict[str, Any]:
        """What the factors depend on."""
        slice_, prompts = self.recipe.slice, self.recipe.prompts
        fit = {name: value for name, value in self.recipe.fit.record().items() if name != "batch"}
        return {
            "format": FORMAT,
            "model": self.fingerprint,
            "dtype": self.recipe.model.dtype,
            "prompts": fingerprint(self.texts),
            "system": prompts.system,
            "reply_prefix": prompts.reply_prefix,
            "escape_control": bool(prompts.escape_control),
            "source": slice_.source,
            "target": slice_.target,
            "positions": slice_.positions,
            "fit": fit,
        }

    @cached_property
    def key(self) -> str:
        """Of the fit."""
        return digest(self.decides)

    @cached_property
    def rank_key(self) -> str:
        """Of the ranking."""
        return FIT_ALONE if self.judging is None else digest(self.judging.decides)

    @property
    def name(self) -> str:
        """Of its folder: for people, and then its key."""
        slice_, fit = self.recipe.slice, self.recipe.fit
        return f"{fit.method}-{slice_.source}-{slice_.target}-{fit.seed}-{self.key}"

    @property
    def run(self) -> Run:
        """Its run folder."""
        folder = self.root / self.name
        return Run(folder, folder / FACTORS)

    @property
    def record(self) -> Path:
        """What came of it; there once it is done, and written last."""
        return self.run.folder / f"cell-{self.rank_key}.json"

    def found(self) -> dict[str, Any] | None:
        """What came of it, if it is done; what is damaged, or of other factors than are there, is not."""
        try:
            content = plainjson.loads(self.record.read_bytes())
            kept = content["fit"], content["factors"], content["found"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        same = kept[0] == plainjson.finite(self.decides) and kept[1] == digest_of(self.run.factors)
        return dict(kept[2]) if same and isinstance(kept[2], dict) else None

    def keep(self, found: dict[str, Any], factors: str) -> None:
        """Says that it is done.

        Args:
            found: what came of it.
            factors: their digest.

        Raises:
            UnwritableError: it cannot be written.
        """
        ranked = None if self.judging is None else self.judging.decides
        content = {"fit": self.decides, "rank": ranked, "factors": factors, "found": found}
        write_whole(self.record, (plainjson.dumps(content, indent=1) + "\n").encode())

    def under(self, root: Path) -> "Cell":
        """The same in another folder."""
        return replace(self, root=root)


def digest(content: Any) -> str:
    """A short name for what decides something."""
    text = json.dumps(plainjson.finite(content), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def digest_of(file: Path) -> str | None:
    """The digest that a factors file says it has; None where there is none that can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return (opened.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
