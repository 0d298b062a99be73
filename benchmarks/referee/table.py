"""docs/architectures.md from the results of the sweep."""

import re
from collections import Counter
from typing import Any

from referee.checks import CHECKS

VERDICTS = ("ok", "refused", "fails", "wrong", "none")
MARKS = {"ok": "✓", "refused": "refused", "fails": "FAILS", "wrong": "WRONG", "none": "–"}

HEAD = """# Every causal language model of transformers

`python benchmarks/architectures.py`, then `--write`: each class of transformers' causal mapping, and each class for
images and text, in a tiny random form, against its own forward pass. transformers {transformers}, torch {torch}.

{counts}

A check is **ok**; **refused**, with one line that says why; **fails**, with any other error; **wrong**, where numbers
come out that are not the model's; **–**, where there is nothing to check: the model does not run on tokens alone or has
no chain of blocks (`blocks` is then refused), its own `generate` or `save_pretrained` does not do what its forward pass
does, or transformers cannot load it. The referee never asks `dct`: it uses plain hooks, autograd, finite differences
and `generate`. Every kind of layer that a class has is in the model, sliding windows are shorter than the prompts,
multipliers are not 1.
"""


def passes(result: dict[str, Any]) -> bool:
    """Whether every check is right, refused, or has nothing to check."""
    return all(found["verdict"] in ("ok", "refused", "none") for found in result["checks"].values())


def summary(results: list[dict[str, Any]]) -> str:
    """The counts, in a sentence."""
    built = [r for r in results if r["built"]]
    good = sum(passes(r) for r in built)
    clean = sum(all(f["verdict"] in ("ok", "none") for f in r["checks"].values()) for r in built)
    wrong = sum(any(f["verdict"] == "wrong" for f in r["checks"].values()) for r in built)
    classes = len({r["class"] for r in built})
    share = good / max(1, len(built))
    return (
        f"{len(results)} entries ({len(results) - len(built)} could not be built), {classes} classes: {good} of "
        f"{len(built)} ({share:.0%}) pass every check or are refused in one line, {clean} of them without any refusal; "
        f"silently wrong: {wrong}."
    )


def render(content: dict[str, Any]) -> str:
    """The page."""
    results = content["results"]
    built = [r for r in results if r["built"]]
    lines = [HEAD.format(counts=summary(results), **content["versions"]), "## Checks\n"]
    lines.append("| check | what | " + " | ".join(VERDICTS) + " |")
    lines.append("|---|---|" + "---|" * len(VERDICTS))
    for name, what in CHECKS.items():
        count = Counter(r["checks"][name]["verdict"] for r in built if name in r["checks"])
        lines.append(f"| {name} | {what} | " + " | ".join(str(count[v]) for v in VERDICTS) + " |")
    for vision, title in ((False, "The causal mapping"), (True, "Images and text")):
        lines += [
            f"\n## {title}\n",
            "| type | class | " + " | ".join(CHECKS) + " |",
            "|---|---|" + "---|" * len(CHECKS),
        ]
        for r in built:
            if r["vision"] == vision:
                marks = " | ".join(
                    MARKS[r["checks"][name]["verdict"]] if name in r["checks"] else "" for name in CHECKS
                )
                lines.append(f"| {r['type']} | {r['class']} | {marks} |")
    for verdict, title in (("wrong", "Silently wrong"), ("fails", "Failures"), ("refused", "Refusals")):
        lines += [f"\n## {title}\n", *_grouped(built, verdict)]
    lines.append("\n## Not built\n")
    lines += [f"- {r['type']} ({r['class']}): {_cell(r['why'])}" for r in results if not r["built"]]
    return "\n".join(lines) + "\n"


def _grouped(results: list[dict[str, Any]], verdict: str) -> list[str]:
    """One line for each reason, with the types that it was given for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for r in results:
        for name, found in r["checks"].items():
            if found["verdict"] == verdict:
                reasons.setdefault((name, _cell(found["note"])), []).append(r["type"])
    return [f"- **{name}** ({', '.join(types)}): {note}" for (name, note), types in reasons.items()] or ["None."]


def _cell(text: str) -> str:
    text = re.sub(r"/\S*/tiny-\w+", "tiny", text)  # where the model lay that day
    return text.replace("|", "\\|").replace("<", "&lt;")
