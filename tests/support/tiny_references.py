"""Tiny configs of every family beyond LLaMA: together they use every field that changes the arithmetic of the family."""

FULL, SLIDING = "full_attention", "sliding_attention"
PLAIN = {"rope_type": "default", "rope_theta": 500.0}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8, "truncate": False}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
FACTORS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.3, "logits_scaling": 2.5}

CASES = {
    "qwen2, windows in the last layers": (
        "qwen2",
        {
            "num_hidden_layers": 4,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 2,
            "rope_parameters": PLAIN,
        },
    ),
    "qwen2, tied, head_dim": (
        "qwen2",
        {
            "tie_word_embeddings": True,
            "head_dim": 10,
            "num_key_value_heads": 1,
            "max_window_layers": 1,
            "rope_parameters": YARN,
        },
    ),
    "qwen2, layer_types": (
        "qwen2",
        {"layer_types": [SLIDING, FULL], "use_sliding_window": True, "sliding_window": 4, "rope_parameters": LINEAR},
    ),
    "qwen3": ("qwen3", {"head_dim": 10, "tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3, windows": (
        "qwen3",
        {
            **{"num_hidden_layers": 3, "head_dim": 8, "num_key_value_heads": 4, "rope_parameters": PLAIN},
            **{"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        },
    ),
    "gemma2": (
        "gemma2",
        {
            **{"num_hidden_layers": 4, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 20},
            **{"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "rope_parameters": PLAIN},
        },
    ),
    "gemma2, layer_types, no softcaps, not tied": (
        "gemma2",
        {
            **{"layer_types": [FULL, SLIDING], "head_dim": 6, "sliding_window": 9, "query_pre_attn_scalar": 5},
            **{"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False},
            **{"rope_parameters": LINEAR, "num_key_value_heads": 1},
        },
    ),
    "gemma3, linear on layers without a window": (
        "gemma3_text",
        {
            **{"num_hidden_layers": 7, "head_dim": 10, "sliding_window": 5, "query_pre_attn_scalar": 11},
            **{"rope_parameters": {FULL: LINEAR, SLIDING: {"rope_type": "default", "rope_theta": 90.0}}},
            **{"final_logit_softcapping": 4.0, "num_key_value_heads": 1},
        },
    ),
    "gemma3, layer_types, not tied": (
        "gemma3_text",
        {
            **{"num_hidden_layers": 3, "head_dim": 8, "layer_types": [FULL, SLIDING, SLIDING], "sliding_window": 8},
            **{"tie_word_embeddings": False, "query_pre_attn_scalar": 7},
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "no_rope_layer_interval": 2, "rope_parameters": PLAIN}),
    "smollm3, windows, not tied": (
        "smollm3",
        {
            **{"num_hidden_layers": 4, "no_rope_layers": [1, 0, 0, 1], "use_sliding_window": True, "sliding_window": 6},
            **{"tie_word_embeddings": False, "rope_parameters": YARN, "head_dim": 8, "num_key_value_heads": 1},
        },
    ),
    "ministral": (
        "ministral",
        {
            **{"num_hidden_layers": 4, "layer_types": [FULL, SLIDING, SLIDING, SLIDING], "sliding_window": 6, "head_dim": 8},
            **{"rope_parameters": PLAIN},
        },
    ),
    "ministral, windows everywhere": ("ministral", {"sliding_window": 6, "head_dim": 8, "tie_word_embeddings": True}),
    "ministral3": (
        "ministral3",
        {"head_dim": 8, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.3, "mscale": 0.7, "mscale_all_dim": 1.3}},
    ),
    "ministral3, window": (
        "ministral3",
        {"head_dim": 8, "sliding_window": 6, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1, "beta_fast": 8.0}},
    ),
    "granite": ("granite", {**FACTORS, "rope_parameters": PLAIN}),
    "granite, tied, head_dim": ("granite", {**FACTORS, "tie_word_embeddings": True, "head_dim": 8, "rope_parameters": LINEAR}),
    "granite_swa": (
        "granite_swa",
        {
            **{"num_hidden_layers": 5, "sliding_window": 6, "layer_rope_theta": [100.0, 0, 5000.0, 100.0, 0], **FACTORS},
            **{"head_dim": 8, "rope_parameters": PLAIN},
        },
    ),
    "granite_swa, layer_types, not tied": (
        "granite_swa",
        {
            **{"layer_types": [SLIDING, FULL], "sliding_window": 4, "tie_word_embeddings": False, "rope_parameters": LINEAR},
            **{"attention_multiplier": 0.2, "num_key_value_heads": 1},
        },
    ),
    "olmo2": ("olmo2", {"rope_parameters": PLAIN}),
    "olmo2, tied, head_dim": (
        "olmo2",
        {"tie_word_embeddings": True, "head_dim": 8, "num_key_value_heads": 1, "rope_parameters": YARN},
    ),
    "phi3": ("phi3", {"sliding_window": 7, "rope_parameters": PLAIN}),
    "phi3, tied, no window": ("phi3", {"tie_word_embeddings": True, "head_dim": 10, "num_key_value_heads": 1}),
}
"""``model_type`` and fields by a name. Texts of 40 tokens are longer than the windows and than the original lengths."""
