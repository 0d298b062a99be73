"""What the vectors of a run say, one of each kind: a look around before anything is asked of them."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from dct.cli.terminal import Terminal, escape, titled
from dct.prompts import PromptSet

if TYPE_CHECKING:
    from torch import Tensor

    from dct.candidates import Aim
    from dct.factors import Factors
    from dct.judging import Verdict
    from dct.kinds import Kind
    from dct.model import LanguageModel
    from dct.naming import Name

SHOWN, HEARD = 8, 24
"""Kinds that are shown, and those that are listened to."""

TOLD_BY = 4
"""Prompts of each sort by which kinds are told apart."""


@dataclass(frozen=True)
class Sample:
    """What one vector of a kind says.

    Attributes:
        vector: its name; `unsteered` for none.
        completions: to the first prompt and to the first harmless one.
        verdicts: on both.
        damage: KL on the harmless prompts, in nats.
        name: the tokens that it makes likelier and less likely.
        says: words that its completions to all prompts by which kinds are told apart are known by.
    """

    vector: str
    completions: list[str]
    verdicts: list["Verdict"]
    damage: float
    name: "Name | None" = None
    says: tuple[str, ...] = ()

    @property
    def coherent(self) -> bool:
        """Both are text that somebody could have meant."""
        return all(verdict.coherent for verdict in self.verdicts)


def run_kinds(
    terminal: Terminal,
    factors: "Factors",
    lm: "LanguageModel",
    prompts: PromptSet,
    harmless: PromptSet,
    *,
    scale: float | None = None,
    max_new_tokens: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Groups the vectors and shows what one of each kind says; beside it, how many kinds as many random vectors make.

    Args:
        prompts, harmless: `TOLD_BY` of each tell kinds apart, and are answered; the first of each in the table. Damage
            is measured on all harmless ones.
        scale: norm at which vectors are added; left out, R.
    """
    from dct.candidates import Aim, candidates
    from dct.kinds import groupable, kinds
    from dct.naming import vector_names
    from dct.nexttoken import NextTokens
    from dct.perturbation import at

    aim = Aim.of(factors, scale=scale)
    names, directions = candidates(factors)
    told = [*prompts.texts[:TOLD_BY], *harmless.texts[:TOLD_BY]]
    asked = (prompts.texts[0], harmless.texts[0])
    few = groupable(len(told), lm.vocabulary)
    vectors = aim.scale * directions
    random = aim.scale * at(aim.layer, lm.width).random(min(few, len(vectors)), seed + 2)
    with terminal.busy("looking for kinds"):
        near = NextTokens(lm, aim.layer, lm.encode(told, aim.system))
        found, null = kinds(near, vectors[:few]), kinds(near, random)
        changing, lucky = ([kind for kind in some if not kind.unchanged] for some in (found, null))
        heard = changing[:HEARD]
        likelier = vector_names(near, vectors, random)
    causes = _causes(terminal, factors, lm, told, aim)
    with terminal.busy("listening to one of each"):
        pushed = [("unsteered", None), *((names[kind.members[0]], vectors[kind.members[0]]) for kind in heard)]
        samples = _samples(lm, pushed, told, told.index(asked[1]), harmless, aim, max_new_tokens)
    likely = [likelier[kind.members[0]] for kind in heard]
    samples = [samples[0], *(replace(one, name=name) for one, name in zip(samples[1:], likely, strict=True))]
    title = f"{len(changing)} kinds of behaviour in {len(random)} vectors, {len(lucky)} in as many random ones"
    _show(terminal, title, asked, heard[:SHOWN], samples[: SHOWN + 1])
    _told_left(terminal, found, len(changing) - len(heard[:SHOWN]))
    return {
        "scale": aim.scale,
        "vectors": len(random),
        "kinds": [{"vectors": [names[k] for k in kind.members], "unchanged": kind.unchanged} for kind in found],
        "random_kinds": len(lucky),
        "coherent": sum(sample.coherent for sample in samples[1:]),
        "prompts": list(asked),
        "samples": [asdict(sample) for sample in samples],
        "names": {
            name: {**asdict(words), "causes": list(causes.get(name, ()))}
            for name, words in zip(names, likelier, strict=True)
        },
    }


def _causes(
    terminal: Terminal, factors: "Factors", lm: "LanguageModel", told: list[str], aim: "Aim"
) -> dict[str, tuple[str, ...]]:
    """The tokens that what each factor causes points to."""
    from dct.naming import target_names

    target = factors.info.get("target")
    if target is None:
        return {}
    with terminal.busy("reading what they cause"):
        found = target_names(lm, factors.U, int(target), lm.encode(told, aim.system))
    return {str(k): name.more for k, name in enumerate(found)}


def _samples(
    lm: "LanguageModel",
    pushed: list[tuple[str, "Tensor | None"]],
    told: list[str],
    mildest: int,
    harmless: PromptSet,
    aim: "Aim",
    length: int,
) -> list[Sample]:
    """What the model says to all prompts under each vector, of which the first and number `mildest` are kept."""
    import torch

    from dct.generation import complete
    from dct.judging import Reply, judge
    from dct.naming import telling_words
    from dct.nexttoken import NextTokens
    from dct.perturbation import at
    from dct.scoring import divergence

    nothing = torch.zeros(at(aim.layer, lm.width).dim)
    vectors, n = torch.stack([nothing if one is None else one for _, one in pushed]), len(told)
    rows, each = lm.encode(told, aim.system) * len(pushed), vectors.repeat_interleave(n, 0)
    said = complete(lm, rows, each, aim.layer, max_new_tokens=length)
    texts = [said[n * k : n * (k + 1)] for k in range(len(pushed))]
    says = [(), *telling_words(texts[1:], texts[0], told)]
    replies = [Reply(told[p], some[p], texts[0][p]) for some in texts for p in (0, mildest)]
    verdicts = judge("refusal").verdicts(replies)
    mild = NextTokens(lm, aim.layer, lm.encode(harmless.texts, aim.system))
    damage = torch.cat(mild.under(vectors, lambda logs: divergence(mild.base, logs).cpu())).tolist()
    return [
        Sample(name, [texts[k][0], texts[k][mildest]], verdicts[2 * k : 2 * k + 2], damage[k], says=says[k])
        for k, (name, _) in enumerate(pushed)
    ]


def _show(terminal: Terminal, title: str, asked: tuple[str, str], shown: list["Kind"], samples: list[Sample]) -> None:
    table = titled(escape(title))
    for heading in ("vectors", "such as"):
        table.add_column(heading, justify="right")
    table.add_column("begins")
    table.add_column("says")
    for prompt in asked:
        table.add_column(escape(_short(prompt, 40)), ratio=1)
    table.add_column("damage (KL)", justify="right")
    for kind, sample in zip(shown, samples[1:], strict=True):
        likelier = " ".join(sample.name.more[:2]) if sample.name is not None else ""
        words = (escape(likelier), escape(" ".join(sample.says[:3])))
        table.add_row(str(len(kind.members)), sample.vector, *words, *_cells(sample), f"{sample.damage:.3f}")
    table.add_section()
    table.add_row("", "unsteered", "", "", *_cells(samples[0]), "", style="dim")
    terminal.show(table)


def _cells(sample: Sample) -> list[str]:
    """What was said, and what the judge makes of it: of an answer to a harmless prompt only what is wrong with it."""
    asked, harmless = sample.verdicts
    labels = [asked.label, "refused" if harmless.label == "refused" else ""]
    labels = [
        label if verdict.coherent else "incoherent" for label, verdict in zip(labels, sample.verdicts, strict=True)
    ]
    return [
        escape(_short(text)) + (f" [dim]({label})[/dim]" if label else "")
        for text, label in zip(sample.completions, labels, strict=True)
    ]


def _told_left(terminal: Terminal, found: list["Kind"], hidden: int) -> None:
    """What the table leaves out."""
    still = sum(len(kind.members) for kind in found if kind.unchanged)
    left = [f"{hidden} smaller kinds"] if hidden else []
    left += [f"{still} vectors that change little"] if still else []
    if left:
        terminal.note(f"not shown: {' and '.join(left)}")


def _short(text: str, most: int = 64) -> str:
    """Its beginning, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def resembled(
    factors: "Factors", lm: "LanguageModel", prompts: PromptSet, harmless: PromptSet, seed: int = 0
) -> dict[str, Any] | None:
    """Which layers' streams the vectors resemble, as `rank.json` holds it: cosines to four digits, by vector; None of
    rank-1 changes, which lie in no stream."""
    from dct.candidates import Aim, candidates
    from dct.perturbation import layer_of
    from dct.resemblance import resemblance

    if factors.info.get("perturbation"):
        return None
    aim, (names, directions) = Aim.of(factors), candidates(factors)
    rows = (lm.encode(prompts.texts, aim.system), lm.encode(harmless.texts, aim.system) if len(harmless) else [])
    found = resemblance(lm, directions, *rows, source=layer_of(aim.layer), seed=seed)

    def by_name(cosines: "Tensor | None") -> dict[str, list[float]] | None:
        """A list over layers for each vector."""
        return None if cosines is None else dict(zip(names, _rounded(cosines), strict=True))

    return {
        "layers": found.layers,
        "prompts": len(prompts),
        "harmless": len(harmless),
        "stream": by_name(found.stream),
        "difference": by_name(found.difference),
        "chance_stream": _rounded(found.chance_stream),
        "chance_difference": None if found.chance_difference is None else _rounded(found.chance_difference),
    }


def _rounded(cosines: "Tensor") -> Any:
    return [_rounded(row) for row in cosines] if cosines.ndim > 1 else [round(c, 4) for c in cosines.tolist()]
