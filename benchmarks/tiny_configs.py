"""A tiny random model of any architecture of transformers, with every kind of layer that the architecture has.

The configuration's own class says what it takes; what a name stands for (a width, a count of heads, a window, a rank)
is read from the name, and what names do not tell is in `SPECIAL`.
"""

import dataclasses
import inspect
import re
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

WIDTH, DEPTH, VOCABULARY = 32, 5, 300

WINDOW = 6
"""Of sliding and chunked attention: shorter than the prompts."""

RULES: list[tuple[str, Any]] = [
    (r"vocab_size(_per_layer_input)?", VOCABULARY),
    (r"hidden_size|d_model|n_embd|dim_model|embedding_size|model_dim|embed_dim|hidden_dim", WIDTH),
    (r"num_hidden_layers|n_layers?|num_layers|decoder_layers|num_blocks|depth|num_decoder_layers", DEPTH),
    (r"encoder_layers|num_encoder_layers|num_mtp_layers|num_nextn_predict_layers", 1),
    (r"(num_attention_heads|n_heads?|num_heads|(de|en)coder_attention_heads|attention_heads)", 4),
    (r"num_key_value_heads|num_kv_heads|swa_num_key_value_heads|n_kv_heads?", 2),
    (r"swa_num_attention_heads|num_attention_heads_per_partition", 4),
    (r"(global_|swa_|attention_)?(head_dim|v_head_dim|swa_v_head_dim)|kv_channels|d_kv|dim_head", 8),
    (r"(intermediate_size|ffn_dim|n_inner|(de|en)coder_ffn_dim|dff|d_ff|dim_ff|ffn_hidden_size|intermediate_size_mlp)", 48),
    (r"(dense|prefix_dense|mlp)_intermediate_size|intermediate_dim|lru_width", 48),
    (r"(moe|expert|shared_expert|moe_shared_expert|shared_experts)_(intermediate|ffn_hidden)_size", 24),
    (r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts)", 4),
    (r"(num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|top_k_experts)", 2),
    (r"n_group|num_expert_group|n_groups|num_expert_groups", 2),
    (r"topk_group|n_shared_experts|num_shared_experts|moe_num_shared_experts|first_k_dense_replace|num_dense_layers", 1),
    (r"kv_lora_rank|q_lora_rank|o_lora_rank", 16),
    (r"qk_nope_head_dim|qk_head_dim", 8),
    (r"qk_rope_head_dim", 4),
    (r"sliding_window(_size)?|attention_chunk_size|attention_window_size|window_size|local_attention_window_len", WINDOW),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|model_max_length", 256),
    (r"index_topk|indexer_topk", 4),
    (r"index_n_heads|indexer_n_heads", 2),
    (r"index_head_dim|indexer_head_dim", 8),
    (r"mamba_d_state|state_size|ssm_state_size|mamba_state_dim", 8),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 8),
    (r"mamba_n_groups|mamba_ngroups", 2),
    (r"(mamba_)?chunk_size|mamba_chunk_size", 4),
    (r"mamba_dt_rank|time_step_rank|adapter_rank|laurel_rank|gated_norm_rank|loop_gate_rank|mamba_d_rank", 4),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"linear_(key|value)_head_dim", 8),
    (r"hidden_size_per_layer_input", 8),
    (r"residual_multiplier", 0.22),
    (r"attention_multiplier", 0.3),
    (r"embedding_multiplier", 3.0),
    (r"logits_scaling", 2.0),
    (r"(attention|mlp)_bias|use_bias|use_qkv_bias", True),
    (r"forced_[a-z]+_token_id|decoder_start_token_id|suppress_tokens|begin_suppress_tokens", None),
    (r".*(dropout|drop|layerdrop|dropout_rate|pdrop|dropout_prob|jitter_noise|jitter_eps)", 0.0),
    (r"pad_token_id", 0),
    (r"bos_token_id", 1),
    (r"eos_token_id", 2),
    (r"sep_token_id", 2),
]

VISION = [
    (r"image_size|img_size|max_image_size", 32),
    (r"patch_size", 8),
    (r"num_hidden_layers|depth|num_layers|n_layers|layers", 2),
    (r"out_hidden_size|output_dim|projection_dim|text_hidden_size", WIDTH),
    (r"num_position_embeddings|num_image_tokens", 16),
    *RULES,
]
"""Towers for images and sounds have to be there; they are not run."""

SPECIAL: dict[str, dict[str, Any]] = {}
"""What the names do not tell, by model type."""


def fields(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """What a configuration class takes, with its defaults."""
    if dataclasses.is_dataclass(kind):
        return {f.name: f.default for f in dataclasses.fields(kind) if f.init}
    own = inspect.signature(kind.__init__).parameters.values()
    return {p.name: p.default for p in own if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"}


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a tiny model of this type."""
    return _tiny(CONFIG_MAPPING[model_type], RULES, changes)


def _tiny(kind: type[PreTrainedConfig], rules: list[tuple[str, Any]], changes: dict[str, Any]) -> PreTrainedConfig:
    taken: dict[str, Any] = {}
    try:
        default = kind()
    except Exception:  # some have no default that their own checks let through
        default = None
    parts = dict(getattr(kind, "sub_configs", None) or {})
    markers = iter(range(VOCABULARY - 1, 200, -1))
    for name, value in fields(kind).items():
        if name in parts:
            continue
        rule = next((v for pattern, v in rules if re.fullmatch(pattern, name)), inspect.Parameter.empty)
        if rule is not inspect.Parameter.empty:
            taken[name] = rule
        elif re.search(r"token_(id|index)$|^bo[a-z]_token|^eo[a-z]_token", name) and isinstance(value, int):
            taken[name] = next(markers)
        elif name.endswith("_multiplier") and value == 1.0:
            taken[name] = 0.7
    kinds = [k for k in dict.fromkeys(getattr(default, "layer_types", None) or []) if k]
    if "layer_types" in fields(kind) and kinds:
        depth = taken.get("num_hidden_layers", DEPTH)
        taken["layer_types"] = [kinds[k % len(kinds)] for k in range(depth)]
    special = SPECIAL.get(kind.model_type, {}) | changes
    for name, part in parts.items():
        given = getattr(default, name, None)
        own = special.pop(name, {})
        if not isinstance(own, dict):
            taken[name] = own
            continue
        if given is None and not own:
            continue
        sort = type(given) if given is not None else part
        inner = RULES if "text" in name or "decoder" in name or "llm" in name or "language" in name else VISION
        taken[name] = _tiny(sort, inner, own)
    taken |= special
    return kind(**{k: v for k, v in taken.items() if v is not inspect.Parameter.empty})


def fill(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights under which every part does something: norm gains and biases are not left at one and zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=draw)
            if parameter.ndim > 1:
                parameter.copy_(0.6 / parameter.shape[-1] ** 0.5 * drawn)
            else:
                parameter.add_(0.2 * drawn)
    return model.eval()


def tiny_tokenizer() -> Any:
    """Byte-level, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<user>", "<assistant>", "<system>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator(["Tell me how to bake bread. Sure, mix flour and water. Sorry, I can not help."] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )
    wrapped.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return wrapped
