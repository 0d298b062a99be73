"""Whether a parameter is a plain weight, or stands for one that is kept in fewer bits with tables beside it.

Told by kind and not by a list of libraries: what a parameter is made of, and what stands beside it in its module.
"""

import re

import torch
from torch import nn

TABLES = re.compile(r"scales?|scale_inv|absmax|q?zeros?|zero_points?|codebooks?|g_idx|SCB|quant_map")
"""Names of what turns stored numbers into weights, by themselves or behind the name of the weight."""

HOLDERS = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)
"""Modules whose weight is nothing but its weight, unless a subclass says otherwise."""


def quantised(parameter: torch.Tensor, module: nn.Module, config: object = None) -> str | None:
    """Why a parameter is no plain weight; None where it is one.

    A plain weight is floating, two bytes or more a number, an ordinary tensor, with no table beside it that it is
    multiplied with. What is not plain can be computed with, but an edit of its numbers does not do what it says.

    Args:
        parameter: a parameter or buffer of `module`.
        module: the module that holds it.
        config: the model's configuration, where one that says how all of it is quantised shall count.

    Returns:
        A few words, such as "float8_e4m3fn with weight_scale_inv beside it".
    """
    beside = tables(parameter, module)
    also = f" with {beside[0]} beside it" if beside else ""
    kind = type(parameter)
    if kind not in (torch.Tensor, nn.Parameter, nn.Buffer):
        return f"a {kind.__name__}{also}"
    if kind is nn.Parameter and type(parameter.data) is not torch.Tensor:
        return f"a {type(parameter.data).__name__}{also}"
    if not parameter.is_floating_point() or parameter.element_size() < 2:
        return f"{str(parameter.dtype).removeprefix('torch.')}{also}"
    if beside:
        return f"a {type(module).__name__}{also}"
    base = next((holder for holder in HOLDERS if isinstance(module, holder)), None)
    state = getattr(parameter, "quant_state", None) or getattr(module, "quant_state", None)
    if state is not None:
        return f"a {type(module).__name__} with a quant_state"
    if base is not None and getattr(config, "quantization_config", None) is not None and not _ordinary(module):
        return f"a {type(module).__name__} of a quantised model"
    return None


def tables(parameter: torch.Tensor, module: nn.Module) -> list[str]:
    """Names of the tensors in a module that the numbers of its matrix are multiplied with or looked up in.

    What a model scales its stream by (`embed_scale`, a router's `scale`) is none of these.
    """
    if parameter.ndim < 2:
        return []
    own = {**module._parameters, **module._buffers}
    [called] = [name for name, value in own.items() if value is parameter][:1] or [""]
    found = []
    for name, value in own.items():
        stem = name.removeprefix(f"{called}_").removeprefix("weight_")
        alone = stem == name and name == "scale" and not isinstance(module, HOLDERS)
        if value is not None and value is not parameter and TABLES.fullmatch(stem) and not alone:
            found.append(name)
    return found


def _ordinary(module: nn.Module) -> bool:
    """Whether a module's class comes from torch or is a plain layer of transformers."""
    return type(module).__module__.startswith("torch.nn.modules.") or type(module).__name__ == "Conv1D"


def quantised_parameters(model: nn.Module) -> dict[str, str]:
    """The parameters (and matrices kept as buffers) of a model that are no plain weights, with why."""
    config = getattr(model, "config", None)
    found = {}
    for prefix, module in model.named_modules():
        own = {**module._parameters, **{n: b for n, b in module._buffers.items() if _packed(b)}}
        for name, value in own.items():
            why = None if value is None else quantised(value, module, config)
            if why is not None:
                found[f"{prefix}.{name}" if prefix else name] = why
    return found


def _packed(buffer: torch.Tensor | None) -> bool:
    """Whether a buffer can be a matrix of packed numbers: GPTQ and AWQ keep their weights so."""
    return buffer is not None and buffer.ndim >= 2 and buffer.dtype in (torch.int32, torch.uint8, torch.int8)
