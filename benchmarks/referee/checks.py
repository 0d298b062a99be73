"""What `dct` says of a model against what the model does by itself: nine checks, each with a verdict.

A check is `ok`; `refused`, with the one line that `dct` gives as its reason; `fails`, by any other exception;
`wrong`, where numbers come out that are not the model's; or `none`, where there is nothing to check.
"""

import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dct
from referee.interventions import ablation, saved, steering
from referee.slices import blocks, differences, fits, gradients, parts, readouts, slices
from referee.subject import NothingToCheck, Subject, Wrong, line

CHECKS = {
    "blocks": "the block list is the model's own chain of blocks",
    "slice": "streams, steered and not, packed and one by one, are those of the model's own forward pass",
    "gradient": "gradients are those of the model's own forward pass, the same bits twice, and on two threads",
    "differences": "gradients, J v and second derivatives are finite differences in float64",
    "fit": "exponential and quadratic fits are finite and the same bits twice",
    "steering": "completions steered at all, prompt and generated tokens are those of the model without a cache",
    "ablation": "nothing along the directions is written, in blocks or between their parts; restored to the bit",
    "saved": "the edited model, saved and loaded by transformers, is the one in memory",
    "parts": "a slice of the model loaded in part is that of the whole",
    "readout": "logits and scores are the model's own",
}

STEPS: dict[str, Callable[[Subject], tuple[float, str]]] = {
    "blocks": blocks,
    "slice": slices,
    "gradient": gradients,
    "differences": differences,
    "fit": fits,
    "steering": steering,
    "ablation": ablation,
    "saved": saved,
    "parts": parts,
    "readout": readouts,
}


def verdict(step: Callable[[Subject], tuple[float, str]], s: Subject) -> dict[str, Any]:
    """What a check comes to: its verdict, the largest error, and a word about it."""
    try:
        if step is not blocks:
            s.own  # noqa: B018 (without a chain of blocks there is nothing to check)
        error, note = step(s)
        return {"verdict": "ok", "error": error, "note": note}
    except NothingToCheck as error:
        return {"verdict": "none", "note": str(error)}
    except Wrong as error:
        return {"verdict": "wrong", "note": str(error)}
    except dct.DctError as error:
        one = "\n" not in str(error)
        return {"verdict": "refused" if one else "fails", "note": str(error)}
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = "/".join(Path(frame.filename).parts[-2:])
        return {"verdict": "fails", "note": f"{line(error)} ({place}:{frame.lineno})"}


def examine(s: Subject, tell: Callable[[str, dict[str, Any]], None]) -> None:
    """Every check; `tell` hears of each as it is done."""
    try:
        for name, step in STEPS.items():
            found = verdict(step, s)
            tell(name, found)
    finally:
        if "folder" in vars(s):
            shutil.rmtree(s.folder, ignore_errors=True)
