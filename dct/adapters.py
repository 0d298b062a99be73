"""Adapters (PEFT): what one was made for, and its change added to a model's weights.

Merging is peft's own. What it would leave at random numbers or leave out is refused here.
"""

import hashlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dct.errors import DctError
from dct.headers import tensors
from dct.quantised import quantised_parameters
from dct.sources import ADAPTER, base_of

SAFE, PICKLED = "adapter_model.safetensors", "adapter_model.bin"

TOKENIZER = "tokenizer_config.json"


def merge(model: PreTrainedModel, folder: Path, name: str) -> tuple[PreTrainedModel, str]:
    """Adds an adapter's change to the weights, in memory.

    Args:
        model: the model that it was made for, whole and in memory.
        folder: of the adapter.
        name: the model, as it is named in messages.

    Returns:
        The model, of its own class again, and what was merged, in a few words.

    Raises:
        DctError: peft is not installed; the adapter is of a kind that is no change of weights, does not fit the model,
            or holds other tensors than its configuration says; the model's weights are quantised.
    """
    if importlib.util.find_spec("peft") is None:
        raise DctError(f"merging the adapter {folder} takes peft: pip install 'deep-causal-transcoders[peft]'")
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    packed = quantised_parameters(model)
    if packed:
        first, why = next(iter(packed.items()))
        raise DctError(f"cannot merge an adapter into {name}: its weights are quantised ({first} is {why})")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        kind = str(getattr(config.peft_type, "value", config.peft_type))
    except Exception as error:
        raise DctError(f"cannot read the adapter in {folder}: {_line(error)}") from error
    if config.is_prompt_learning:
        raise DctError(
            f"{folder} is an adapter of kind {kind}, which adds to prompts and not to weights: not mergeable"
        )
    held = _held(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they would say is checked below
            adapted = PeftModel.from_pretrained(model, str(folder), config=config)
            wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    except Exception as error:
        raise DctError(_unfit(folder, name, error)) from error
    _complete(folder, name, held, wanted, set(adapted.state_dict()))
    if not hasattr(adapted, "merge_and_unload"):
        raise DctError(f"{folder} is an adapter of kind {kind}, which cannot be merged into weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:
        raise DctError(f"cannot merge the adapter {folder} ({kind}) into {name}: {_line(error)}") from error
    return merged, _words(kind, config, held)


def _held(folder: Path) -> set[str]:
    """Names of the tensors in an adapter's file."""
    for file in (SAFE, PICKLED):
        if (folder / file).is_file():
            return set(tensors(folder, file))
    raise DctError(f"cannot read the adapter in {folder}: it holds no {SAFE}")


def _complete(folder: Path, name: str, held: set[str], wanted: set[str], there: set[str]) -> None:
    """Refuses an adapter whose file and configuration name different tensors: peft would fill or drop them."""
    for names, what in ((wanted - held, "does not hold"), (held - wanted - there, "holds, and has no place for,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise DctError(
                f"the adapter {folder} does not fit {name}: its file {what} {min(names)}{more}; it was made for "
                f"{_base(folder)}"
            )


def _unfit(folder: Path, name: str, error: Exception) -> str:
    return f"the adapter {folder} does not fit {name} (it was made for {_base(folder)}): {_line(error)}"


def _base(folder: Path) -> str:
    try:
        return base_of(folder)
    except DctError:
        return "a model that it does not name"


def _line(error: Exception) -> str:
    """An error of another library in one line, without the lines of what it would have loaded."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def _words(kind: str, config: Any, held: set[str]) -> str:
    rank = f" of rank {config.r}" if getattr(config, "r", None) else ""
    extras = [
        word for word, used in (("DoRA", "use_dora"), ("rank-stabilised", "use_rslora")) if getattr(config, used, 0)
    ]
    how = f" ({', '.join(extras)})" if extras else ""
    return f"{kind}{rank}{how}, {len(held)} tensors"


def fingerprint(folder: Path) -> str:
    """Digest of an adapter's configuration and weights."""
    digest = hashlib.sha256()
    for name in (ADAPTER, SAFE, PICKLED):
        path = folder / name
        if path.is_file():
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def tokenizer_of(folder: Path) -> Path | None:
    """The folder again, where the adapter brings the tokenizer that it was trained with."""
    return folder if (folder / TOKENIZER).is_file() else None
