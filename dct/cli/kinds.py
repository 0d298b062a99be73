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

SHOWN = 8
"""Kinds that are shown."""

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
    """

    vector: str
    completions: list[str]
    verdicts: list["Verdict"]
    damage: float
    name: "Name | None" = None

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
        prompts, harmless: `TOLD_BY` of each tell kinds apart; the first of each is answered in the table. Damage is
            measured on all harmless ones.
        scale: norm at which vectors are added; left out, R.
    """
    from dct.calibration import random_directions
    from dct.candidates import Aim, candidates
    from dct.kinds import GROUPED, kinds
    from dct.naming import vector_names
    from dct.nexttoken import NextTokens

    aim = Aim.of(factors, scale=scale)
    names, directions = candidates(factors)
    names, vectors = names[:GROUPED], aim.scale * directions[:GROUPED]
    random = aim.scale * random_directions(len(vectors), lm.width, seed + 2)
    with terminal.busy("looking for kinds"):
        told = [*prompts.texts[:TOLD_BY], *harmless.texts[:TOLD_BY]]
        near = NextTokens(lm, aim.layer, lm.encode(told, aim.system))
        found, null = kinds(near, vectors), kinds(near, random)
        changing, lucky = ([kind for kind in some if not kind.unchanged] for some in (found, null))
        shown = changing[:SHOWN]
        likelier = vector_names(near, vectors, random)
    causes = _causes(terminal, factors, lm, told, aim)
    asked = (prompts.texts[0], harmless.texts[0])
    with terminal.busy("listening to one of each"):
        pushed = [("unsteered", None), *((names[kind.members[0]], vectors[kind.members[0]]) for kind in shown)]
        samples = _samples(lm, pushed, asked, harmless, aim, max_new_tokens)
    named = [likelier[kind.members[0]] for kind in shown]
    samples = [samples[0], *(replace(one, name=name) for one, name in zip(samples[1:], named, strict=True))]
    title = f"{len(changing)} kinds of behaviour in {len(vectors)} vectors, {len(lucky)} in as many random ones"
    _show(terminal, title, asked, shown, samples)
    _told_left(terminal, found, len(changing) - len(shown))
    return {
        "scale": aim.scale,
        "vectors": len(vectors),
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
    from dct.kinds import GROUPED
    from dct.naming import target_names

    target = factors.info.get("target")
    if target is None:
        return {}
    with terminal.busy("reading what they cause"):
        found = target_names(lm, factors.U[:GROUPED], int(target), lm.encode(told, aim.system))
    return {str(k): name.more for k, name in enumerate(found)}


def _samples(
    lm: "LanguageModel",
    pushed: list[tuple[str, "Tensor | None"]],
    asked: tuple[str, str],
    harmless: PromptSet,
    aim: "Aim",
    length: int,
) -> list[Sample]:
    """What the model says to both prompts under each vector."""
    import torch

    from dct.generation import complete
    from dct.judging import Reply, judge
    from dct.nexttoken import NextTokens
    from dct.scoring import divergence

    vectors = torch.stack([torch.zeros(lm.width) if one is None else one for _, one in pushed])
    rows, each = lm.encode(asked, aim.system) * len(pushed), vectors.repeat_interleave(len(asked), 0)
    said = complete(lm, rows, each, aim.layer, max_new_tokens=length)
    replies = [Reply(asked[k % 2], text, said[k % 2]) for k, text in enumerate(said)]
    verdicts = judge("refusal").verdicts(replies)
    mild = NextTokens(lm, aim.layer, lm.encode(harmless.texts, aim.system))
    damage = torch.cat(mild.under(vectors, lambda logs: divergence(mild.base, logs).cpu())).tolist()
    return [
        Sample(name, said[2 * k : 2 * k + 2], verdicts[2 * k : 2 * k + 2], damage[k])
        for k, (name, _) in enumerate(pushed)
    ]


def _show(terminal: Terminal, title: str, asked: tuple[str, str], shown: list["Kind"], samples: list[Sample]) -> None:
    table = titled(escape(title))
    for heading in ("vectors", "such as"):
        table.add_column(heading, justify="right")
    table.add_column("likelier")
    for prompt in asked:
        table.add_column(escape(_short(prompt, 40)), ratio=1)
    table.add_column("damage (KL)", justify="right")
    for kind, sample in zip(shown, samples[1:], strict=True):
        likelier = " ".join(sample.name.more[:2]) if sample.name is not None else ""
        table.add_row(str(len(kind.members)), sample.vector, escape(likelier), *_cells(sample), f"{sample.damage:.3f}")
    table.add_section()
    table.add_row("", "unsteered", "", *_cells(samples[0]), "", style="dim")
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
