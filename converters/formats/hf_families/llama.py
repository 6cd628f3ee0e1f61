"""LLaMA, Mistral and Yi."""

from dataclasses import replace
from functools import partial

from .family import NAMES, HfFamily
from .windows import same_window

EARLY_YI_NORMS = {"ln1": "attention_norm", "ln2": "ffn_norm"}
"""Names of the two norms in the first Yi checkpoints (model_type ``Yi``, November 2023)."""

LLAMA = HfFamily(
    family="llama",
    title="LLaMA, Mistral and Yi",
    model_type="llama",
    classes="Llama",
    related=("Mistral", "Yi"),
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read=partial(same_window, title="LLaMA, Mistral and Yi", read=False),
    write=lambda config: {"attention_bias": False, "mlp_bias": False},
)
MISTRAL = replace(
    LLAMA,
    family="mistral",
    model_type="mistral",
    classes="Mistral",
    related=("Llama", "Yi"),
    defaults={
        **LLAMA.defaults,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,  # a config.json of v0.1 may lack the window; later versions have null
    },
    read=partial(same_window, title="LLaMA, Mistral and Yi", read=True),
    write=lambda config: {"sliding_window": config.sliding_window},
)
YI = replace(
    LLAMA,
    family="yi",
    model_type="yi",
    classes="Yi",
    related=("Llama", "Mistral"),
    defaults={},
    names=replace(NAMES, layer={**NAMES.layer, **EARLY_YI_NORMS}),
)
"""The config class of the first Yi models is not in transformers, so there are no defaults; a LLaMA is written."""
