"""How far the judge `refusal` agrees with a reader, on completions of real models.

The labels were written by reading every completion, by the rules in docs/judging.md, before the judge was tuned. The
completions are not kept here, since many of them answer harmful requests: `make` brings them forth again, greedily,
from a model's folder and public prompts, and `compare` finds each one's label by the SHA-256 of its prompt and text.
Completions that come out otherwise (another processor, other libraries) have no label and are counted as such.

    python benchmarks/judging.py make qwen-0.5b FOLDER --harmful advbench.csv --harmless harmless.json --out FILE
    python benchmarks/judging.py compare FILE... [--part test] [--judge refusal] [--model FOLDER] [--show]

Prompts are split by their hash: two thirds to tune a judge on, a third kept (`--part test`). `make` runs the model
unsteered, under the difference of means, random vectors and those of a small fit, at 0.5, 1 and 2 R, so that every
label and salad occur.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dct.judging import COMPLIED, LABELS, Reply, judge, kappa, wilson
from dct.prompts import read

LABELLED = Path(__file__).parent / "judged" / "labels.jsonl"

NEW_TOKENS, TIMES, BATCH, SEED = 40, (0.5, 1, 2), 32, 13


@dataclass(frozen=True)
class Recipe:
    """How the completions of a model are made.

    Attributes:
        source, target: of the fit; vectors enter at the source.
        harmful, harmless: prompts that are completed.
        skip: prompts of each set that are left to other models.
        means: prompts of each set whose means are compared.
        factors: of the fit; 0 for none, with R = 0.36 residual norms.
        kinds: how many completions of each prompt each kind of vector gets, at a multiple of R drawn for each.
        dtype: of the weights.
    """

    source: int
    target: int
    harmful: int
    harmless: int
    skip: int
    means: int = 32
    factors: int = 16
    kinds: tuple[tuple[str, int], ...] = (("means", 1), ("random", 1), ("dct", 3))
    dtype: str = "float32"


RECIPES = {
    "qwen-0.5b": Recipe(8, 16, 44, 12, skip=0),
    "smollm2": Recipe(10, 20, 12, 4, skip=100),
    "qwen-1.5b": Recipe(
        9, 18, 14, 4, skip=200, means=8, factors=0, kinds=(("means", 1), ("random", 3)), dtype="bfloat16"
    ),
}


def key(prompt: str, completion: str) -> str:
    """What a label is found by."""
    return hashlib.sha256(f"{prompt}\0{completion}".encode("utf-8", "surrogatepass")).hexdigest()


def part(prompt: str) -> str:
    """Whether a prompt is one to tune on, or kept for testing."""
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] % 3 == 0 else "tune"


# --- making -----------------------------------------------------------------------------------------------------------


def make(given: argparse.Namespace) -> None:
    import torch

    import dct

    recipe, shuffled = RECIPES[given.name], random.Random(SEED)
    harmful = list(read(given.harmful).texts)
    harmless = list(read(given.harmless).texts)
    shuffled.shuffle(harmful)
    harmless = [text for text in harmless if len(text) < 160]
    shuffled.shuffle(harmless)
    lm = dct.load(given.folder, dtype=recipe.dtype)
    asked = harmful[40 + recipe.skip :][: recipe.harmful] + harmless[32 + recipe.skip :][: recipe.harmless]
    vectors, R = directions(lm, recipe, harmful, harmless)
    rows: list[dict[str, Any]] = []
    steered = []
    for prompt in asked:
        chance = random.Random(f"{SEED}{prompt}")
        rows.append({"prompt": prompt, "vector": "unsteered", "scale": 0.0})
        steered.append(torch.zeros(lm.width))
        for kind, count in recipe.kinds:
            for _ in range(count):
                k, times = chance.randrange(len(vectors[kind])), chance.choice(TIMES)
                rows.append({"prompt": prompt, "vector": f"{kind} {k}", "scale": R * times})
                steered.append(R * times * vectors[kind][k])
    ids = lm.encode([row["prompt"] for row in rows])
    order = sorted(range(len(rows)), key=lambda k: len(ids[k]))
    for start in range(0, len(order), BATCH):
        group = order[start : start + BATCH]
        added = torch.stack([steered[k] for k in group])
        said = dct.complete(lm, [ids[k] for k in group], added, recipe.source, max_new_tokens=NEW_TOKENS, batch=BATCH)
        for k, text in zip(group, said, strict=True):
            rows[k]["completion"] = text
        print(f"{start + len(group)} of {len(order)}", flush=True)
        Path(given.out).write_text("".join(json.dumps(row) + "\n" for row in rows if "completion" in row))


def directions(
    lm: Any, recipe: Recipe, harmful: Sequence[str], harmless: Sequence[str]
) -> tuple[dict[str, Any], float]:
    """Unit vectors of each kind, and R."""
    import torch
    from torch.nn.functional import normalize

    import dct
    from dct.calibration import random_directions
    from dct.scoring import difference_of_means

    found = {"random": random_directions(4, lm.width, 5).float()}
    two = (harmless[: recipe.means], harmful[8 : 8 + recipe.means])
    if not recipe.factors:  # nothing is differentiated, which a large model leaves no memory for
        towards, away = (entering(lm, texts, recipe.source) for texts in two)
        means = [torch.stack([h[-1] for h in some]).mean(0) for some in (towards, away)]
        found["means"] = normalize(means[0] - means[1], dim=0)[None]
        return found, 0.36 * float(torch.cat(away).norm(dim=1).median())
    slice_ = dct.Slice(lm, lm.encode(harmful[:8]), recipe.source, recipe.target)
    R = dct.calibrate(slice_, slice_.dim, ratio=0.5, limit=slice_.residual_norm).scale
    found["dct"] = dct.fit(slice_, slice_.dim, factors=recipe.factors, scale=R, iterations=4).V.float().cpu()
    slices = [dct.Slice(lm, lm.encode(texts), recipe.source, lm.depth, positions=1) for texts in two]
    found["means"] = difference_of_means(*slices).float().cpu()[None]
    return found, R


def entering(lm: Any, texts: Sequence[str], source: int) -> list[Any]:
    """hidden_states[source] at every token of each prompt."""
    import torch

    with torch.no_grad():
        rows = [torch.tensor([ids], device=lm.device) for ids in lm.encode(texts)]
        every = (lm.model(row, use_cache=False, output_hidden_states=True).hidden_states for row in rows)
        return [states[source][0].float().cpu() for states in every]


# --- comparing --------------------------------------------------------------------------------------------------------


def labelled(files: Sequence[str | Path]) -> tuple[list[dict[str, Any]], int]:
    """Completions with their labels and unsteered replies, and how many have no label."""
    known = {one["key"]: one for one in map(json.loads, LABELLED.read_text().splitlines())}
    found, missing = [], 0
    for file in files:
        rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
        alone = {row["prompt"]: row["completion"] for row in rows if row["vector"] == "unsteered"}
        for row in rows:
            label = known.get(key(row["prompt"], row["completion"]))
            missing += label is None
            if label is not None:
                read_as = {"label": label["label"], "coherent": label["coherent"]}
                found.append({**row, **read_as, "file": str(file), "unsteered": alone.get(row["prompt"])})
    return found, missing


def agreement(rows: Sequence[dict[str, Any]], verdicts: Sequence[Any]) -> dict[str, tuple[int, int, float]]:
    """For label, coherence and success: how many agree, of how many, and Cohen's kappa."""
    pairs = {
        "label": [(row["label"], v.label) for row, v in zip(rows, verdicts, strict=True)],
        "coherent": [(row["coherent"], v.coherent) for row, v in zip(rows, verdicts, strict=True)],
        "success": [
            (row["label"] == COMPLIED and row["coherent"], v.label == COMPLIED and v.coherent)
            for row, v in zip(rows, verdicts, strict=True)
        ],
    }
    return {
        name: (sum(a == b for a, b in both), len(both), kappa([a for a, _ in both], [b for _, b in both]))
        for name, both in pairs.items()
    }


def judged(rows: Sequence[dict[str, Any]], name: str = "refusal", lm: Any = None) -> list[Any]:
    """Verdicts on completions, each file's read together."""
    found: dict[int, Any] = {}
    for file in dict.fromkeys(row["file"] for row in rows):
        places = [k for k, row in enumerate(rows) if row["file"] == file]
        replies = [Reply(rows[k]["prompt"], rows[k]["completion"], rows[k]["unsteered"]) for k in places]
        found.update(zip(places, judge(name, lm).verdicts(replies), strict=True))
    return [found[k] for k in range(len(rows))]


def compare(given: argparse.Namespace) -> None:
    lm = None
    if given.model is not None:
        import dct

        lm = dct.load(given.model, dtype="float32")
    rows, missing = labelled(given.files)
    print(f"{len(rows)} completions with a label, {missing} without")
    verdicts = judged(rows, given.judge, lm)
    chosen = [k for k, row in enumerate(rows) if given.part in ("all", part(row["prompt"]))]
    rows, verdicts = [rows[k] for k in chosen], [verdicts[k] for k in chosen]
    for name, (same, of, beyond) in agreement(rows, verdicts).items():
        low, high = wilson(same, of)
        print(f"{name:9}{same} of {of} = {same / of:.1%} ({low:.1%} to {high:.1%}), kappa {beyond:.2f}")
    for label in LABELS:
        told = [v.label for row, v in zip(rows, verdicts, strict=True) if row["label"] == label]
        print(f"read as {label:9}{', '.join(f'{told.count(other)} {other}' for other in LABELS)}")
    for row, v in zip(rows, verdicts, strict=True):
        if given.show and (row["label"], row["coherent"]) != (v.label, v.coherent):
            print(json.dumps({"read": [row["label"], row["coherent"]], "judged": [v.label, v.coherent, v.why], **row}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("make")
    making.set_defaults(run=make)
    making.add_argument("name", choices=RECIPES)
    making.add_argument("folder")
    for option in ("--harmful", "--harmless", "--out"):
        making.add_argument(option, required=True)
    comparing = commands.add_parser("compare")
    comparing.set_defaults(run=compare)
    comparing.add_argument("files", nargs="+")
    comparing.add_argument("--part", choices=("all", "tune", "test"), default="test")
    comparing.add_argument("--judge", default="refusal")
    comparing.add_argument("--model")
    comparing.add_argument("--show", action="store_true", help="completions on which the judge and the reader differ")
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
