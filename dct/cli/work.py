"""Steps that several commands take: loading a model or a run, choosing prompts."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dct.aliases import ALIASES, DEMO
from dct.cli.terminal import Terminal
from dct.errors import DctError
from dct.prompts import PromptSet, default_origin, fingerprint, read

if TYPE_CHECKING:
    from dct.factors import Factors
    from dct.model import LanguageModel
    from dct.runs import Run


def load_model(terminal: Terminal, name: str, memory: str | None = None, **options: Any) -> "LanguageModel":
    """Loads a model, with a spinner.

    Raises:
        UsageError: `memory` is no size.
        DctError: as in `dct.loading.load`.
    """
    from dct.memory import parse_bytes

    limit = parse_bytes(memory)
    if name != DEMO and not Path(name).is_dir():
        terminal.note(f"loading {name}")
    with terminal.busy(f"loading {name}"):
        from dct.loading import load

        lm = load(name, tell=terminal.warn, memory=limit, **options)
    held = f", layers {lm.resident.start} to {lm.resident.stop} loaded" if lm.resident is not None else ""
    terminal.note(
        f"{name}: {lm.model.config.model_type}, {lm.depth} blocks of width {lm.width}, "
        f"{str(lm.dtype).removeprefix('torch.')} on {lm.device}, "
        f"{'chat template' if lm.has_chat_template else 'plain text (no chat template)'}{held}"
    )
    return lm


def open_run(
    terminal: Terminal, where: Path | None, model: str | None, force: bool, **options: Any
) -> tuple["Run", "Factors", "LanguageModel"]:
    """A run, its factors and the model that they belong to.

    Raises:
        DctError: the factors were fitted on another model, and `force` is not set.
    """
    from dct.factors import Factors
    from dct.runs import find_run

    run = find_run(where)
    factors = Factors.load(run.factors)
    info = factors.info
    name = model or info.get("model") or DEMO
    terminal.note(
        f"{run.factors}: {len(factors)} {info.get('method', '')} factors of {info.get('model', 'an unnamed model')}, "
        f"layers {info.get('source', '?')} to {info.get('target', '?')}, scale {factors.scale:.4g}"
    )
    options = {"layers": info.get("layers") or "", **options}
    lm = load_model(terminal, str(name), **options)
    if factors.V.shape[1] != lm.width:
        raise DctError(f"these factors have width {factors.V.shape[1]} and {name} has {lm.width}: wrong model")
    if info.get("fingerprint") != lm.fingerprint and not force:
        raise DctError(
            f"these factors were fitted on other weights ({info.get('model')}, {info.get('fingerprint')}) than {name} "
            f"({lm.fingerprint}): pass the right --model, or --force to use them all the same"
        )
    return run, factors, lm


def fit_prompts(
    model: str, origin: str | None, column: str | None, literal: list[str] | None, n: int | None
) -> PromptSet:
    """The prompts of a fit: literal ones, or the first n of a set."""
    if literal:
        chosen = PromptSet(tuple(literal), origin="--prompt")
        return chosen if origin is None else PromptSet(chosen.texts + read(origin, column).first(n).texts, (), origin)
    return read(origin or default_origin(model, "harmful"), column).first(n)


def unseen_prompts(
    terminal: Terminal, info: dict[str, Any], origin: str | None, column: str | None, n: int
) -> PromptSet:
    """The first n prompts of a set that the fit did not see; the fit's own where there are no others."""
    fitted = tuple(info.get("prompts") or ())
    column = column if origin is not None else info.get("column")
    source = origin or info.get("prompts_origin")
    if source in (None, "--prompt"):
        pool = PromptSet(fitted) if fitted else read(default_origin(str(info.get("model")), "harmful"))
    elif origin is None and not _readable(str(source)):
        terminal.note(f"{source} is no longer there: using the prompts of the fit")
        pool = PromptSet(fitted, origin="fit")
    else:
        pool = read(str(source), column)
    unseen = pool.without(fitted).first(n)
    if len(unseen):
        return unseen
    terminal.note("no prompts beyond those of the fit: scoring on them (in-sample)")
    return pool.first(n)


def _readable(origin: str) -> bool:
    try:
        read(origin)
    except DctError as error:
        return "no prompt set" not in str(error)
    return True


def harmless_prompts(info: dict[str, Any], origin: str | None, n: int) -> PromptSet:
    """The first n prompts for measuring damage."""
    return read(origin or default_origin(str(info.get("model")), "harmless")).first(n)


def provenance(lm: "LanguageModel", prompts: PromptSet) -> dict[str, Any]:
    """What a factors file says about where it comes from, beside what the slice says of itself."""
    import torch
    import transformers

    from dct.version import __version__

    return {
        "model": _portable(lm.name),
        "blocks": lm.depth,
        "width": lm.width,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": str(lm.device),
        "prompts_hash": fingerprint(prompts.texts),
        "prompts_origin": _portable(prompts.origin),
        "versions": {
            "dct": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": ".".join(map(str, sys.version_info[:3])),
        },
    }


def _portable(name: str) -> str:
    """A local path made absolute, so that a run can be used from another working folder; anything else unchanged."""
    known = not name or name in ALIASES or name == DEMO
    return str(Path(name).resolve()) if not known and Path(name).exists() else name


def short_name(model: str) -> str:
    """A model's name as part of a folder's name."""
    stem = model.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in stem).strip(".-") or "model"
