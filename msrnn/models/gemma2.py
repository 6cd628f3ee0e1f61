r"""Gemma 2: LLaMA with a window in every second layer, four norms per layer, and bounded logits (arXiv:2408.00118).

The gain of a norm is 1 + weight, and the output of attention and of the MLP is normalized before it is added. Embeddings are
multiplied by $\sqrt E$, rounded to the dtype of the weights. The gate of the MLP is GELU in its tanh form. Attention logits are
scaled by ``query_pre_attn_scalar`` and bounded by a softcap before the mask, and the logits of the next token by another. Each
of these acts on one token or on one query, so the recurrence is that of LLaMA: a layer with a window W is ``Window(W - 1)``.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn.functional import gelu

from ..layers.attention import LogitRule
from ..layers.norm import OffsetRMSNorm
from ..layers.positional import PositionEncoding
from ..layers.residual import add_residual
from ..layers.rotary import Rope
from .config import Config
from .llama import Llama, LlamaLayer


@dataclass(frozen=True)
class GemmaConfig(Config):
    """The config of a Gemma 2 or 3.

    Attributes:
        query_pre_attn_scalar: attention logits are scaled by this number to the power −1/2.
        attention_softcap: the bound of attention logits; None: no bound.
        logits_softcap: the bound of the logits of the next token; None: no bound.
    """

    families = ("gemma2", "gemma3")
    query_pre_attn_scalar: float = 256.0
    attention_softcap: float | None = None
    logits_softcap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        softcaps = ("attention_softcap", "logits_softcap")
        self.check_numbers("query_pre_attn_scalar", *(name for name in softcaps if getattr(self, name) is not None))


GEMMA2_2B = GemmaConfig(
    family="gemma2",
    vocab_size=256000,
    width=2304,
    n_layers=26,
    n_heads=8,
    n_kv_heads=4,
    head_dim=256,
    ffn_width=9216,
    norm_eps=1e-6,
    rope=Rope(10000.0),
    layer_windows=(4096, None) * 13,
    context_length=8192,
    tied=True,
    bos_token_id=2,
    eos_token_ids=(1,),
    attention_softcap=50.0,
    logits_softcap=30.0,
)


class GemmaLayer(LlamaLayer):
    """A layer with norms before and after attention and MLP."""

    norm_class = OffsetRMSNorm
    activation = staticmethod(partial(gelu, approximate="tanh"))

    def __init__(self, config: GemmaConfig, position_encoding: PositionEncoding):
        super().__init__(config, position_encoding)
        self.logit_rule = LogitRule(config.query_pre_attn_scalar**-0.5, config.attention_softcap)
        self.attention_output_norm = self.norm_class(config.width, config.norm_eps)
        self.ffn_output_norm = self.norm_class(config.width, config.norm_eps)

    def post_attention(self, x: Tensor, attn_output: Tensor) -> Tensor:
        x = add_residual(x, self.attention_output_norm(self.o(attn_output.flatten(-2))))  # (…, N, D) -> (…, N D) -> (…, E)
        return add_residual(x, self.ffn_output_norm(self.mlp(self.ffn_norm(x))))


class Gemma2(Llama):
    """The network of Gemma 2."""

    arithmetic = "gemma2"
    layer_class: type[LlamaLayer] = GemmaLayer

    def embed_tokens(self, token: Tensor, position: Tensor) -> Tensor:
        x = self.embed(token)
        return x * x.new_full((), self.config.width**0.5)  # rounded to the dtype of x, as in the released code

    def compute_logits(self, x: Tensor) -> Tensor:
        return LogitRule(softcap=self.config.logits_softcap).cap(super().compute_logits(x))
