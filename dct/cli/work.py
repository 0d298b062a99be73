"""Steps that several commands take: loading a model or a run, choosing prompts."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dct.aliases import ALIASES, DEMO
from dct.cli.terminal import Terminal
from dct.errors import DctError
from dct.prompts import PromptSet, fingerprint
from dct.settings import LayerSettings, PromptSettings, RunModelSettings

if TYPE_CHECKING:
    from dct.factors import Factors
    from dct.model import LanguageModel
    from dct.runs import Run


RUN_HELP = "Run folder or factors file; left out, the newest under runs/."


def load_model(
    terminal: Terminal,
    name: str,
    memory: str | None = None,
    reply_prefix: str | None = None,
    escape_control: bool | None = None,
    **options: Any,
) -> "LanguageModel":
    """Loads a model, with a spinner; what there is to know of how it
    reads prompts is noted when they are read.

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
    lm.reply_prefix, lm.escape_control, lm.tell = reply_prefix, bool(escape_control), terminal.note
    held = f", layers {lm.resident.start} to {lm.resident.stop} loaded" if lm.resident is not None else ""
    terminal.note(
        f"{name}: {lm.model.config.model_type}{_unusual(lm)}, {lm.depth} blocks of width {lm.width}, "
        f"{str(lm.dtype).removeprefix('torch.')} on {lm.device}, "
        f"{'chat template' if lm.has_chat_template else 'plain text (no chat template)'}{held}"
    )
    return lm


def _unusual(lm: "LanguageModel") -> str:
    """What a model comes from and brings, where that is not a folder of plain weights that reads text."""
    checkpoint = lm.checkpoint
    if checkpoint is None:
        return ""
    words = []
    if checkpoint.header is not None:
        words.append(f"unpacked from GGUF ({checkpoint.header.quantization})")
    if checkpoint.quantised:
        words.append("quantised weights: they can be steered, not edited")
    if lm.adapter is not None:
        words.append("adapter merged")
    if not checkpoint.text_alone:
        words.append("text of a model with other towers")
    return f" ({', '.join(words)})" if words else ""


def between(model: str, layers: LayerSettings) -> Callable[[int], tuple[int, int]]:
    """Source and target of a model as a function of its depth, which a model says when it is loaded."""

    def chosen(depth: int) -> tuple[int, int]:
        from dct.model import choose_layers

        return choose_layers(depth, model, layers.source, layers.target)

    return chosen


def open_run(
    terminal: Terminal,
    where: Path | None,
    model: RunModelSettings | None = None,
    reading: PromptSettings | None = None,
    force: bool = False,
) -> tuple["Run", "Factors", "LanguageModel"]:
    """A run, its factors and the model that they belong to.

    Raises:
        DctError: the factors were fitted on another model, and `force` is not set.
    """
    from dct.factors import Factors
    from dct.runs import find_run

    model, reading = model or RunModelSettings(), reading or PromptSettings()
    run = find_run(where)
    factors = Factors.load(run.factors)
    info = factors.info
    name = model.model or info.get("model") or DEMO
    terminal.note(
        f"{run.factors}: {len(factors)} {info.get('method', '')} factors of {info.get('model', 'an unnamed model')}, "
        f"layers {info.get('source', '?')} to {info.get('target', '?')}, scale {factors.scale:.4g}"
    )
    if factors.unprotected:
        terminal.warn(f"{run.factors} is of format version 1: nothing protects its numbers; a new fit writes version 2")
    lm = load_model(terminal, str(name), **_as_fitted(info, model, reading))
    keep_prompts(lm, info)
    from dct.perturbation import RankOne, recorded

    kind = recorded(info, factors.V.shape[1])
    width = kind.width if isinstance(kind, RankOne) else factors.V.shape[1]
    if width != lm.width:
        raise DctError(f"these factors have width {width} and {name} has {lm.width}: wrong model")
    if info.get("fingerprint") != lm.fingerprint and not force:
        raise DctError(
            f"these factors were fitted on other weights ({info.get('model')}, {info.get('fingerprint')}) than {name} "
            f"({lm.fingerprint}): pass the right `model`, or `force` to use them all the same"
        )
    return run, factors, lm


def _as_fitted(info: dict[str, Any], model: RunModelSettings, reading: PromptSettings) -> dict[str, Any]:
    """How a run's model is loaded and reads prompts: as the fit did, unless told otherwise."""
    loading = info.get("loading")
    adapter = model.adapter
    if adapter is None and model.model is None and isinstance(loading, dict):
        adapter = loading.get("adapter")
    read = {"reply_prefix": reading.reply_prefix, "escape_control": reading.escape_control}
    return {
        "layers": info.get("layers") or "",
        "adapter": adapter,
        "dtype": model.dtype,
        "device": model.device,
        "memory": model.memory,
        "trust_remote_code": model.trust_remote_code,
        **{how: info.get(how) if value is None else value for how, value in read.items()},
    }


def keep_prompts(lm: "LanguageModel", info: dict[str, Any]) -> None:
    """Lets the prompts of a fit be the tokens that they were when it was made: a chat template may have put the date
    into them.

    Raises:
        DctError: the tokens are not those of the run's prompts, or not of this model.
    """
    prompts, rows = info.get("prompts") or [], info.get("ids")
    if rows is None:  # a run of an earlier version
        return
    words = lm.vocabulary
    if not isinstance(rows, list) or len(rows) != len(prompts) or not all(_tokens(row, words) for row in rows):
        raise DctError("the run's `ids` are not the tokens of its prompts: the file is damaged, fit again")
    if lm.reply_prefix == info.get("reply_prefix") and lm.escape_control == bool(info.get("escape_control")):
        lm.keep(prompts, rows, info.get("system"))


def _tokens(row: Any, words: int) -> bool:
    return isinstance(row, list) and bool(row) and all(type(k) is int and 0 <= k < words for k in row)


def provenance(lm: "LanguageModel", prompts: PromptSet) -> dict[str, Any]:
    """What a factors file says about where it comes from, beside what the slice says of itself."""
    import torch
    import transformers

    from dct.version import __version__

    return {
        "model": portable(lm.name),
        "blocks": lm.depth,
        "width": lm.width,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": str(lm.device),
        "reply_prefix": lm.reply_prefix,
        "escape_control": lm.escape_control,
        "prompts_hash": fingerprint(prompts.texts),
        "prompts_origin": portable(prompts.origin),
        "versions": {
            "dct": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": ".".join(map(str, sys.version_info[:3])),
        },
    }


def portable(name: str) -> str:
    """A local path made absolute, so that a run can be used from another working folder; anything else unchanged."""
    known = not name or name in ALIASES or name == DEMO
    return str(Path(name).resolve()) if not known and Path(name).exists() else name


def short_name(model: str) -> str:
    """A model's name as part of a folder's name."""
    stem = model.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in stem).strip(".-") or "model"
