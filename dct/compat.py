"""Every private, renamed or guessed name of torch, transformers and accelerate that this package leans on.

One place, so that a release that renames something breaks here, loudly: each name has a test (tests/test_compat.py)
that says what went, and where an assumption does not hold at run time a `CompatError` names it. Nothing here falls back
to another meaning. Knows nothing of the method.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch.utils import _pytree as pytree

from dct.errors import DctError

CACHES = ("cache", "past_key_values", "layer_past", "past_key_value", "cache_params", "state")
"""What transformers' models and blocks have called what they remember of tokens: `cache` from 5.24 on, the others
before, or still in some architectures."""


class CompatError(DctError):
    """Another library no longer has what this package relies on; the message names both."""


def _missing(library: str, name: str) -> CompatError:
    from importlib.metadata import version

    return CompatError(
        f"{library} {version(library)} has no {name}, which dct relies on: install a version that README lists, or a "
        "newer dct"
    )


# --- torch ------------------------------------------------------------------------------------------------------------


def differentiating_forward() -> bool:
    """Whether a forward-mode derivative is being taken (torch keeps its level for all threads together)."""
    try:
        return int(forward_ad._current_level) >= 0
    except AttributeError as error:
        raise _missing("torch", "autograd.forward_ad._current_level") from error


def transformed() -> bool:
    """Whether a torch.func transform is at work."""
    try:
        return torch._C._functorch.peek_interpreter_stack() is not None
    except AttributeError as error:
        raise _missing("torch", "_C._functorch.peek_interpreter_stack") from error


def multiplies_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware, as AMX or AVX-512 BF16 do; elsewhere it takes longer than
    float32. False where torch cannot tell."""
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, test, lambda: False)() for test in tests)


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """`function` of every leaf of nested containers, those that transformers registers included."""
    return pytree.tree_map(function, tree)


def tree_flatten(tree: Any) -> tuple[list[Any], Any]:
    """The leaves of nested containers, and what puts them together again."""
    return pytree.tree_flatten(tree)


def tree_unflatten(leaves: list[Any], spec: Any) -> Any:
    """Nested containers from what `tree_flatten` gave."""
    return pytree.tree_unflatten(leaves, spec)


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor has been written into; the same twice for a tensor that nobody wrote into in between."""
    if tensor.is_inference():  # such tensors keep no count
        return 0
    try:
        return int(tensor._version)
    except AttributeError as error:
        raise _missing("torch", "Tensor._version") from error


# --- accelerate -------------------------------------------------------------------------------------------------------


def moved_by_accelerate(model: nn.Module) -> bool:
    """Whether accelerate brings weights into memory, or moves what passes between blocks, while the model runs."""
    return hasattr(model, "_hf_hook")


def execution_device(model: nn.Module) -> Any:
    """Where accelerate runs a model whose weights may wait elsewhere; None where it has no hand in it."""
    return getattr(getattr(model, "_hf_hook", None), "execution_device", None)


def clear_device_cache() -> None:
    """Gives the blocks that torch holds in reserve back to the device, whichever kind of device this machine has."""
    try:
        from accelerate.utils import memory  # type: ignore[import-untyped]  # where 1.0 has it too

        clear = memory.clear_device_cache
    except (ImportError, AttributeError) as error:
        raise _missing("accelerate", "utils.memory.clear_device_cache") from error
    clear()


# --- transformers -----------------------------------------------------------------------------------------------------


def caches_of(arguments: dict[str, Any]) -> list[str]:
    """Which arguments of a model's or block's call are its key-value cache, by their names."""
    return [name for name in CACHES if name in arguments]


def tokens_in(cache: Any) -> int | None:
    """How many tokens a cache says that it holds; None where it keeps no count (a recurrent state)."""
    count = getattr(cache, "get_seq_length", None)
    if count is None:
        return None
    try:
        return int(count())
    except (ValueError, TypeError, IndexError, KeyError, AttributeError):  # without attention, some have no answer
        return None


def cache_argument() -> str:
    """What transformers' `generate` calls the cache that it is to go on from, and gives back in its results."""
    fields = getattr(importlib.import_module("transformers.generation"), "GenerateDecoderOnlyOutput", None)
    if fields is None:
        raise _missing("transformers", "generation.GenerateDecoderOnlyOutput")
    return next(name for name in CACHES if name in fields.__dataclass_fields__)


def kept(out: Any) -> tuple[str, Any]:
    """What a model's run has kept of its tokens, and what the next run calls it.

    Raises:
        CompatError: it has kept nothing.
    """
    for name in CACHES:
        if getattr(out, name, None) is not None:
            return name, getattr(out, name)
    raise _missing("transformers", "cache in a model's output")


def cache_of(out: Any) -> Any:
    """The cache that `generate` gives back."""
    return getattr(out, cache_argument())


def is_transposed(module: nn.Module) -> bool:
    """Whether a module keeps its matrices as (in, out): GPT-2's kind of linear layer, and some fused experts."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D) or bool(getattr(module, "is_transposed", False))


def commit_of(model: Any) -> str | None:
    """The hub's commit that a model's configuration was read from, where it was."""
    return getattr(model.config, "_commit_hash", None)


def needs_no_first_values(module: nn.Module) -> None:
    """Keeps transformers from initialising what a module does not have."""
    module._is_hf_initialized = True  # type: ignore[assignment]


def tied_weights(model: nn.Module) -> dict[str, str]:
    """Parameters that are another's: name -> name of the one that is read."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


@contextmanager
def plain_experts(model: Any) -> Iterator[None]:
    """Experts of a mixture one after the other, in products that have every derivative, while the context lasts.

    transformers chooses among several implementations, which the configuration of the text part names; it is put back.
    """
    config = model.config.get_text_config()
    chosen = getattr(config, "_experts_implementation", None)
    if not isinstance(chosen, str) or chosen == "eager":
        yield
        return
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = chosen


def disk_tensors(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Some of a model's tensors as transformers writes them: its own names, fusing and renaming taken back.

    transformers has it as a step of `save_pretrained` alone, which takes whole models.
    """
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError as error:
        raise _missing("transformers", "core_model_loading.revert_weight_conversion") from error
    return dict(revert_weight_conversion(model, dict(tensors)))


def hooks_of(package: str, model: nn.Module) -> list[str]:
    """Names of the modules whose run a hook of `package` changes."""
    return [
        name
        for name, module in model.named_modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if str(getattr(hook, "__module__", "")).partition(".")[0] == package
    ]


def auto_classes(config: Any) -> list[Any]:
    """transformers' automatic classes that build a model from a configuration, the most complete first.

    Where a configuration describes text and other inputs, that is the model with all of its towers, unless the
    configuration itself names (`architectures`) the text model alone.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    causal = _class_name(AutoModelForCausalLM, config)
    named = getattr(config, "architectures", None) or ()
    if config.get_text_config() is config:
        return [AutoModelForCausalLM]
    several: list[Any] = [a for a in (AutoModelForImageTextToText, AutoModelForMultimodalLM) if _class_name(a, config)]
    several = several[:1]
    whole = _class_name(several[0], config) if several else None
    if causal is None or causal == whole:
        return several or [AutoModelForCausalLM]
    return [AutoModelForCausalLM] if causal in named else [*several, AutoModelForCausalLM]


def _class_name(auto: Any, config: Any) -> str | None:
    """The class that an automatic class would build from a configuration, where it knows one."""
    try:
        mapping = auto._model_mapping
    except AttributeError as error:
        raise _missing("transformers", f"{auto.__name__}._model_mapping") from error
    if type(config) not in mapping:
        return None
    found = mapping[type(config)]
    return str((found[0] if isinstance(found, tuple) else found).__name__)


def class_names(config: Any) -> set[str]:
    """The classes that transformers builds from a configuration; some types use another type's class."""
    return {name for auto in auto_classes(config) if (name := _class_name(auto, config)) is not None}


def known_to_transformers(config: Any) -> bool:
    """Whether some automatic class builds a language model from a configuration."""
    return bool(class_names(config))


def model_types(config: Any) -> set[str]:
    """The type of a configuration and of those inside it."""
    inner = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return {str(c.model_type) for c in [config, *inner] if getattr(c, "model_type", None)}


def type_of_class(name: str) -> str | None:
    """The `model_type` that a model class of transformers has in its configuration; None for other classes."""
    import transformers

    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    return getattr(getattr(kind, "config_class", None), "model_type", None)


def knows_quantization(method: str) -> bool:
    """Whether transformers can load weights that were quantised so."""
    try:
        from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN
    except ImportError as error:
        raise _missing("transformers", "quantizers.auto.AUTO_QUANTIZATION_CONFIG_MAPPING") from error
    return method in KNOWN or f"{method}_4bit" in KNOWN


def text_tower(model: Any) -> nn.Module:
    """The decoder of the text, in a model that may have other towers."""
    try:
        found = model.get_decoder()
    except AttributeError as error:
        raise _missing("transformers", "PreTrainedModel.get_decoder") from error
    return found if isinstance(found, nn.Module) else model


def unpacked() -> dict[str, Any]:
    """Options of `from_pretrained` that have a GGUF file unpacked into plain weights; versions without the choice
    always do.
    """
    import transformers

    kind = getattr(transformers, "GgufConfig", None)
    if kind is None:
        from transformers.utils import quantization_config

        kind = getattr(quantization_config, "GgufConfig", None)
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}


def forget_quantization(model: Any) -> None:
    """Takes away what a model that was unpacked still says of packed weights, so that it can be saved."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if hasattr(model, "hf_quantizer"):
        model.hf_quantizer = None


@contextmanager
def silent_unpacking() -> Iterator[None]:
    """Without the bar that transformers shows for a GGUF file's tensors whatever it has been told of bars."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = getattr(reader, "tqdm", None)
    if bar is None:  # nothing to silence
        yield
        return
    reader.tqdm = lambda iterable, *args, **kwargs: iterable
    try:
        yield
    finally:
        reader.tqdm = bar


@contextmanager
def gguf_read_once() -> Iterator[None]:
    """A GGUF file's header parsed once while the context lasts: transformers parses it for the configuration, the
    tokenizer and the weights, and looks its names up again for every module, which takes most of the time.
    """
    import gguf

    plain = {name: getattr(gguf, name, None) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in plain.items():
        if function is not None:  # names that went are read as often as before
            setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in plain.items():
            if function is not None:
                setattr(gguf, name, function)
