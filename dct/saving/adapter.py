"""Edits as a PEFT adapter, W + B A. An ablation W - D'D W has B = -D' and A = D W, of as few rows as there are
directions; a rank-1 change W + b a' has B = b and A = a'.

Kept in float32, so that nothing of a small edit is rounded away, whatever type the model itself is loaded in.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dct.ablation import Edit
from dct.errors import DctError
from dct.model import LanguageModel
from dct.saving.layout import held, pieces, same_values, shapes_of
from dct.saving.origin import Origin
from dct.saving.rounding import Rounding
from dct.saving.weight_files import NAMES, WeightFile, Weights

CURE = 'save whole weights (`form="model"`), in float32 where nothing may be rounded away'


def write_adapter(
    lm: LanguageModel, origin: Origin, edits: dict[str, Edit], folder: Path, dtype: torch.dtype
) -> tuple[int, Rounding]:
    """Writes `adapter_config.json` and `adapter_model.safetensors` into an empty folder.

    Returns:
        How many matrices it changes, and what rounding its tensors leaves of the edit.

    Raises:
        DctError: an edit is none that a low-rank adapter can hold.
    """
    matrices = {name: edit for name, edit in edits.items() if name.endswith(".weight")}
    biases = {name: edit for name, edit in edits.items() if name.endswith(".bias")}
    modules = {name: _module(lm, name) for name in matrices}
    odd = [name for name in edits if name not in matrices and f"{name.removesuffix('.bias')}.weight" not in matrices]
    if odd or not matrices:
        what = f"{odd[0]} is no matrix of its own" if odd else "nothing was edited"
        raise DctError(f"an adapter cannot hold this edit ({what}): {CURE}")
    kinds = {isinstance(module, Conv1D) for module in modules.values()}
    if len(kinds) > 1:
        raise DctError(f"an adapter cannot hold edits of two kinds of matrices: {CURE}")
    rank = max(len(edit.span) for edit in matrices.values())
    tensors: dict[str, Tensor] = {}
    rounding = Rounding()
    for name, edit in matrices.items():
        W = _before(lm, origin, name, edit)
        axis = -1 if isinstance(modules[name], Conv1D) else -2
        into = W.movedim(axis, 0)  # (out, in)
        D = edit.span
        A, B = torch.zeros(rank, into.shape[1], dtype=dtype), torch.zeros(into.shape[0], rank, dtype=dtype)
        # W - D^T D W = W + B A, with A = D W and B = -D^T
        A[: len(D)], B[:, : len(D)] = (D @ into).to(dtype), (-D.T).to(dtype)
        there = into + B.double() @ A.double()
        rounding.add(into, into - D.T @ (D @ into), there, D, -2)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
        if biases:
            tensors[f"{module}.lora_B.bias"] = _bias(lm, origin, name, biases, len(B)).to(dtype)
    config = _config(lm, origin, [name.removesuffix(".weight") for name in matrices], rank)
    config |= {"fan_in_fan_out": kinds == {True}, "lora_bias": bool(biases)}
    _write(folder, tensors, config)
    return len(matrices), rounding


def write_changes(lm: LanguageModel, changes: dict[str, tuple[Tensor, Tensor]], folder: Path) -> None:
    """Writes an adapter of rank 1 in float32, with alpha = 1, so that W becomes W + b a'.

    Args:
        changes: a, (in,), and b, (out,), by the names of the modules.

    Raises:
        DctError: a module is no linear layer, or they are of two kinds.
    """
    kinds = {isinstance(_module(lm, f"{name}.weight"), Conv1D) for name in changes}
    if len(kinds) > 1:
        raise DctError("an adapter cannot hold changes of two kinds of matrices: fit a `band` of blocks of one kind")
    tensors = {}
    for name, (a, b) in changes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a[None].float().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b[:, None].float().contiguous()
    config = _config(lm, Origin.of(lm), list(changes), 1) | {"fan_in_fan_out": kinds == {True}, "lora_bias": False}
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, tensors, config)


def _write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    layout = {name: (NAMES[values.dtype], tuple(values.shape)) for name, values in tensors.items()}
    # Not by safetensors' own writer, whose files nobody but the user may read.
    weights = WeightFile.create(folder / "adapter_model.safetensors", layout, {"format": "pt"})
    for name, values in tensors.items():
        weights.write(name, values)
    Weights([weights]).flush()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _module(lm: LanguageModel, name: str) -> nn.Module:
    module = lm.model.get_submodule(name.removesuffix(".weight"))
    if not isinstance(module, nn.Linear | Conv1D):
        raise DctError(f"an adapter cannot hold the edit of {name}, which is no linear layer: {CURE}")
    return module


def _before(lm: LanguageModel, origin: Origin, name: str, edit: Edit) -> Tensor:
    """A parameter before its edit, in float64: the source's value where it lies there in the same layout."""
    own = edit.original.detach().cpu().double()
    if origin.weights is None:
        return own
    # In another layout or with other values (an adapter was merged) it is the model in memory that was edited.
    found = list(pieces(lm.model, shapes_of(origin.weights), {name: held(lm.model)[name]}))
    if len(found) == 1 and not isinstance(found[0], str) and found[0].values.shape == own.shape:
        stored = origin.weights.read(found[0].name)
        if same_values(edit.original, stored):
            return stored.double()
    return own


def _bias(lm: LanguageModel, origin: Origin, name: str, biases: dict[str, Edit], out: int) -> Tensor:
    """What a module's bias changes by: zero for one without, since an adapter has biases everywhere or nowhere."""
    bias = f"{name.removesuffix('.weight')}.bias"
    if bias not in biases:
        return torch.zeros(out, dtype=torch.float64)
    b, D = _before(lm, origin, bias, biases[bias]), biases[bias].span
    return -D.T @ (D @ b)


def _config(lm: LanguageModel, origin: Origin, modules: list[str], rank: int) -> dict[str, Any]:
    base = str(origin.folder.resolve()) if origin.folder is not None else lm.name
    if lm.checkpoint is not None and not Path(lm.checkpoint.where).expanduser().exists():
        base = lm.checkpoint.where  # the hub's name for it, not where its cache is
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "target_modules": modules,
    }
