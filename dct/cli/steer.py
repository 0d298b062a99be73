"""`dct steer`: what a model says with a vector added, beside what it says without."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dct.cli.asked import HARMLESS, harmless_prompts, literal_or_unseen
from dct.cli.completions import completions_table, effect_table, growing, planned
from dct.cli.costs import announce, as_estimate
from dct.cli.signature import argument
from dct.cli.terminal import Terminal, command
from dct.cli.vectors import chosen_vectors
from dct.cli.work import RUN_HELP, open_run
from dct.errors import DctError
from dct.plainjson import dumps
from dct.prompts import PromptSet
from dct.settings import ReplyPromptSettings, RunModelSettings, SteerOutputSettings, SteerSettings, VectorSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dct.estimate import Cost
    from dct.factors import Factors
    from dct.model import LanguageModel
    from dct.perturbation import Site
    from dct.scoring import Effect, Reading


@command
def steer(
    model: RunModelSettings,
    vectors: VectorSettings,
    prompts: ReplyPromptSettings,
    options: SteerSettings,
    output: SteerOutputSettings,
    run: Annotated[Path | None, argument(RUN_HELP)] = None,
) -> None:
    """Complete prompts with vectors added to the residual stream, beside the unsteered model.

    The vector R v is added at the source layer, at every token of the prompt and of the completion. Rank-1 changes of a
    run of cpe act on the attention outputs of their blocks instead.
    """
    terminal = Terminal(output.json, output.quiet)
    from dct.perturbation import vectors_alone

    opened, factors, lm = open_run(terminal, run, model, prompts, output.force)
    if vectors.aggregate is not None:
        vectors_alone(factors.info, "`aggregate`", "choose one with `vector`")
    picked = chosen_vectors(opened, vectors)
    content = run_steer(
        terminal,
        factors,
        lm,
        picked,
        literal_or_unseen(terminal, factors.info, prompts),
        harmless_prompts(factors.info, prompts.harmless, HARMLESS),
        options,
        aggregate=vectors.aggregate,
        system=prompts.system if prompts.system is not None else factors.info.get("system"),
    )
    if output.out is not None:
        from dct.factors import write_whole

        lines = (dumps(c, strict=False) + "\n" for c in content["completions"])
        write_whole(output.out, "".join(lines).encode())
        terminal.note(f"written to {output.out}")
    terminal.result(content)


def run_steer(
    terminal: Terminal,
    factors: "Factors",
    lm: "LanguageModel",
    picked: dict[str, float | None],
    prompts: PromptSet,
    harmless: PromptSet,
    options: SteerSettings,
    *,
    aggregate: str | None = None,
    system: str | None = None,
) -> dict[str, Any]:
    """Streams completions, prompt by prompt, and shows each vector's effect and damage beside a random one's.

    Args:
        picked: vectors with the norm that each is added at, R where it has none, times `options.scale`; the random one
            and an aggregate are added at the mean of them.
    """
    import torch

    from dct.candidates import Aim, chosen
    from dct.perturbation import at, layer_of
    from dct.scoring import Reading
    from dct.wordpair import words as compare

    if factors.info.get("source") is None:
        raise DctError("these factors do not say at which layer they were fitted: set info['source'] before saving")
    layer, names = Aim.of(factors).layer, list(picked)
    each = options.scale * torch.tensor([n or factors.scale for n in picked.values()])
    R = float(each.mean())
    directions = torch.stack([chosen(factors, name) for name in names])
    compared = compare(lm, options.positive, options.negative, system)
    for said in compared.notes:
        terminal.note(said)

    def read(added: "Tensor | None" = None) -> Reading:
        """What the model says with a vector, and without."""
        return Reading.of(lm, compared, prompts.texts, harmless.texts, system, added, layer)

    began = time.monotonic()
    unsteered = read()
    once, rows = time.monotonic() - began, 1 + (len(names) if aggregate is None else 1)
    expected = _expected(lm, rows * once, prompts, system, rows, options.max_new_tokens, layer)
    announce(terminal, expected, planned(len(prompts), rows))
    began = time.monotonic()
    labels = [f"vector {name}" for name in names]
    if aggregate is not None:
        labels, directions = _aggregated(read, directions, aggregate, R, names)
        each = each.mean()[None]
    steered = at(layer, lm.width).scaled(directions, each)
    random = R * at(layer, lm.width).random(1, options.seed + 2)[0]
    alone, *effects = (one.against(unsteered) for one in (unsteered, *map(read, steered)))
    null = read(random).against(unsteered)
    completions = _completed(terminal, lm, prompts, labels, steered, layer, options, system)
    shown = [("unsteered", alone), *zip(labels, effects, strict=True), ("random", null)]
    terminal.show(effect_table(compared, [*shown[:-1], ("a random vector", null)]))
    return {
        "layer": layer_of(layer),
        "scale": R,
        "estimate": as_estimate(expected),
        "seconds": round(time.monotonic() - began, 2),
        "effects": [_effect(label, effect) for label, effect in shown],
        "completions": [
            {"prompt": prompt, "vector": name.removeprefix("vector "), "scale": norm, "completion": text}
            for prompt, rows in completions
            for name, norm, text in zip(["unsteered", *labels], [0.0, *each.tolist()], rows, strict=True)
        ],
    }


def _effect(label: str, effect: "Effect") -> dict[str, Any]:
    name = label.removeprefix("vector ")
    return {"vector": name, "score": effect.score, "flipped": effect.flipped, "kl": effect.kl}


def _completed(
    terminal: Terminal,
    lm: "LanguageModel",
    prompts: PromptSet,
    labels: list[str],
    steered: "Tensor",
    layer: "Site",
    options: SteerSettings,
    system: str | None,
) -> list[tuple[str, list[str]]]:
    """Each prompt with its completions, the unsteered one first; shown as they come."""
    import torch

    from dct.generation import complete

    vectors = torch.cat([torch.zeros(1, steered.shape[1]), steered]).to(lm.device)
    columns = ["unsteered", *labels]
    done = []
    for text in prompts.texts:
        with growing(terminal, text, columns) as grow:
            rows = complete(
                lm,
                lm.encode([text], system) * len(columns),
                vectors,
                layer,
                tokens=options.tokens,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                seed=options.seed,
                on_token=grow,
            )
        terminal.show(completions_table(text, columns, rows))
        done.append((text, rows))
    return done


def _expected(
    lm: "LanguageModel",
    scored: float,
    prompts: PromptSet,
    system: str | None,
    rows: int,
    tokens: int,
    layer: "Site",
) -> "Cost":
    """What scores, of so many seconds, and completions will take: every prompt is completed in so many rows."""
    import torch

    from dct.estimate import completions_seconds, cost
    from dct.generation import complete, completion_bytes, usual_length
    from dct.perturbation import at

    ids = lm.encode(prompts.texts, system)
    longest = max(ids, key=len)

    def say(size: int, length: int) -> None:
        complete(lm, [longest] * size, torch.zeros(size, at(layer, lm.width).dim), layer, max_new_tokens=length)

    length = usual_length(lm, ids[0], tokens)
    spent = completions_seconds(say, rows * len(prompts), rows, length, lm.device)
    return cost(spent + scored, completion_bytes(lm, rows, len(longest) + tokens), lm.device, lm.memory)


def _aggregated(
    read: "Callable[[Tensor], Reading]", directions: "Tensor", how: str, R: float, names: list[str]
) -> tuple[list[str], "Tensor"]:
    """One direction for all that were chosen; of the two senses of an SVD direction, the one that scores higher."""
    from dct.candidates import aggregate

    found = aggregate(directions, how)
    best = max(range(len(found)), key=lambda k: float(read(R * found[k]).differences.mean()))
    return [f"{how} of {len(names)} vectors"], found[best : best + 1]
