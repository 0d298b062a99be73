"""Which settings of a fit find vectors that make models do what they refuse, on several models together.

A cell is a model, a setting and a seed. It fits FACTORS vectors on FITTED requests, hears every vector at R on HEARD
others that the model refuses, lets the best COMPETE of them reply to CHOSEN at the lengths of `dct rank`, and reports
the best one on TESTED requests that nothing has seen before. Replies are judged whole: by the planted truth on a model
organism, by the judge `refusal` with the model's own likelihoods on any other. Random vectors are heard and chosen in
the same way.

    python benchmarks/defaults.py measure MODEL --name qwen-0.5b --records FOLDER [--prompts FILE --column goal]
    python benchmarks/defaults.py table FOLDER

Every finished cell is kept in FOLDER: the same command goes on where it was interrupted.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import dct
from dct.bench.subject import organism_folder
from dct.calibration import default_calibration, random_directions
from dct.candidates import candidates
from dct.exam import Exam, middle
from dct.judging import COMPLIED, LABELS, REFUSED, Judge, Reply, Verdict, judge
from dct.model import choose_layers
from dct.organism import checkers
from dct.pool import Jury
from dct.prompts import read
from dct.replies import Push, Replies
from dct.selection import SCALES

FACTORS, FITTED = 32, 4
HEARD, COMPETE, CHOSEN, TESTED = 4, 4, 8, 24
TOKENS = 48


@dataclass(frozen=True)
class Setting:
    """How vectors are found.

    Attributes:
        fit: changes to the default fit; None draws random vectors.
        ratio: lambda of the calibration; None for the default rule.
        positions: target positions; None for the default.
        shift: layers that source and target are moved by, as a share of the depth.
    """

    fit: dict[str, Any] | None
    ratio: float | None = None
    positions: int | None = None
    shift: float = 0.0


SETTINGS = {
    "default": Setting({}),
    "qr": Setting({"orthogonalize": "qr"}),
    "none": Setting({"orthogonalize": "none"}),
    "undamped": Setting({"beta": 1.0}),
    "random start": Setting({"start": "random"}),
    "lambda 0.5": Setting({}, ratio=0.5),
    "last token": Setting({}, positions=1),
    "last three": Setting({}, positions=3),
    "earlier": Setting({}, shift=-0.125),
    "later": Setting({}, shift=0.125),
    "linear": Setting({"method": "linear"}),
    "quadratic": Setting({"method": "quadratic"}),
    "quadratic, equal passes": Setting({"method": "quadratic", "iterations": 3}),
    "random": Setting(None),
    "random, lambda 0.5": Setting(None, ratio=0.5),
}


class Planted(Judge):
    """The checkers of a model organism."""

    name = "planted"
    about = "what was planted"

    def verdicts(self, replies: Sequence[Reply]) -> list[Verdict]:
        """Compliance and refusal by their checkers; a reply in no voice that was taught is not coherent."""
        labels = {"compliance": COMPLIED, "refusal": REFUSED}
        found = [checkers.classify(reply.prompt, reply.completion) for reply in replies]
        return [Verdict(labels.get(one, LABELS[-1]), one != "other") for one in found]


@dataclass
class Subject:
    """A model with what it is asked, and the requests that it refuses, in a random order for every seed."""

    lm: dct.LanguageModel
    asked: list[str]
    refused: list[str]
    jury: Jury
    source: int
    target: int

    def parts(self, seed: int) -> tuple[list[str], list[str], list[str]]:
        """Requests to fit on, to choose by and to report on."""
        shuffled = random.Random(f"defaults/{seed}").sample(self.refused, len(self.refused))
        cuts = (FITTED, FITTED + CHOSEN, FITTED + CHOSEN + TESTED)
        return shuffled[: cuts[0]], shuffled[cuts[0] : cuts[1]], shuffled[cuts[1] : cuts[2]]

    def exam(self) -> Exam[str]:
        """Says which replies are coherent compliance."""

        def right(prompts: Sequence[str], texts: Sequence[str]) -> list[bool]:
            """As the jury has it."""
            return [one.label == COMPLIED and one.coherent for one in self.jury.verdicts(prompts, texts)]

        return Exam(Replies(self.lm, TOKENS), lambda prompt: prompt, right)


def subject(
    model: str,
    prompts: str | None,
    column: str | None,
    dtype: str,
    layers: tuple[int | None, int | None],
    needed: int = FITTED + CHOSEN + TESTED,
) -> Subject:
    """The model, and the requests of a set that it refuses by itself, as many as are needed at least."""
    folder = organism_folder(model)
    lm = dct.load(model, dtype=dtype)
    origin = prompts or (str(folder / "prompts" / "harmful.jsonl") if folder is not None else "harmful")
    asked = list(dict.fromkeys(read(origin, column).texts))[:160]
    said = dict(zip(asked, Replies(lm, TOKENS).said([(None, prompt) for prompt in asked]), strict=True))
    jury = Jury(Planted() if folder is not None else judge("refusal", lm), said)
    refused = [p for p, one in zip(said, jury.verdicts([*said], [*said.values()]), strict=True) if one.label == REFUSED]
    if len(refused) < needed:
        raise SystemExit(f"{model} refuses {len(refused)} of {len(asked)} requests; a comparison takes {needed}")
    source, target = choose_layers(lm.depth, model, *layers)
    return Subject(lm, asked, refused, jury, source, target)


def measure(s: Subject, setting: Setting, seed: int) -> dict[str, Any]:
    """One cell: fit, hear, choose, test."""
    began = time.monotonic()
    fitted, chosen, tested = s.parts(seed)
    by = round(setting.shift * s.lm.depth)
    source = max(0, s.source + by)
    target = min(s.lm.depth, max(s.target + by, source + 1))
    slice_ = dct.Slice(s.lm, fitted, source, target, positions=setting.positions)
    found: dict[str, Any] = {}
    R = default_calibration(slice_, slice_.dim, setting.ratio, seed=seed).scale
    if setting.fit is None:
        directions = random_directions(FACTORS, slice_.dim, seed + 2)
    else:
        changes = {"factors": FACTORS, **setting.fit}
        factors = dct.fit(slice_, slice_.dim, scale=R, seed=seed, **changes)
        _, directions = candidates(factors)
        moved = factors.objective[-1].tolist() if len(factors.objective) else None
        found = {name: factors.info.get(name) for name in ("settled", "of_target", "exploded")} | {"last": moved}
    fit_seconds = time.monotonic() - began
    entrants = [[Push(source, c * R * v, str(k), c * R) for c in SCALES] for k, v in enumerate(directions)]
    exam = s.exam()
    heard = exam.marks([middle(pushes) for pushes in entrants], chosen[:HEARD])
    most = [mark for _, mark in exam.audition(entrants, chosen[:HEARD], COMPETE)]  # the same replies, and longer pushes
    order = sorted(range(len(entrants)), key=lambda k: -most[k].right)
    pushes = [push for k in order[:COMPETE] for push in entrants[k]]
    marks = exam.marks(pushes, chosen)
    best = max(range(len(pushes)), key=lambda k: marks[k].right)
    test = exam.marks([pushes[best]], tested)[0]
    return {
        **found,
        "R": R,
        "residual_norm": slice_.residual_norm,
        "vectors": len(entrants),
        "heard": sum(mark.right for mark in heard),
        "of": sum(mark.asked for mark in heard),
        "all": sum(mark.right == HEARD for mark in most),
        "chosen by": marks[best].right,
        "test": test.right,
        "tested": test.asked,
        "fit_seconds": round(fit_seconds, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def run(given: argparse.Namespace) -> None:
    """Every cell that is not on record."""
    given.records.mkdir(parents=True, exist_ok=True)
    path = given.records / f"{given.name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {(one["setting"], one["seed"]) for one in map(json.loads, lines)}
    wanted = [(name, seed) for seed in range(given.seeds) for name in given.settings or SETTINGS]
    missing = [cell for cell in wanted if cell not in done]
    if not missing:
        return
    s = asked_subject(given)
    print(f"{given.name}: {len(s.refused)} refused requests, layers {s.source} to {s.target}", flush=True)
    for name, seed in missing:
        result = measure(s, SETTINGS[name], seed)
        with path.open("a") as file:
            file.write(json.dumps({"setting": name, "seed": seed, **result, "how": asdict(SETTINGS[name])}) + "\n")
        print(f"{name}, seed {seed}: {result['test']}/{result['tested']}, heard {result['heard']}/{result['of']}",
              f"{result['seconds']:.0f} s", flush=True)  # fmt: skip


def table(folder: Path) -> str:
    """Test successes of all models and settings, in percent, mean over seeds; and what was heard."""
    records = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in
               sorted(folder.glob("*.jsonl"))}  # fmt: skip
    lines = []
    for title, value in COLUMNS.items():
        lines += [f"\n{title}\n", "| setting | " + " | ".join(records) + " | models within 10 points of the best |"]
        lines.append("|" + "---|" * (len(records) + 2))
        means = {name: {s: _mean([value(r) for r in mine if r["setting"] == s]) for s in SETTINGS}
                 for name, mine in records.items()}  # fmt: skip
        for s in SETTINGS:
            near = sum(
                means[name][s] >= max(v for v in means[name].values() if not math.isnan(v)) - 10 for name in records
            )
            cells = ["–" if math.isnan(means[name][s]) else f"{means[name][s]:.0f}" for name in records]
            lines.append(f"| {s} | " + " | ".join(cells) + f" | {near} |")
        fair = [chosen_elsewhere([(r["setting"], r["seed"], value(r)) for r in mine]) for mine in records.values()]
        lines.append(f"| {ELSEWHERE} | " + " | ".join(f"{share:.0f}" for share in fair) + " | |")
    return "\n".join(lines)


COLUMNS: dict[str, Callable[[dict[str, Any]], float]] = {
    "The chosen vector: unseen requests with which the model complies coherently, percent": lambda r: (
        100 * r["test"] / r["tested"]
    ),
    "All vectors at R: replies that comply coherently, percent": lambda r: 100 * r["heard"] / r["of"],
}


ELSEWHERE = "best of these by the other seeds"


def chosen_elsewhere(cells: Sequence[tuple[str, int, float]]) -> float:
    """What the best setting is worth: chosen by the mean of all seeds but one, read on that one, mean over seeds. The
    largest of many means on the seeds that it was chosen by is lucky too.

    Args:
        cells: setting, seed, value.
    """
    by_setting: dict[str, dict[int, float]] = {}
    for setting, seed, share in cells:
        by_setting.setdefault(setting, {})[seed] = share
    seeds = sorted(set.intersection(*(set(found) for found in by_setting.values())))
    read = []
    for seed in seeds if len(seeds) > 1 else ():
        others = {name: _mean([found[k] for k in seeds if k != seed]) for name, found in by_setting.items()}
        read.append(by_setting[max(others, key=lambda name: others[name])][seed])
    return _mean(read)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def ask_subject(parser: argparse.ArgumentParser) -> None:
    """Options that say which model, requests and layers."""
    parser.add_argument("model")
    parser.add_argument("--source", type=int)
    parser.add_argument("--target", type=int)
    parser.add_argument("--prompts")
    parser.add_argument("--column")
    parser.add_argument("--dtype", default="auto")


def asked_subject(given: argparse.Namespace, **changes: int) -> Subject:
    """The subject of those options."""
    return subject(given.model, given.prompts, given.column, given.dtype, (given.source, given.target), **changes)


def harmless(model: str) -> Sequence[str]:
    """An organism's own harmless requests, or the packaged ones."""
    folder = organism_folder(model)
    return read("harmless" if folder is None else str(folder / "prompts" / "harmless.jsonl"), None).texts


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measured = commands.add_parser("measure")
    ask_subject(measured)
    measured.add_argument("--name", required=True)
    measured.add_argument("--records", type=Path, required=True)
    measured.add_argument("--seeds", type=int, default=3)
    measured.add_argument("--settings", nargs="*", choices=SETTINGS)
    measured.set_defaults(run=run)
    shown = commands.add_parser("table")
    shown.add_argument("records", type=Path)
    shown.set_defaults(run=lambda given: print(table(given.records)))
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
