"""The card beside an export, in Markdown: what it is, where it comes from, what it does and breaks, how it is opened.

What the card knows of scores it takes from `rank.json`, with the damage and the baselines that stand there.
"""

import re
from collections.abc import Mapping
from typing import Any

from dct.exporting import Format, Parcel, Written
from dct.publicname import public
from dct.version import __version__

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

SAFETY = """## Safety

This changes what a model does, and may take away its refusals. It was found without labels, so it may do more than its
scores tell: read completions on prompts of your own before anyone else does. It is meant for research and red teaming
of models that you may study. The model's own licence and terms go on to hold.
"""


def card(parcel: Parcel, how: Format, written: Written) -> str:
    """The whole card."""
    what = f"vector {parcel.names[0]}" if len(parcel.names) == 1 else f"{len(parcel.names)} vectors"
    title = f"{'Ablation of' if parcel.ablate else 'Steering:'} {what} of {parcel.model}"
    parts = [
        _front(parcel),
        f"# {plain(title)}\n",
        _what(parcel, how),
        "## Load it\n\n" + written.load,
        "## What is in it\n\n" + _table([*_content(parcel), *written.facts.items()]),
        _scores(parcel),
        "## Where it comes from\n\n" + _table(_provenance(parcel)),
        SAFETY,
    ]
    return "\n".join(parts)


def _front(parcel: Parcel) -> str:
    """What the hub reads: tags, and the model that it belongs to where that is one of the hub."""
    lines = ["---", "library_name: dct", "tags:", "- deep-causal-transcoder", "- steering-vector"]
    if HUB_ID.fullmatch(parcel.model):
        lines.insert(1, f"base_model: {parcel.model}")
    return "\n".join([*lines, "---", ""])


def _what(parcel: Parcel, how: Format) -> str:
    names = plain(", ".join(parcel.names[:8]) + (", …" if len(parcel.names) > 8 else ""))
    if parcel.ablate:
        rank = len(parcel.vectors)
        return (
            f"The span of {names} ({rank} dimension{'s' if rank > 1 else ''}) is taken out of everything that writes "
            f"into the residual stream: W becomes W - D'D W. Format: {how.about}.\n"
        )
    if parcel.changes is not None:
        return (
            f"Every attention output projection of {parcel.changes} (counted from 0) becomes W + R b a' with |a| = |b| "
            f"= 1, at every token. R is in the numbers: strength 1 is the scale below. Format: {how.about}.\n"
        )
    return (
        f"The vector R v is added to `hidden_states[{parcel.layer}]`, which enters block {parcel.layer} (counted from "
        f"0), at every token. R is in the numbers: strength 1 is the scale below. Format: {how.about}.\n"
    )


def _content(parcel: Parcel) -> list[tuple[str, str]]:
    where = ("found at layer", str(parcel.layer)) if parcel.changes is None else ("changes", parcel.site)
    rows = [("vectors", ", ".join(parcel.names)), where]
    if not parcel.ablate:
        rows.append(
            (
                "length of what is added" if parcel.changes is None else "R",
                ", ".join(f"{norm:.6g}" for norm in parcel.norms),
            )
        )
    return rows


def _provenance(parcel: Parcel) -> list[tuple[str, str]]:
    info = parcel.info
    loading = info.get("loading")
    loading = loading if isinstance(loading, Mapping) else {}
    versions = info.get("versions")
    versions = dict(versions) if isinstance(versions, Mapping) else {}
    origin = info.get("prompts_origin")
    prompts = info.get("prompts")
    rows = {
        "model": parcel.model,
        "weights": parcel.fingerprint,
        "revision": loading.get("revision"),
        "adapter": public(str(loading["adapter"])) if loading.get("adapter") else None,
        "found in the difference from": public(str(info["minus"]["model"])) if info.get("minus") else None,
        "method": info.get("method"),
        "layers": f"{parcel.layer} to {info.get('target', 'unknown')} of {info.get('blocks', 'unknown')}",
        "R of the fit": info.get("scale"),
        "prompts": f"{len(prompts)}, {public(str(origin)) if origin else 'origin unknown'}" if prompts else origin,
        "hash of the prompts": info.get("prompts_hash"),
        "seed": info.get("seed"),
        "fitted with": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "exported with": f"dct {__version__}",
    }
    return [(name, str(value)) for name, value in rows.items() if value not in (None, "")]


def _scores(parcel: Parcel) -> str:
    """What the ranking says of these vectors, beside its baselines."""
    found = parcel.ranking
    if found is None:
        return "## Scores and damage\n\nNot measured: the run has not been ranked (`dct rank`).\n"
    by = str(found.get("by", "score"))
    wanted = [name.strip() for name in re.findall(r"-?\d+", " ".join(parcel.names))]
    places = {str(one["vector"]): (place, one) for place, one in enumerate(found["vectors"], start=1)}
    rows = []
    for name in wanted:
        if name in places:
            place, one = places[name]
            norm = f" at norm {one['scale']:.6g}" if one.get("scale") is not None else ""
            rows.append((f"vector {name}, rank {place} of {len(places)}{norm}", _said(one)))
    for name in ("unsteered", "random_mean", "random_best", "supervised"):
        if isinstance(found.get(name), Mapping) and found[name]:
            kind = "test" if "right" in found[name] else "effect"
            rows.append((name.replace("_", ", "), _said({kind: found[name]})))
    for arm in found.get("arms", []):
        rows.append((f"{arm['arm']}: {arm['vector']}, layer {arm['layer']}, norm {arm['scale']:.6g}", _arm(arm)))
    head = f"From `rank.json` (by {plain(by)}"
    head += (
        f", judge {plain(str(found['judge']))}, a success is `{plain(str(found.get('wanted')))}` and coherent"
        if (found.get("judge"))
        else ""
    )
    note = ").\nScores are of the vectors added one by one" + (
        ", not of this ablation, which was not measured here: `dct ablate` does.\n" if parcel.ablate else ".\n"
    )
    missing = [name for name in wanted if name not in places]
    if missing:
        rows.append((f"vector {', '.join(missing)}", "not in the ranking"))
    return "## Scores and damage\n\n" + head + note + "\n" + _table(rows)


def _said(one: Mapping[str, Any]) -> str:
    """A vector's effect and marks in words."""
    words = []
    effect = one.get("effect")
    if isinstance(effect, Mapping):
        for key, name in (("score", "score"), ("flipped", "flipped"), ("kl", "damage (KL)")):
            value = effect.get(key)
            if isinstance(value, int | float):
                words.append(f"{name} {value:.3g}")
    for key in ("validation", "test"):
        mark = one.get(key)
        if isinstance(mark, Mapping):
            words.append(f"{key} {mark['right']} of {mark['asked']}")
    return ", ".join(words) or "not measured"


def _arm(arm: Mapping[str, Any]) -> str:
    words = [f"test {arm['test']['right']} of {arm['test']['asked']}"]
    interval = arm.get("interval")
    if interval:
        words.append(f"95% {100 * interval[0]:.0f}–{100 * interval[1]:.0f}%")
    damage = arm.get("damage")
    if isinstance(damage, Mapping):
        kl = damage.get("kl")
        words.append(f"damage (KL) {kl:.3g}" if isinstance(kl, int | float) else "damage not measured")
        words.append(f"{damage['spoiled']} of {damage['of']} harmless replies spoiled")
    return ", ".join(words)


def _table(rows: list[tuple[str, str]]) -> str:
    lines = ["| | |", "|---|---|"]
    lines += [f"| {plain(name)} | {plain(value)} |" for name, value in rows]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Any text as it is in a line of Markdown: no markup, no table, no new line."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", line)
