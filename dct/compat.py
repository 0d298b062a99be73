"""Every private, renamed or guessed name of torch, transformers and accelerate that this package leans on.

One place, so that a release that renames something breaks here, loudly: each name has a test (tests/test_compat.py)
that says what went, and where an assumption does not hold at run time a `CompatError` names it. Nothing here falls back
to another meaning. Knows nothing of the method.
"""

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


def multiplies_bfloat16_in_tiles() -> bool:
    """Whether the CPU has AMX tiles and torch uses them; False where torch cannot tell."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


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

    transformers chooses among several implementations; only models with experts have a choice to make, and only it is
    put back.
    """
    chosen = getattr(model.config, "_experts_implementation", None)
    choose = isinstance(chosen, str) and chosen != "eager" and model._can_set_experts_implementation()
    if not choose:
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(chosen)


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
