"""The description of one model type: what its ``config.json`` means, and the names of its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msrnn.models import Config

from ...fields import Fields
from ...source import NameTable

OUTER = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"}
LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
HEAD_NORMS = {"self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm"}
"""Norms of queries and keys (Qwen3, Gemma 3, OLMo 2)."""
NAMES = NameTable(OUTER, LAYER, "model.layers")
"""The names of LLaMA, which most families have."""

PLAIN: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,)}
"""The fields of LLaMA with the values that its layers have."""


def nothing(fields_or_config: Any) -> dict[str, Any]:
    """Return no further fields, for a family that has only those of all families."""
    return {}


@dataclass(frozen=True)
class HfFamily:
    """One ``model_type`` of ``config.json``.

    Attributes:
        family: its name in msrnn.
        title: its name in messages.
        model_type: its name in ``config.json``.
        classes: the prefix of its class names in transformers: ``Qwen2`` for ``Qwen2ForCausalLM`` and ``Qwen2Model``.
        defaults: the defaults of transformers for missing fields; empty if transformers has no class for the model type.
        theta: the default of ``rope_theta``.
        supported: fields that transformers reads, each with the values that msrnn supports.
        fields: further fields that ``read`` reads.
        names: the names of the tensors; for a fused matrix a key of ``fused``.
        fused: the parts of each matrix that the files store as one.
        related: prefixes of class names of other families that its ``config.json`` may have too.
        config_class: the class of the config.
        read: returns the arguments of ``config_class`` beyond those of all families, from the fields with defaults.
        write: returns the fields of ``config.json`` beyond those of all families, from a config.
    """

    family: str
    title: str
    model_type: str
    classes: str
    defaults: Mapping[str, Any]
    theta: float = 10000.0
    supported: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: PLAIN)
    fields: tuple[str, ...] = ()
    names: NameTable = NAMES
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    related: tuple[str, ...] = ()
    config_class: type[Config] = Config
    read: Callable[[Fields], dict[str, Any]] = nothing
    write: Callable[[Any], dict[str, Any]] = nothing

    @property
    def architecture(self) -> str:
        """The class name that is written."""
        return f"{self.classes}ForCausalLM"
