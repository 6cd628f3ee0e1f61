"""OLMo 2, which normalizes the outputs of sublayers."""

from dataclasses import replace
from functools import partial

from .family import HEAD_NORMS, NAMES, HfFamily
from .windows import same_window

LAYER = {name: own for name, own in NAMES.layer.items() if name != "input_layernorm"}
OLMO2 = HfFamily(
    family="olmo2",
    title="OLMo 2",
    model_type="olmo2",
    classes="Olmo2",
    defaults={
        "vocab_size": 50304,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 50279,
    },
    names=replace(
        NAMES,
        layer={
            **LAYER,
            **HEAD_NORMS,
            "post_attention_layernorm": "attention_norm",
            "post_feedforward_layernorm": "ffn_norm",
        },
    ),
    read=partial(same_window, title="OLMo 2", read=False),
    write=lambda config: {"attention_bias": False},
)
