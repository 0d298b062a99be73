"""A tiny random model of any architecture of transformers, with every kind of layer that the architecture has.

The configuration's own class says what it takes; what a name stands for (a width, a count of heads, a window, a rank)
is read from the name, and what names do not tell is in `SPECIAL`.
"""

import dataclasses
import inspect
import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

WIDTH, DEPTH, VOCABULARY = 32, 5, 300

WINDOW = 6
"""Of sliding and chunked attention: shorter than the prompts."""

RULES: list[tuple[str, Any]] = [
    (r"vocab_size(_per_layer_input)?", VOCABULARY),
    (
        r"hidden_size|d_model|n_embd|dim_model|embedding_size|model_dim|emb_dim|embed_dim|hidden_dim|hidden_size_global",
        WIDTH,
    ),
    (r"num_hidden_layers|n_layers?|num_layers|decoder_layers|num_blocks|depth|num_decoder_layers", DEPTH),
    (r"encoder_layers|num_encoder_layers", DEPTH),
    (r"num_mtp_layers|num_nextn_predict_layers", 1),
    (r"is_decoder", True),
    (r"(num_attention_heads|n_heads?|num_heads|(de|en)coder_attention_heads|attention_heads)", 4),
    (r"num_key_value_heads|num_kv_heads|swa_num_key_value_heads|n_kv_heads?", 2),
    (r"swa_num_attention_heads|num_attention_heads_per_partition", 4),
    (r"(global_|swa_|attention_)?(head_dim|v_head_dim|swa_v_head_dim)|kv_channels|d_kv|dim_head", 8),
    (
        r"(intermediate_size|ffn_dim|n_inner|(de|en)coder_ffn_dim|dff|d_ff|dim_ff|ffn_hidden_size|intermediate_size_mlp)",
        48,
    ),
    (r"(dense|prefix_dense|mlp)_intermediate_size|intermediate_dim|lru_width", 48),
    (r"(moe|expert|shared_expert|moe_shared_expert|shared_experts)_(intermediate|ffn_hidden)_size", 24),
    (r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts)", 4),
    (r"(num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|top_k_experts)", 2),
    (r"n_group|num_expert_group|n_groups|num_expert_groups", 2),
    (
        r"topk_group|n_shared_experts|num_shared_experts|moe_num_shared_experts|first_k_dense_replace|num_dense_layers",
        1,
    ),
    (r"(swa_)?(kv_lora_rank|q_lora_rank|o_lora_rank)", 16),
    (r"(swa_)?qk_nope_head_dim", 8),
    (r"(swa_)?qk_rope_head_dim", 4),
    (
        r"sliding_window(_size)?|attention_chunk_size|attention_window_size|window_size|local_attention_window_len",
        WINDOW,
    ),
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
    (r"forced_[a-z]+_token_id|suppress_tokens|begin_suppress_tokens", None),
    (r".*(dropout|drop|layerdrop|dropout_rate|pdrop|dropout_prob|jitter_noise|jitter_eps)", 0.0),
    (r"encoder_hash_byte_group_vocab", VOCABULARY),
    (r"(projector|adapter|merger|projection|alignment)_(hidden|intermediate)_(size|dim)|d_rel", WIDTH),
    (r"base_channels|downsample_hidden_size|output_channels", WIDTH),
    (r"pad_token_id", 0),
    (r"bos_token_id|decoder_start_token_id", 1),
    (r"eos_token_id", 2),
    (r"sep_token_id", 2),
]

VISION = [
    (r"image_size|img_size|max_image_size", 32),
    (r"patch_size", 8),
    (r"num_hidden_layers|depth|num_layers|n_layers|layers|num_blocks|encoder_layers", 2),
    (r"out_hidden_size|output_dim|projection_dim|text_hidden_size", WIDTH),
    (r"num_position_embeddings|num_image_tokens", 16),
    *RULES,
]
"""Towers for images and sounds have to be there; they are not run."""


def _in_turn(*kinds: str, depth: int = DEPTH) -> list[str]:
    return [kinds[k % len(kinds)] for k in range(depth)]


_LATENT = {"num_key_value_heads": 4}
"""Keys and values from a latent vector have as many heads as queries."""

_SLIDING = {"layer_types": _in_turn("sliding_attention", "full_attention"), "use_sliding_window": True}
_LINEAR = {"layer_types": _in_turn("linear_attention", "full_attention")}
_ATTENTION_LAST = {
    "layer_types": [*_in_turn("sliding_attention", "full_attention", depth=DEPTH), "full_attention"][-DEPTH:]
}
_SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_GLM_SECTIONS = {"rope_parameters": {**_SECTIONS["rope_parameters"], "partial_rotary_factor": 1.0}}
_SHARED = {
    "num_hidden_layers": 6,
    "layer_types": _in_turn("sliding_attention", "full_attention", depth=6),
    "num_kv_shared_layers": 2,
    "global_head_dim": 8,
}

SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT | {"index_topk": 4},
    "bailing_hybrid": _LATENT | {"head_dim": 8} | _LINEAR,
    "bamba": {"attn_layer_indices": [1, 3], "layer_types": inspect.Parameter.empty},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": _in_turn("sliding_attention", "full_attention"),
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "dots1": _SLIDING,
    "dots3_note_text": _LATENT
    | {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16}
    | {"swa_head_dim": 12, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8, "shared_experts_intermediate_size": 24},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mlp_multipliers": [0.7, 0.6],
        "ssm_multipliers": [0.7, 0.8, 0.9, 1.1, 1.2],
    },
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "layer_types": _in_turn("sliding_attention", "full_attention", depth=6),
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
    },
    "gemma4_text": _SHARED,
    "gemma4_unified_text": {k: v for k, v in _SHARED.items() if k != "num_kv_shared_layers"},
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT | {"indexer_types": ["full", "full", "shared", "shared", "full"]},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": _LINEAR,
    "hy_v4": _LATENT,
    "jamba": {"num_hidden_layers": 6},
    "kimi_linear": _LATENT | {"linear_head_dim": 8, "linear_num_heads": 4},
    "laguna": _SLIDING,
    "lfm2": {"layer_types": _in_turn("conv", "full_attention")},
    "lfm2_moe": {"layer_types": _in_turn("conv", "full_attention")},
    "longcat_flash": {"head_dim": 4, "num_layers": 4, "num_key_value_heads": 4},
    "mamba2": {"num_heads": 8},
    "mellum": _SLIDING,
    "minicpm3": _LATENT,
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "qwen2": _SLIDING,
    "qwen2_moe": _SLIDING,
    "qwen3": _SLIDING,
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [16, 16],
        "attn_layers": _in_turn("local", "lsh"),
        "num_hidden_layers": DEPTH,
        "attention_head_size": 8,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "hash_seed": 0,
    },
    "roc_bert": {"pronunciation_vocab_size": 30, "shape_vocab_size": 30},
    "sarvam_mla": _LATENT,
    "smollm3": _SLIDING,
    "xlm": {"n_words": VOCABULARY},
    "xmod": {"default_language": "en_XX"},
    "youtu": _LATENT,
    "zamba": {
        "layers_block_type": _in_turn("linear_attention", "linear_attention", "hybrid", depth=6),
        "num_hidden_layers": 6,
    },
    "zamba2": {"layers_block_type": _in_turn("linear_attention", "hybrid"), "num_attention_heads": 4},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "inkling2_loop_text": {"unpadded_vocab_size": VOCABULARY},
    "inkling2_text": {"unpadded_vocab_size": VOCABULARY},
    "mistral4": _LATENT,
    "kimi_k25": {"text_config": _LATENT},
    "glm46v_text": _GLM_SECTIONS,
    "glm4v_text": _GLM_SECTIONS,
    "glm4v_moe_text": _GLM_SECTIONS,
    "glm_ocr_text": _GLM_SECTIONS,
    "paddleocr_vl_text": _SECTIONS,
    "qwen2_5_omni_text": _SECTIONS,
    "qwen2_5_vl_text": _SECTIONS,
    "qwen2_vl_text": _SECTIONS,
    "wavtokenizer_encoder": {"codebook_dim": WIDTH},
    "chameleon": {"vocabulary_map": {"<image>": 299, **{f"IMGIMG{k}Z": 200 + k for k in range(3)}}},
    "cosmos3_edge_text": _SECTIONS,
    "deepseek_ocr2_text": {"mlp_layer_types": _in_turn("dense", "sparse")},
    "dots3_note_vision_encoder": {
        "mlp_layer_types": ["dense", "sparse"],
        "adapter_in_dim": WIDTH,
        "adapter_out_dim": WIDTH,
        "mlp_bias": False,
    },
    "dots3_note_audio_encoder": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [24, 24], "moe_num_experts": 4}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}},
    "granite4_vision": {"deepstack_layer_map": [[-1, 1]], "spatial_target_layers": [2]},
    "molmo2_vision": {"image_size": [32, 32]},
    "muse_spark_audio": {"num_hidden_layers": 4, "hidden_sizes": [WIDTH] * 4, "depths": [1] * 4},
    "radio": {"video_temporal_patch_size": 2},
    "glm5_next_text": _LATENT | {"index_topk": 4, "index_kpool": 2, "qk_rope_head_dim": 0},
    "blip_2_qformer": {"cross_attention_frequency": 2},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "hy_v4_vl_text": _LATENT | {"qk_rope_head_dim": 8} | _SECTIONS,
    "mistral_large4_text": _LATENT,
    "emu3": {
        "vocabulary_map": {
            "<image>": 299,
            "<|extra_200|>": 298,
            **{f"<|visual token {k:06d}|>": 200 + k for k in range(3)},
        }
    },
    "hunyuan_vl_text": _SECTIONS,
}
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


def tiny_model(model_type: str, class_name: str) -> Any:
    """A tiny random model of this class; where its class takes a part of the type's configuration, of that part."""
    config = tiny_config(model_type)
    kind = getattr(transformers, class_name)
    if not isinstance(config, kind.config_class):
        parts = [getattr(config, name) for name in config.sub_configs]
        config = next((part for part in parts if isinstance(part, kind.config_class)), config)
    return fill(kind(config))


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
        if rule is not inspect.Parameter.empty and not (isinstance(value, bool) and not isinstance(rule, bool)):
            many = isinstance(value, list | tuple) and isinstance(rule, int)
            taken[name] = [rule] * len(value) if many else rule
        elif re.search(r"token_(id|index)$|^bo[a-z]_token|^eo[a-z]_token", name) and isinstance(value, int):
            taken[name] = next(markers)
        elif name.endswith("_multiplier") and isinstance(value, float) and value == 1.0:
            taken[name] = 0.7
    kinds = [k for k in dict.fromkeys(getattr(default, "layer_types", None) or []) if k]
    special = SPECIAL.get(kind.model_type, {}) | changes
    if "layer_types" in fields(kind) and kinds:
        taken["layer_types"] = _in_turn(*kinds, depth=(taken | special).get("num_hidden_layers", DEPTH))
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
    core.train_from_iterator(
        ["Tell me how to bake bread. Sure, mix flour and water. Sorry, I can not help."] * 4, trainer
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )
    wrapped.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return wrapped
