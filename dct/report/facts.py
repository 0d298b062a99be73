"""What a run's page shows, from the files in its folder alone."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dct import plainjson
from dct.candidates import candidates
from dct.contents import RANKING
from dct.factors import Factors
from dct.journal import records
from dct.judging import LABELS, Judge, Reply, judge
from dct.perturbation import Perturbation, recorded
from dct.replies import UNSTEERED
from dct.runs import Run
from dct.spectrumfile import kept

NEAREST = 5
"""Vectors that stand beside a vector as its nearest."""

SAID = 6
"""Prompts to which a vector's completions are shown, at every length."""

LONGEST = 1200
"""Characters of a completion that are shown."""

INCOHERENT = "incoherent"


@dataclass(frozen=True)
class Facts:
    """A run.

    Attributes:
        name: of its folder.
        folder: where that is, if it lies below the working directory; else its name.
        info: how the factors were found.
        scale: R.
        objective: causal importance, penalty and change of V, by iteration.
        alpha: strengths.
        cosines: |cosines| of pairs of rows of V, of U, and of as many random directions.
        ranking: what `dct rank` wrote; None where it has not run.
        vectors: what is known of each, the best first (see `_vector`).
        unsteered: what the model says alone, by prompt.
        spectra: what `dct spectrum` found, by output.
    """

    name: str
    folder: str
    info: dict[str, Any]
    scale: float
    objective: list[list[float]]
    alpha: list[float]
    cosines: dict[str, list[float]]
    ranking: dict[str, Any] | None
    vectors: list[dict[str, Any]]
    unsteered: dict[str, str]
    spectra: dict[str, Any]

    @property
    def judged(self) -> bool:
        """The ranking is an experiment with replies."""
        return self.ranking is not None and self.ranking.get("by") == "judged"


def gathered(run: Run, factors: Factors) -> Facts:
    """All of it.

    Raises:
        DctError: as in reading a ranking.
    """
    ranking = _ranking(run, factors)
    unsteered, said = _completions(run.completions)
    names, directions = candidates(factors)
    ranked = [] if ranking is None else list(ranking["vectors"])
    known = {str(one["vector"]): one for one in ranked}
    order = [str(one["vector"]) for one in ranked] + [name for name in names if name not in known]
    kind = recorded(factors.info, factors.V.shape[1])
    near, reader = _nearest(names, kind.cosines(directions, directions)), judge("refusal")
    reader.learn([Reply(prompt, text, text) for prompt, text in unsteered.items()])
    replies = {name: _judged(said.get(name, {}), unsteered, reader) for name in order}
    vectors = [_vector(name, factors, known.get(name), ranking, replies[name], near[name]) for name in order]
    return Facts(
        name=run.folder.resolve().name,
        folder=run.folder.name if run.folder.is_absolute() else str(run.folder),
        info=factors.info,
        scale=factors.scale,
        objective=factors.objective.tolist(),
        alpha=factors.alpha.tolist(),
        cosines={
            "V": _pairs(kind, factors.V),
            "U": _pairs(Perturbation(factors.U.shape[1]), factors.U),
            "random": _pairs(kind, kind.random(len(factors), 0)),
        },
        ranking=ranking,
        vectors=vectors,
        unsteered={prompt: text[:LONGEST] for prompt, text in unsteered.items()},
        spectra=kept(run, factors),
    )


def _ranking(run: Run, factors: Factors) -> dict[str, Any] | None:
    """What `dct rank` wrote of these factors; None where it has not, or of others."""
    if not run.ranking.is_file():
        return None
    try:
        content: dict[str, Any] = plainjson.loads(run.ranking.read_bytes(), lenient=True)
    except (OSError, ValueError):
        return None
    return content if RANKING.wrong(content, "") is None and content.get("factors") == factors.digest else None


Said = dict[str, dict[float, dict[str, str]]]
"""Completions by vector, length and prompt."""


def _completions(path: Path) -> tuple[dict[str, str], Said]:
    """What the model said alone, and under each vector."""
    unsteered: dict[str, str] = {}
    said: Said = defaultdict(lambda: defaultdict(dict))
    for row in records(path):
        if row["vector"] == UNSTEERED:
            unsteered[row["prompt"]] = row["completion"]
        else:
            said[row["vector"]][round(float(row["scale"]), 6)][row["prompt"]] = row["completion"]
    return unsteered, said


def _vector(
    name: str,
    factors: Factors,
    ranked: dict[str, Any] | None,
    ranking: dict[str, Any] | None,
    judged: tuple[list[dict[str, Any]], dict[str, int]],
    near: list[tuple[str, float]],
) -> dict[str, Any]:
    """What is known of a vector."""
    kinds = (ranking or {}).get("kinds") or {}
    names = (kinds.get("names") or {}).get(name) or {}
    effect = (ranked or {}).get("effect") or {key: (ranked or {}).get(key) for key in ("score", "flipped", "kl")}
    replies, counts = judged
    return {
        "vector": name,
        "alpha": float(factors.alpha[int(name.removeprefix("-"))]),
        "scale": (ranked or {}).get("scale", factors.scale),
        "score": effect.get("score"),
        "damage": effect.get("kl"),
        "validation": (ranked or {}).get("validation"),
        "test": (ranked or {}).get("test"),
        "kind": next((k for k, one in enumerate(kinds.get("kinds", [])) if name in one["vectors"]), None),
        "more": names.get("more", []),
        "less": names.get("less", []),
        "causes": names.get("causes", []),
        "nearest": near,
        "resembles": _peaks((ranking or {}).get("resembles") or {}, name),
        "labels": counts,
        "replies": replies,
    }


def _peaks(found: dict[str, Any], name: str) -> list[tuple[str, int, float, float]]:
    """Where a vector is most like what the model has: what, the layer, the cosine, and what chance makes of it."""
    peaks = []
    for key, what in (("difference", "harmless minus harmful"), ("stream", "the mean stream")):
        cosines = (found.get(key) or {}).get(name)
        if cosines and len(cosines) == len(found["layers"]) == len(found[f"chance_{key}"]):
            k = max(range(len(cosines)), key=lambda j: abs(cosines[j]))
            peaks.append((what, found["layers"][k], cosines[k], found[f"chance_{key}"][k]))
    return peaks


def _judged(
    said: dict[float, dict[str, str]], unsteered: dict[str, str], reader: Judge
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Some prompts with what was said to them at every length, and how many of all replies were judged what."""
    rows = [(scale, prompt, text) for scale, texts in sorted(said.items()) for prompt, text in texts.items()]
    if not rows:
        return [], {}
    verdicts = reader.verdicts([Reply(prompt, text, unsteered.get(prompt)) for _, prompt, text in rows])
    labels = [verdict.label if verdict.coherent else INCOHERENT for verdict in verdicts]
    by_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (scale, prompt, text), label in zip(rows, labels, strict=True):
        by_prompt[prompt].append({"scale": scale, "text": text[:LONGEST], "label": label})
    fullest = sorted(by_prompt, key=lambda prompt: -len(by_prompt[prompt]))[:SAID]
    counts = {label: labels.count(label) for label in (*LABELS, INCOHERENT) if label in labels}
    return [{"prompt": prompt, "said": by_prompt[prompt]} for prompt in fullest], counts


def _nearest(names: list[str], cosines: Tensor) -> dict[str, list[tuple[str, float]]]:
    """The vectors with the largest |cosine| to each, opposites of itself left out."""
    found = {}
    for k, name in enumerate(names):
        order = cosines[k].abs().argsort(descending=True).tolist()
        others = [j for j in order if names[j].removeprefix("-") != name.removeprefix("-")][:NEAREST]
        found[name] = [(names[j], float(cosines[k, j])) for j in others]
    return found


def _pairs(kind: Perturbation, rows: Tensor) -> list[float]:
    """|cosines| of all pairs."""
    cosines = kind.cosines(rows, rows).abs()
    return cosines[torch.triu_indices(len(rows), len(rows), 1).unbind()].tolist()
