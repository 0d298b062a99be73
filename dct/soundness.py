"""Whether a checkpoint is what its configuration says, before and after it is read: nothing random, nothing left out.

transformers fills what a checkpoint lacks with random numbers and ignores what it does not know; here both are refused.
Knows configurations, names and shapes; knows nothing of where files come from.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from dct import compat
from dct.errors import DctError
from dct.headers import Tensor

MOST_BLOCKS = 10_000
"""More blocks, or experts in one, than any model has; building them alone would take minutes."""

MOST = 10**8
"""Larger than any width, vocabulary or length in a configuration; such sizes overflow what torch can count."""

COUNTS = re.compile(r"layer|expert|block|depth|stack|loop|hidden_groups|recurrences")
SIZES = re.compile(r"(size|dim|width|capacity|interval|freq|step|period|id|ids|idx|index|window|length)s?$")
"""Which numbers of a configuration count modules, by their names, and which of those are sizes all the same."""

MASKS = ("inv_freq", "masked_bias", "position_ids")
"""Buffers that older versions wrote into their files, computed today."""


def check_config(config: Mapping[str, Any], where: str, tensors: int | None = None) -> None:
    """Refuses a configuration that names more than can be there, before anything is built after it.

    Args:
        config: as it stands in its file, with the configurations in it.
        where: the model, as it is named in messages.
        tensors: how many tensors the files hold, where that is known: each block has one at least.

    Raises:
        DctError: a number that is no size of any model.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            if key.endswith("config") and key != "quantization_config":
                check_config(value, where, tensors)
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        counts = bool(COUNTS.search(key)) and not SIZES.search(key)
        limit = MOST_BLOCKS if counts else MOST
        if counts and tensors is not None and key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
            limit = min(limit, max(tensors, 1))
        if value > limit and not _endless(key, value):
            held = f", and the files hold {tensors} tensors" if limit == tensors else ""
            raise DctError(f"cannot load the model in {where}: its config.json says {key} {value:,}{held}: correct it")


def _endless(key: str, value: int) -> bool:
    """Whether a number says "no limit" rather than a size: lengths of tokenizers and of contexts."""
    return ("length" in key or "position" in key or "window" in key or "id" in key.split("_")) and value < 2**63


def check_kind(config: PreTrainedConfig, where: str) -> None:
    """Refuses a configuration whose parts contradict each other.

    Raises:
        DctError: the class of model that it names is another type's; weights quantised in a way nobody knows.
    """
    wanted = compat.model_types(config)
    for name in getattr(config, "architectures", None) or ():
        kind = compat.type_of_class(name)
        if kind is not None and kind not in wanted and name not in compat.class_names(config):
            raise DctError(
                f"cannot load the model in {where}: its config.json says model_type {config.model_type} and "
                f"architectures {name}, which is of type {kind}: correct whichever is wrong"
            )
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    entry = quantization if isinstance(quantization, dict) else quantization.to_dict()
    method = entry.get("quant_method") or (
        "bitsandbytes" if entry.get("load_in_4bit") or entry.get("load_in_8bit") else ""
    )
    if not compat.knows_quantization(str(getattr(method, "value", method))):
        raise DctError(
            f"cannot load the model in {where}: its config.json says that the weights are quantised by {method!r}, "
            "which transformers does not know"
        )


def check_tensors(tensors: Mapping[str, Tensor], skeleton: PreTrainedModel, layers_path: str, where: str) -> list[str]:
    """Has transformers load the tensors without their numbers, and refuses what it would invent or leave out.

    Args:
        tensors: what the files hold.
        skeleton: the model, on torch's `meta` device.
        layers_path: dotted name of its block list.
        where: the model, as it is named in messages.

    Returns:
        Names of the tensors that no part of the model takes, such as those of a tower it does not have.

    Raises:
        DctError: something is missing, of other sizes, or belongs to blocks or modules that the model does not have.
    """
    names = [name for name, t in tensors.items() if _integers(t.dtype) and len(t.shape) > 1]
    wrong = sorted(set(names) & {name for name, p in skeleton.named_parameters() if p.is_floating_point()})
    if wrong:
        raise DctError(
            f"cannot load the model in {where}: {_some(wrong)} {_are(wrong)} stored as integers, and its config.json "
            "says nothing of quantised weights"
        )
    empty = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in tensors.items()}
    read: Any = type(skeleton).from_pretrained
    try:
        _, info = read(
            None,
            config=copy.deepcopy(skeleton.config),
            state_dict=empty,
            dtype=torch.float32,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise DctError(f"cannot load the model in {where}: its tensors do not fit its config.json: {error}") from error
    check_info(info, where, lambda name: True)
    return strangers(info["unexpected_keys"], tensors, skeleton, layers_path, where)


def check_info(info: Mapping[str, Any], where: str, needed: Callable[[str], bool]) -> None:
    """Refuses what transformers says it could not read (`output_loading_info`).

    Args:
        info: what it says.
        where: the model, as it is named in messages.
        needed: whether a tensor is asked for.

    Raises:
        DctError: tensors are missing or of other sizes.
    """
    other = sorted((name, tuple(there), tuple(asked)) for name, there, asked in info["mismatched_keys"])
    if other:
        name, there, asked = other[0]
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise DctError(
            f"cannot load the model in {where}: {name} is {_by(there)} in the files and {_by(asked)} by its config.json"
            f"{more}: one of them is another model's"
        )
    missing = sorted(filter(needed, info["missing_keys"]))
    if missing:
        raise DctError(
            f"cannot load the model in {where}: its files do not hold {_some(missing)}, and random numbers would stand "
            "there: bring the missing files, or correct its config.json"
        )
    if info["error_msgs"]:
        raise DctError(f"cannot load the model in {where}: {' '.join(str(info['error_msgs'][0]).split())}")


def strangers(
    unexpected: Iterable[str], tensors: Mapping[str, Tensor], skeleton: PreTrainedModel, layers_path: str, where: str
) -> list[str]:
    """Tensors that the model does not have; those that would have changed what it computes are refused.

    Raises:
        DctError: the files hold more blocks than the configuration names, or tensors of modules that take none.
    """
    known = set(skeleton.state_dict()) | {name for name, _ in skeleton.named_buffers()}
    modules = {name for name, _ in skeleton.named_modules()}
    depth = len(skeleton.get_submodule(layers_path))  # type: ignore[arg-type]
    spare = int(getattr(skeleton.config.get_text_config(), "num_nextn_predict_layers", 0) or 0)
    beyond, inside, outside = set(), [], []
    for name in sorted(set(unexpected) - known):
        if name.endswith(MASKS) or (name in tensors and tensors[name].dtype in (torch.bool, torch.uint8)):
            continue
        number = re.match(rf"{re.escape(layers_path)}\.(\d+)\.", name)
        if number and int(number[1]) >= depth:
            if int(number[1]) >= depth + spare:  # what predicts further tokens stands behind the last block
                beyond.add(int(number[1]))
        elif number or name.rpartition(".")[0] in modules - {""}:
            inside.append(name)
        else:
            outside.append(name)
    if beyond:
        raise DctError(
            f"cannot load the model in {where}: its files hold {max(beyond) + 1} blocks and its config.json names "
            f"{depth}: correct it"
        )
    if inside:
        raise DctError(
            f"cannot load the model in {where}: its files hold {_some(inside)}, which a {skeleton.config.model_type} "
            "model of its config.json does not have and would leave out: correct it"
        )
    return outside


def check_numbers(model: nn.Module, layers_path: str, where: str) -> list[str]:
    """Reads every weight in memory once.

    Returns:
        What the user should know: blocks that are all zero.

    Raises:
        DctError: a weight is not finite, or every matrix of the blocks is zero.
    """
    bad, zero, matrices = [], [], 0
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point() or parameter.element_size() < 2:
            continue
        total = parameter.detach().sum(dtype=torch.float32 if parameter.element_size() == 2 else None)
        if not bool(total.isfinite()) and not bool(parameter.detach().isfinite().all()):
            bad.append(name)
        elif parameter.ndim > 1 and name.startswith(f"{layers_path}."):
            matrices += 1
            if not bool(total) and not bool(parameter.detach().any()):
                zero.append(name)
    if bad:
        raise DctError(f'{where} has NaN or infinity in {_some(bad)}: bring its files again, or try `dtype="float32"`')
    if matrices and len(zero) == matrices:
        raise DctError(f"every weight of the blocks of {where} is zero: its files hold no trained model")
    return [f"all zero, as if never trained: {_some(zero)}"] if zero else []


def _integers(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool


def _some(names: list[str]) -> str:
    """The first three names and a count."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
