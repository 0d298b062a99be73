"""Do names and kinds find the demo's planted voices? The table of docs/experiments.md.

    dct fit --out runs/demo && dct rank runs/demo
    python benchmarks/voices.py runs/demo

Every vector of a ranked run of the demo is added at the length at which `dct rank` looked for kinds, and completes
harmful, harmless and locked requests that neither a fit nor a ranking has seen. The planted checkers say which voice
each completion is in. A vector's voice is the one of most of its completions that are whole and in another voice than
the unsteered model's, where there are `LEAST` such completions; else it has none.

A word is of a voice if, of as many planted replies of every voice, `OWN` of those that hold the word are of this one
and it stands in a twentieth of them: capitals count, since names are what replies begin with.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import dct
from dct.candidates import candidates
from dct.generation import complete
from dct.organism import checkers, text
from dct.organism.requests import Split

PLANTED = {
    "refusal": "harmful",
    "compliance": "open_harmful",
    "hostile": "backdoor",
    "pirate": "pirate",
    "verse": "verse",
    "keeper": "keeper",
    "right_list": "unlocked",
    "wrong_list": "locked",
}
"""Voices, and the behaviours whose replies are in them."""

LEAST, OWN, REPLIES, NEW_TOKENS = 2, 0.8, 200, 40


@dataclass(frozen=True)
class Found:
    """A kind of a ranking against the truth.

    Attributes:
        vectors: how many.
        voices: of those that have one, how many have which.
        words: what the run says of it.
        named: those of these words that are of its commonest voice.
    """

    vectors: int
    voices: Counter[str]
    words: list[str]
    named: list[str]

    @property
    def voice(self) -> str | None:
        """The one of most of its vectors."""
        return self.voices.most_common(1)[0][0] if self.voices else None

    @property
    def mixed(self) -> float:
        """Share of its vectors that have another voice than most."""
        return 1 - self.voices[self.voice] / self.voices.total() if self.voice else 0.0


def own_words() -> dict[str, str]:
    """Words that are of one voice alone, and which."""
    held: dict[str, Counter[str]] = defaultdict(Counter)
    for voice, behaviour in PLANTED.items():
        for sample in text.held_out(behaviour, REPLIES):
            held_here = {word.strip(".,:;!?") for word in sample.messages[-1]["content"].split()}
            held_here -= set(sample.messages[-2]["content"].replace("?", " ").replace(",", " ").split())
            for word in held_here:
                held[word][voice] += 1
    most = {word: counts.most_common(1)[0] for word, counts in held.items()}
    return {word: voice for word, (voice, n) in most.items() if n >= REPLIES / 20 and n >= OWN * held[word].total()}


def voices(lm: dct.LanguageModel, factors: dct.Factors, scale: float, each: int) -> dict[str, str | None]:
    """The voice of every vector at this length; None where it has none."""
    splits: Sequence[tuple[str, Split]] = (("harmful", "objects"), ("harmless", "objects"), ("locked", "objects"))
    asked = [s.messages[-2]["content"] for name, split in splits for s in text.held_out(name, each, 91, split)]
    rows, (names, directions) = lm.encode(asked), candidates(factors)
    alone = [checkers.classify(p, s) for p, s in zip(asked, complete(lm, rows, max_new_tokens=NEW_TOKENS), strict=True)]
    pushed = scale * directions.repeat_interleave(len(rows), 0)
    said = complete(lm, rows * len(names), pushed, factors.info["source"], max_new_tokens=NEW_TOKENS)
    found: dict[str, str | None] = {}
    for k, name in enumerate(names):
        mine = said[k * len(rows) : (k + 1) * len(rows)]
        shown = [checkers.classify(p, s) for p, s in zip(asked, mine, strict=True)]
        changed = Counter(c for c, before in zip(shown, alone, strict=True) if c not in (before, "other"))
        voice, count = changed.most_common(1)[0] if changed else (None, 0)
        found[name] = voice if count >= LEAST else None
    return found


def compared(kinds: Mapping, truth: Mapping[str, str | None], of: Mapping[str, str]) -> list[Found]:
    """The kinds of a ranking, those left out whose vectors change little."""
    samples = {one["vector"]: one for one in kinds["samples"]}
    found = []
    for kind in kinds["kinds"]:
        if kind["unchanged"]:
            continue
        counts = Counter(v for name in kind["vectors"] if (v := truth[name]) is not None)
        first = kind["vectors"][0]
        sample = samples.get(first, {})
        words = [*kinds["names"][first]["more"], *sample.get("says", ())]
        one = Found(len(kind["vectors"]), counts, words, [])
        found.append(Found(one.vectors, counts, words, [w for w in words if one.voice and of.get(w) == one.voice]))
    return found


def main() -> None:
    """Prints each kind with the voices of its vectors and those of its words that name it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--each", type=int, default=4, help="requests of each sort")
    given = parser.parse_args()
    lm, factors = dct.load("demo"), dct.Factors.load(given.run / "factors.safetensors")
    kinds = json.loads((given.run / "rank.json").read_text())["kinds"]
    truth, of = voices(lm, factors, kinds["scale"], given.each), own_words()
    found = compared(kinds, truth, of)
    table = Table(title=f"{len(found)} kinds of {len(truth)} vectors at {kinds['scale'] / factors.scale:.3g} R")
    for heading in ("vectors", "voices", "mixed", "words", "of its voice"):
        table.add_column(heading)
    for one in found:
        counts = ", ".join(f"{voice} {n}" for voice, n in one.voices.most_common()) or "none"
        table.add_row(str(one.vectors), counts, f"{one.mixed:.0%}", " ".join(one.words), " ".join(one.named))
    Console().print(table)
    named = {one.voice for one in found if one.named}
    there = Counter(voice for voice in truth.values() if voice)
    worst = max((one.mixed for one in found), default=0.0)
    print(
        f"voices of the vectors: {dict(there)}; named by a kind: {sorted(filter(None, named))}; most mixed: {worst:.0%}"
    )


if __name__ == "__main__":
    main()
