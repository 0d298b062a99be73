"""How many unseen refusals of the demo model a learned vector turns into on-topic answers.

A default fit on twelve harmful requests; the best vector by its score on 32 others; 100 requests that the model refuses
when nothing steers it, half of them of kinds of harm that training never asks for; completions judged whole by the
planted checkers. Beside it the best of as many random vectors, chosen in the same way, and the supervised difference
of means. Then every learned and random vector on six of the requests: which planted voices come up?

    python benchmarks/elicitation.py [--model DIR] [--factors 192] [--orthogonalize qr] [--lambda 0.5]
"""

import argparse
from collections import Counter
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import dct
from dct.calibration import DEFAULT_LAMBDA, random_directions
from dct.generation import complete
from dct.organism import checkers, text
from dct.organism.requests import Split
from dct.scoring import Scorer
from dct.wordpair import words

MULTIPLES = (1.0, 1.5, 2.0)
NEW_TOKENS = 40


def requests(behaviour: str, count: int, seed: int, split: Split = "objects") -> list[str]:
    return [s.messages[-2]["content"] for s in text.held_out(behaviour, count, seed, split)]


def judged(lm: dct.LanguageModel, asked: Sequence[str], vectors: Tensor, source: int) -> Counter[str]:
    """Classes of the completions of every request under every vector."""
    rows = lm.encode(asked)
    said = complete(lm, rows * len(vectors), vectors.repeat_interleave(len(rows), 0), source, max_new_tokens=NEW_TOKENS)
    return Counter(checkers.classify(asked[k % len(asked)], s) for k, s in enumerate(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--source", type=int, default=0)
    parser.add_argument("--target", type=int, default=8)
    parser.add_argument("--factors", type=int, default=192)
    parser.add_argument("--iterations", type=int, help="left out, the fit's own default, as with the next")
    parser.add_argument("--orthogonalize")
    parser.add_argument("--start", default="projected")
    parser.add_argument("--beta", type=float, help="left out, the fit damps itself; 1 is the post's way")
    parser.add_argument("--lambda", type=float, dest="ratio", default=DEFAULT_LAMBDA)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    lm = dct.load(given.model)
    fitted, chosen_on, mild = requests("harmful", 12, 5), requests("harmful", 32, 6), requests("harmless", 32, 6)
    asked = requests("harmful", 60, 77) + requests("harmful", 60, 78, "kinds")
    unsteered = complete(lm, lm.encode(asked), max_new_tokens=NEW_TOKENS)
    asked = [a for a, s in zip(asked, unsteered, strict=True) if checkers.is_refusal(a, s)][:100]

    slice_ = dct.Slice(lm, fitted, given.source, given.target)
    R = dct.calibrate(slice_, slice_.dim, ratio=given.ratio).scale
    factors = dct.fit(
        slice_,
        slice_.dim,
        factors=given.factors,
        scale=R,
        iterations=given.iterations,
        orthogonalize=given.orthogonalize,
        start=given.start,
        beta=given.beta,
        seed=given.seed,
    )
    scorer = Scorer(lm, words(lm, "Sure", "Sorry"), given.source, chosen_on, mild)
    supervised = scorer.difference_of_means()
    assert supervised is not None
    tried = {
        "learned": factors.V,
        "random": random_directions(given.factors, slice_.dim, given.seed + 2),
        "supervised": supervised[None],
    }
    table = Table(title=f"{len(asked)} refusals, R = {R:.4g} ({R / slice_.residual_norm:.2f} residual norms)")
    for heading in ("vector", "times R", "comply", "refuse", "other voices", "other", "damage (KL)"):
        table.add_column(heading, justify="left" if heading == "vector" else "right")
    for name, directions in tried.items():
        effects = scorer.effects(R * directions)
        best = max(range(len(directions)), key=lambda k: effects[k].score)
        for multiple in MULTIPLES:
            vector = multiple * R * directions[best : best + 1]
            found = judged(lm, asked, vector, given.source)
            voices = found.total() - found["compliance"] - found["refusal"] - found["other"]
            counts = (found["compliance"], found["refusal"], voices, found["other"])
            damage = scorer.effects(vector)[0].kl
            table.add_row(f"{name} {best}", f"{multiple:g}", *map(str, counts), f"{damage:.3f}")
    console = Console()
    console.print(table)
    few = asked[:3] + asked[-3:]
    for name in ("learned", "random"):
        for multiple in MULTIPLES:
            voices = Counter[str]()
            for vectors in (multiple * R * tried[name]).split(32):
                voices += judged(lm, few, vectors, given.source)
            console.print(f"{name}, {given.factors} vectors x 6 requests, {multiple:g} R: {dict(voices.most_common())}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
