r"""Granite 3: LLaMA with four factors (IBM, *Granite 3.0 Language Models*, 2024; ``GraniteModel`` of transformers).

Embeddings are multiplied by ``embedding_multiplier``, the output of each sublayer by ``residual_multiplier``, and attention
logits by ``attention_multiplier`` in place of $D^{-1/2}$; the logits of the next token are divided by ``logits_scaling``. The
recurrence is that of LLaMA.
"""

from dataclasses import dataclass

from torch import Tensor

from ..layers.attention import LogitRule
from ..layers.positional import PositionEncoding
from ..layers.residual import add_residual
from ..layers.rotary import Rope
from .config import Config
from .llama import Llama, LlamaLayer


@dataclass(frozen=True)
class GraniteConfig(Config):
    """The config of a Granite, with its four factors."""

    families = ("granite", "granite_swa")
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    logits_scaling: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


GRANITE_33_2B = GraniteConfig(
    family="granite",
    vocab_size=49159,
    width=2048,
    n_layers=40,
    n_heads=32,
    n_kv_heads=8,
    head_dim=64,
    ffn_width=8192,
    norm_eps=1e-5,
    rope=Rope(1e7),
    context_length=131072,
    tied=True,
    bos_token_id=0,
    eos_token_ids=(0,),
    embedding_multiplier=12.0,
    residual_multiplier=0.22,
    attention_multiplier=0.015625,
    logits_scaling=8.0,
)


class GraniteLayer(LlamaLayer):
    """A layer with a factor on attention logits and on the output of each sublayer."""

    def __init__(self, config: GraniteConfig, position_encoding: PositionEncoding):
        super().__init__(config, position_encoding)
        self.logit_rule = LogitRule(config.attention_multiplier)

    def post_attention(self, x: Tensor, attn_output: Tensor) -> Tensor:
        factor = self.config.residual_multiplier
        x = add_residual(x, self.o(attn_output.flatten(-2)) * factor)  # (…, N, D) -> (…, N D) -> (…, E)
        return add_residual(x, self.mlp(self.ffn_norm(x)) * factor)


class Granite(Llama):
    """The network of Granite."""

    arithmetic = "granite"
    layer_class: type[LlamaLayer] = GraniteLayer

    def embed_tokens(self, token: Tensor, position: Tensor) -> Tensor:
        return self.embed(token) * self.config.embedding_multiplier

    def compute_logits(self, x: Tensor) -> Tensor:
        return super().compute_logits(x) / self.config.logits_scaling
