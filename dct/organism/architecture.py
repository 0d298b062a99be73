"""A model of any architecture of transformers, from what a recipe says of its sizes; no architecture is named here."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dct.errors import UsageError

LENGTH = 512
"""Tokens that an organism can read."""

NEW_TOKENS = 64
"""Tokens that it says, at most, where nothing else is asked for."""


def configuration(architecture: Mapping[str, Any], **tokens: int | None) -> PreTrainedConfig:
    """The configuration of a recipe's architecture.

    Args:
        tokens: what the tokenizer decides: the size of the vocabulary, and the ids of its control tokens.

    Raises:
        UsageError: transformers knows no such model, or the model no such size.
    """
    sizes = {name: value for name, value in architecture.items() if name != "model_type"}
    kind = architecture["model_type"]
    try:
        known = AutoConfig.for_model(kind)
        for name in sizes:
            if not hasattr(known, name):
                near = get_close_matches(name, known.to_dict(), n=3, cutoff=0.3) or ["hidden_size", "num_hidden_layers"]
                raise UsageError(
                    f"[architecture] {kind} has no {name!r}: did you mean {' or '.join(near)}?", argument="recipe"
                )
        config: PreTrainedConfig = AutoConfig.for_model(kind, max_position_embeddings=LENGTH, **{**sizes, **tokens})
    except UsageError:
        raise
    except Exception as error:  # configurations check their sizes in many ways
        unknown = f"transformers knows no model_type {kind!r}"
        raise _refusal(kind, error, "Unrecognized model", unknown) from error
    return config


def build(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A freshly initialised model, the same for the same seed.

    Raises:
        UsageError: no such model says one token after the other, or its sizes do not fit each other.
    """
    torch.manual_seed(seed)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # what does not fit shows where a layer is made
        kind = config.model_type
        other = f"{kind} is no causal language model"
        raise _refusal(kind, error, "Unrecognized configuration class", other) from error
    model.generation_config.max_new_tokens = NEW_TOKENS
    model.generation_config.do_sample = False
    return model


def _refusal(kind: str, error: Exception, sign: str, told: str) -> UsageError:
    """What transformers refuses, in one line: `told` where its words bear the sign, else that the sizes do not fit."""
    said = " ".join(str(error).split())
    if sign in said:
        return UsageError(f"[architecture] {told}: try llama, gpt_neox, qwen3 or gemma2", argument="recipe")
    why = f"its sizes do not fit: {said[:200]}" if said else type(error).__name__
    return UsageError(f"[architecture] {kind}: {why}", argument="recipe")
