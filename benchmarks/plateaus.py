"""How far does the target move with the length of what is added, and what does that say about the right length?

The response |Delta(c R v)| over the target's norm, for multiples c of R, along 32 vectors of a fit, as many random
ones, the difference of means (harmless minus refused requests) and the differences of two refused requests' streams.
Its slope is the exponent of a power law: above 1 the response grows faster than the vector, below 1 it saturates.

Then lengths are judged: every vector of the fit at common multiples of R, and at lengths of its own, where its response
is a given share of the target's norm or its slope is greatest. Right is a reply that complies and is coherent.

    python benchmarks/plateaus.py MODEL --source 0 --target 8 [--seeds 3] [--plot FILE.svg]
"""

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import defaults
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

import dct
from dct.calibration import default_calibration, random_directions
from dct.plots.charts import Axis, Plot
from dct.plots.files import write
from dct.replies import Push
from dct.selection import SCALES

MULTIPLES = tuple(2.0 ** (k / 2) for k in range(-8, 7))
SHARES = (0.2, 0.3, 0.4, 0.5, 0.7)
HEARD = 6


def responses(slice_: dct.Slice, V: Float[Tensor, "n d"], R: float) -> Float[Tensor, "n multiples"]:
    """|Delta(c R v)| over the target's norm."""
    with torch.no_grad():
        return torch.stack([slice_(c * R * V).norm(dim=1) for c in MULTIPLES], 1) / slice_.target_norm


def slopes(curves: Float[Tensor, "n multiples"]) -> Float[Tensor, "n gaps"]:
    """d log |Delta| / d log c, between neighbours that are half a doubling apart."""
    return (curves[:, 1:] / curves[:, :-1]).log2() * 2


def length_at(curve: Float[Tensor, " multiples"], share: float) -> float:
    """The multiple at which a response is this share of the target's norm, between the first and the last."""
    for k, value in enumerate(curve.tolist()):
        if value >= share:
            if k == 0:
                return MULTIPLES[0]
            before = float(curve[k - 1])
            between = math.log(share / before) / math.log(value / before)
            return MULTIPLES[k - 1] * (MULTIPLES[k] / MULTIPLES[k - 1]) ** between
    return MULTIPLES[-1]


def between_prompts(slice_: dct.Slice) -> Float[Tensor, "pairs d"]:
    """Unit differences of what enters the source in two prompts, in the mean over their tokens."""
    x = slice_.mean_entering()
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    return normalize(torch.stack([x[j] - x[i] for i, j in pairs]), dim=1)


def judged(
    s: defaults.Subject, V: Float[Tensor, "n d"], lengths: Sequence[float], R: float, asked: Sequence[str]
) -> list[int]:
    """Of each vector at its length, how many replies are right."""
    pushes = [
        Push(s.source, c * R * v, f"{k} at {c:.4f}", c * R) for k, (c, v) in enumerate(zip(lengths, V, strict=True))
    ]
    return [mark.right for mark in s.exam().marks(pushes, asked)]


def measure(s: defaults.Subject, mild: Sequence[str], seed: int, listens: bool) -> dict[str, Any]:
    """One fit: its curves beside the others' and, where replies are heard, what is right at which length."""
    fitted, asked, _ = s.parts(seed)
    slice_ = dct.Slice(s.lm, fitted, s.source, s.target)
    R = default_calibration(slice_, slice_.dim, None, seed=seed).scale
    V = dct.fit(slice_, slice_.dim, factors=defaults.FACTORS, scale=R, seed=seed).V
    harmless = dct.Slice(s.lm, mild, s.source, s.target)
    means = normalize((harmless.mean_entering().mean(0) - slice_.mean_entering().mean(0))[None], dim=1)
    kinds = {
        "learned": V,
        "random": random_directions(len(V), slice_.dim, seed + 2),
        "means": means,
        "between prompts": between_prompts(slice_),
    }
    curves = {name: responses(slice_, rows, R) for name, rows in kinds.items()}
    own = curves["learned"]
    steepest = [MULTIPLES[k + 1] for k in slopes(own).argmax(1).tolist()]
    lengths = {f"{c:g} R": [c] * len(V) for c in SCALES}
    lengths |= {f"response {share:g}": [length_at(curve, share) for curve in own] for share in SHARES}
    lengths |= {"steepest": steepest}
    right = {name: judged(s, V, each, R, asked[:HEARD]) for name, each in lengths.items() if listens}
    return {
        "curves": {name: [round(x, 3) for x in c.median(0).values.tolist()] for name, c in curves.items()},
        "slopes": {name: [round(x, 2) for x in slopes(c).median(0).values.tolist()] for name, c in curves.items()},
        "right": {name: sum(each) for name, each in right.items()},
        "best vector": {name: max(each) for name, each in right.items()},
        "median multiple": {name: round(sorted(each)[len(each) // 2], 2) for name, each in lengths.items()},
        "of": len(V) * HEARD,
    }


def figure(curves: dict[str, list[float]], path: Path, title: str) -> None:
    """Responses by length on logarithmic axes, each kind's line with its name at the end."""
    x = Axis.over(MULTIPLES, "length of the vector, in R", log=True)
    y = Axis.over([v for values in curves.values() for v in values if v > 0], "response, in target norms", log=True)
    plot = Plot(x, y, "median response by length")
    for name, values in curves.items():
        points = [(c, v) for c, v in zip(MULTIPLES, values, strict=True) if v > 0]
        plot.line(points, "random" if name == "random" else "")
        plot.beside(*points[-4], name)
    write(path, [(title, plot)])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults.ask_subject(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--curves-only", action="store_true", help="no replies")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    s = defaults.asked_subject(given)
    mild = defaults.harmless(given.model)[:8]
    total: Counter[str] = Counter()
    for seed in range(given.seeds):
        told = measure(s, mild, seed, not given.curves_only)
        total.update(told["right"])
        if seed == 0:
            print("multiples", [round(c, 2) for c in MULTIPLES])
            for name, values in told["curves"].items():
                print(f"{name}: response {values}\n{name}: slope {told['slopes'][name]}")
            if given.plot is not None:
                figure(told["curves"], given.plot, given.model)
        print(
            f"seed {seed}:",
            {name: told[name] for name in ("right", "best vector", "median multiple", "of")},
            flush=True,
        )
    print("right of", given.seeds * defaults.FACTORS * HEARD, dict(total))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
