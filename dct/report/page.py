"""One HTML file of a run's facts: no network, nothing loaded from elsewhere.

What a model wrote is text, never markup: it reaches the page inside a JSON block in which `<` is escaped, and a script
puts it there as text. The template escapes whatever else it is given.
"""

import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from dct import plainjson
from dct.judging import REFUSED
from dct.perturbation import RankOne
from dct.plots import figures
from dct.plots.charts import Axis, Plot, curve, histogram
from dct.plots.figures import ARMS, Named
from dct.publicname import public
from dct.report.facts import INCOHERENT, Facts
from dct.version import __version__

USEFUL = (0.5, 1.0)
"""The corner worth looking at: this share of the replies at least, and damage below so many nats."""


def rendered(facts: Facts) -> str:
    """The page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    parts = files("dct.report")
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["share"] = lambda value: f"{100 * value:.0f}"
    template = made.from_string((parts / "page.html").read_text("utf-8"))
    cards = _kinds(facts)
    heard = {str(card["number"]): [[one["prompt"], one["text"]] for one in card["said"]] for card in cards}
    data = {
        "vectors": facts.vectors,
        "unsteered": facts.unsteered,
        "R": facts.scale,
        "run": facts.folder,
        "kinds": heard,
    }
    content = plainjson.dumps(plainjson.finite(data)).replace("<", "\\u003c")
    return template.render(
        style=Markup((parts / "page.css").read_text("utf-8")),
        script=Markup((parts / "page.js").read_text("utf-8")),
        data=Markup(content),
        version=__version__,
        facts=facts,
        told=_told(facts),
        plots=[(title, plot.says, Markup(plot.svg())) for title, plot in _plots(facts)],
        arms=_arms(facts),
        kinds=cards,
    )


def _told(facts: Facts) -> list[tuple[str, str]]:
    """How it was fitted, as names and values."""
    info = facts.info
    last = facts.objective[-1][2] if facts.objective else None
    of_target = info.get("of_target") or [None, None]
    settled = "settled" if info.get("settled") else "has not settled"
    rows = [
        ("model", public(info.get("model") or "unknown") + _minus(info)),
        ("layers", _layers(info)),
        ("method", f"{info.get('method')}, {len(facts.alpha)} factors, seed {info.get('seed')}"),
        ("prompts", f"{len(info.get('prompts') or [])} of {public(info.get('prompts_origin') or 'unknown')}"),
        ("scale R", _scale(facts)),
        ("iterations", f"{len(facts.objective)}; the last changed V by {last:.3g}: {settled}" if last else "none"),
    ]
    if of_target[1] is not None:
        rows.append(
            (
                "at the target",
                f"the median factor changes the stream by {of_target[0]:.0%} of its norm, the strongest by "
                f"{of_target[1]:.0%}; {info.get('exploded', 0)} exploded",
            )
        )
    response, null = info.get("response"), info.get("random_response")
    if response and null:
        rows.append(
            ("response", f"{info.get('above_random')} of {len(facts.alpha)} above the strongest of 30 random vectors; "
             f"the median {response[0] / max(null[0], 1e-30):.3g} times a random one's"),
        )  # fmt: skip
    return rows


def _minus(info: dict[str, Any]) -> str:
    """What was subtracted, and how far the two models are apart by themselves."""
    minus = info.get("minus")
    if not minus:
        return ""
    before, behind = (minus.get("apart") or [None, None])[:2]
    told = f" minus {public(minus['model'])}"
    return (
        told if behind is None else f"{told}; left alone, {before:.1%} apart at the source, {behind:.1%} at the target"
    )


def _layers(info: dict[str, Any]) -> str:
    """Between which layers; of rank-1 changes, in which blocks they are."""
    if not info.get("perturbation"):
        return f"{info.get('source')} to {info.get('target')} of {info.get('blocks')}"
    kind = RankOne.read(info["perturbation"])
    return f"attention outputs of {kind}, read at layer {info.get('target')} of {info.get('blocks')}"


def _scale(facts: Facts) -> str:
    text = f"{facts.scale:.4g}"
    if facts.info.get("perturbation"):
        return f"{text}: every output gains R b <a, x>, with |a| = |b| = 1"
    norm, found = facts.info.get("residual_norm"), facts.info.get("calibration")
    text += f", {facts.scale / norm:.2f} times the median norm of the stream" if norm else ""
    if not found or not found.get("ratio"):
        return f"{text}; given, not calibrated" if found is None else text
    if found.get("limited"):
        return f"{text}: as long as the stream bears, at a non-linearity ratio of {found['ratio']:.2f}"
    return f"{text}: there the response is as non-linear as asked for (ratio {found['ratio']:.2f})"


def _arms(facts: Facts) -> list[dict[str, Any]]:
    """The experiment's arms, the unsteered model last."""
    if not facts.judged or facts.ranking is None:
        return []
    rows = []
    for arm in facts.ranking["arms"]:
        low, high = arm["interval"]
        damage = arm.get("damage")
        rows.append(
            {
                "name": ARMS.get(arm["arm"], arm["arm"]),
                "vector": arm["vector"] if arm["arm"] != "found" else f"vector {arm['vector']}",
                "found": arm["arm"] == "found",
                "right": arm["test"]["right"],
                "of": arm["test"]["asked"],
                "share": arm["test"]["right"] / arm["test"]["asked"],
                "low": low,
                "high": high,
                "kl": None if damage is None or damage["kl"] is None else f"{damage['kl']:.3f}",
                "spoiled": None if damage is None else f"{damage['spoiled']} of {damage['of']}",
            }
        )
    alone = facts.ranking["unsteered"]
    share = alone["right"] / alone["asked"]
    none = {"name": "nothing", "vector": "unsteered", "found": False, "low": share, "high": share, "kl": None}
    return [*rows, {**none, "right": alone["right"], "of": alone["asked"], "share": share, "spoiled": None}]


def _kinds(facts: Facts) -> list[dict[str, Any]]:
    """Kinds that were listened to, the largest first."""
    kinds = (facts.ranking or {}).get("kinds") or {}
    samples = {one["vector"]: one for one in kinds.get("samples", [])}
    cards = []
    for k, kind in enumerate(kinds.get("kinds", [])):
        sample = samples.get(kind["vectors"][0])
        if sample is None or kind["unchanged"]:
            continue
        verdicts = sample["verdicts"]
        cards.append(
            {
                "number": k,
                "vector": kind["vectors"][0],
                "size": len(kind["vectors"]),
                "words": (sample["name"] or {}).get("more", []),
                "says": sample.get("says", []),
                "said": [
                    {"prompt": p, "text": t, "label": _label(v, k > 0)}
                    for k, (p, t, v) in enumerate(zip(kinds["prompts"], sample["completions"], verdicts, strict=False))
                ],
                "damage": f"{sample['damage']:.2f}" if sample["damage"] is not None else "–",
            }
        )
    return cards


def _label(verdict: dict[str, Any], harmless: bool) -> str:
    """What a judge said of a reply: of one to a harmless prompt only what is wrong with it."""
    if not verdict["coherent"]:
        return INCOHERENT
    return "" if harmless and verdict["label"] != REFUSED else str(verdict["label"])


# --- plots ------------------------------------------------------------------------------------------------------------


def _plots(facts: Facts) -> list[Named]:
    """Each plot that there is something for, under its title."""
    info, ranking = facts.info, facts.ranking or {}
    calibration = [(x, y) for x, y in (info.get("calibration") or {}).get("curve", [])]
    made = [
        figures.calibration(calibration, facts.scale, info.get("lambda")),
        *figures.iterations(facts.objective),
        _strengths(facts),
        _damage(facts),
        _scores(facts),
        *map(figures.spectrum, facts.spectra.values()),
        *(figures.resemblances(ranking["resembles"], facts.vectors[0]["vector"]) if ranking.get("resembles") else []),
    ]
    plots = [plot for plot in made if plot is not None]
    sides = (
        ("V", "Are the vectors different?", "steering vectors"),
        ("U", "Do they cause different things?", "what they cause"),
    )
    for side, title, what in sides:
        if len(facts.alpha) > 1:
            says = f"|cosine| of pairs of {what}; the line is as many random directions"
            series = [(side, facts.cosines[side]), ("random", facts.cosines["random"])]
            plots.append((title, histogram(series, "|cosine|", says)))
    return plots


def _strengths(facts: Facts) -> Named | None:
    values = sorted((a for a in facts.alpha if a > 0), reverse=True)
    if len(values) < 2:
        return None
    says = "strength alpha of each factor, the strongest first"
    points = [(float(k), a) for k, a in enumerate(values, start=1)]
    x, y = Axis("factor", 1.0, float(len(values))), Axis.over(values, "alpha", log=True)
    return "How strong are they?", curve(points, x, y, says, None)


def _damage(facts: Facts) -> Named | None:
    """What a vector does against what it breaks."""
    points, names, asked = [], [], []
    for one in facts.vectors:
        mark, kl = one["validation"], one["damage"]
        if mark and mark["asked"] and kl is not None and math.isfinite(kl):
            points.append((max(kl, 1e-4), mark["right"] / mark["asked"]))
            asked.append(mark["asked"])
            names.append(f"{one['vector']}: {mark['right']} of {mark['asked']}, KL {kl:.3f}")
    if not points:
        return None
    says = "successes against damage on harmless prompts, of the competitors; faint: heard on few prompts; the useful "
    says += "corner is marked"
    x = Axis.over([*(p[0] for p in points), USEFUL[1]], "damage (KL, nats)", log=True)
    plot = Plot(x, Axis("successes", -0.04, 1.04, share=True), says)
    plot.area((x.low, USEFUL[0]), (USEFUL[1], 1.0), "useful")
    most = max(asked)
    for kind, chosen in (("vector few", [n < most for n in asked]), ("vector", [n == most for n in asked])):
        plot.dots(
            [p for p, is_in in zip(points, chosen, strict=True) if is_in],
            kind,
            [n for n, is_in in zip(names, chosen, strict=True) if is_in],
        )
    return "What is worth its damage?", plot


def _scores(facts: Facts) -> Named | None:
    ranking = facts.ranking or {}
    null = [one["score"] for one in ranking.get("random", []) if one["score"] is not None]
    scores = [one["score"] for one in facts.vectors if one["score"] is not None]
    if len(scores) < 2:
        return None
    words: Sequence[str] = [str((ranking.get("words") or {}).get(k, "")) for k in ("shown_positive", "shown_negative")]
    what = f"score: {words[0]!r} over {words[1]!r}" if all(words) else "score"
    says = "score of the vectors; the line is as many random ones"
    short = what if len(what) < 44 else "score"
    return "How far above chance?", histogram([("score", scores), ("random", null)], short, says)
