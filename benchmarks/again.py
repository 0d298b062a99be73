"""Which vectors does another seed find again, what tells them from the rest, and what changes that?

FACTORS vectors are fitted on the same prompts from `--seeds` random starts. A vector comes again in another fit if one
there has a cosine above NEAR. Printed are the share of one-to-one matches beyond that, the distinct vectors of a fit,
and how well the length of a response tells the vectors that most other fits have (AUC: 0.5 is chance, 1 is perfect).

    python benchmarks/again.py MODEL --source 0 --target 8 [--push 0.5,0.25] [--over mean,each] [--judged]

`--push` is eta of the push apart, `--over each` keeps prompts apart where the default takes their mean: the effect of a
vector is the list of its effects on all prompts. `--mixed` fits on refused and harmless requests in turn. `--judged`
chooses and tests vectors too, as `defaults.py` does. Prompts are eight requests that the model refuses, or any eight of
the set where it refuses fewer.
"""

import argparse
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import defaults
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import dct
from dct.calibration import default_calibration
from dct.matching import assigned

FACTORS, PROMPTS, NEAR = 32, 8, 0.8


class Each:
    """A slice whose prompts are kept apart: (batch, d) -> (batch, prompts * d), the mean over target positions of each,
    divided by the root of their number, so that its squared length is the mean squared length over prompts."""

    def __init__(self, slice_: dct.Slice) -> None:
        self.slice = slice_
        counts = torch.tensor(slice_.target_counts)
        self.share = (slice_.weights.cpu() * len(counts)).to(slice_.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.slice, name)

    def __call__(self, theta: Float[Tensor, "batch d"]) -> Float[Tensor, "batch effects"]:
        """Effects on all prompts, one after the other."""
        weighted = self.slice.responses(theta) * self.share[None, :, None]
        n = len(self.slice.ids)
        each = weighted.new_zeros(len(theta), n, weighted.shape[2])
        return each.index_add(1, self.slice.prompt_of_target, weighted).flatten(1) / n**0.5


@contextmanager
def changed(how: str, eta: float) -> Iterator[None]:
    """Fits push apart by this much, and see the mean over prompts, or each prompt."""
    usual = dct.fit

    def other(slice_: dct.Slice, dim: int, **changes: Any) -> dct.Factors:
        return usual(slice_ if how == "mean" else Each(slice_), dim, eta=eta, **changes)

    dct.fit = other  # type: ignore[assignment]
    try:
        yield
    finally:
        dct.fit = usual


def auc(score: Float[Tensor, " n"], good: Bool[Tensor, " n"]) -> float:
    """Chance that a good one scores above another: the area under the ROC curve; ties count half."""
    yes, no = score[good][:, None], score[~good][None]
    if not yes.numel() or not no.numel():
        return float("nan")
    return float((yes > no).float().mean() + (yes == no).float().mean() / 2)


def distinct(V: Float[Tensor, "m d"]) -> int:
    """Vectors that are left if of those within NEAR of each other the first one stays."""
    left, count = set(range(len(V))), 0
    cosines = (V @ V.T).abs()
    while left:
        first = min(left)
        left -= {first, *(k for k in left if cosines[first, k] > NEAR)}
        count += 1
    return count


def again(slice_: dct.Slice, R: float, seeds: int) -> dict[str, Any]:
    """Fits from all starts, held against each other."""
    fits = [dct.fit(slice_, slice_.dim, factors=FACTORS, scale=R, seed=seed).V for seed in range(seeds)]
    found = [torch.stack([(V @ W.T).amax(1) > NEAR for W in fits if W is not V]).float().mean(0) >= 0.5 for V in fits]
    with torch.no_grad():
        length = torch.cat([slice_(R * V).norm(dim=1) for V in fits])
        shared = slice_(R * fits[0]).norm(dim=1) / Each(slice_)(R * fits[0]).norm(dim=1)
    matched = [(assigned(V, W)[2].abs() > NEAR).float().mean() for V, W in itertools.combinations(fits, 2)]
    # The strongest response comes first in a file.
    quarters = torch.stack(found).float().reshape(seeds, 4, -1).mean((0, 2))
    return {
        "matched": float(torch.stack(matched).mean()),
        "distinct": sum(map(distinct, fits)) / seeds,
        "in most others": float(torch.cat(found).float().mean()),
        "by quarters": [round(float(x), 2) for x in quarters],
        "AUC of response": auc(length, torch.cat(found)),
        "mean / root mean square over prompts": float(shared.median()),
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults.ask_subject(parser)
    parser.add_argument("--push", type=_numbers, default=(0.25,))
    parser.add_argument("--over", type=_words, default=("mean",))
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--judged", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    subject = defaults.asked_subject(given) if given.judged else defaults.asked_subject(given, needed=0)
    enough = len(subject.refused) >= PROMPTS
    asked = random.Random("again").sample(subject.refused if enough else subject.asked, PROMPTS)
    if given.mixed:
        mild = defaults.harmless(given.model)
        asked = [text for pair in zip(asked[: PROMPTS // 2], mild[: PROMPTS // 2], strict=True) for text in pair]
    slice_ = dct.Slice(subject.lm, asked, subject.source, subject.target)
    R = default_calibration(slice_, slice_.dim, None).scale
    for eta, how in itertools.product(given.push, given.over):
        with changed(how, eta):
            told = again(slice_, R, given.seeds)
            if given.judged:
                cells = [defaults.measure(subject, defaults.SETTINGS["default"], seed) for seed in range(3)]
                told |= {"test": [cell["test"] for cell in cells], "heard": [cell["heard"] for cell in cells]}
        numbers = {name: round(value, 2) if isinstance(value, float) else value for name, value in told.items()}
        print(f"push {eta:g}, over {how}: {numbers}", flush=True)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
