"""A small decoder-only network for training, with interchangeable parts.

:class:`DecoderConfig` selects the parts: norms (``layers/norm.py``), position encodings (``layers/positional.py``) and learned
rows (``learned_rows.py``). With its default values the layers equal those of LLaMA, parameter by parameter.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..cell.layer import RecurrentLayer
from ..errors import Error
from ..layers.embedding import Embedding, embedding_weight
from ..layers.linear import Linear, gated_linear, linear
from ..layers.norm import RMSNorm, RMSNormEpsOutside, ScaleNorm, l2_normalize
from ..layers.positional import AlibiEncoding, PositionEncoding, PositionTensors, RotaryEncoding, sinusoidal_encoding
from ..layers.residual import add_residual
from ..layers.rotary import Rope
from ..reductions.contract import Reduction
from ..reductions.tova_paper import Full
from .decoder_config import DecoderConfig
from .learned_rows import LearnedRowsNetwork

Activation = Callable[[Tensor], Tensor]
NORMS: dict[str, Callable[[int, float], nn.Module]] = {"rms": RMSNorm, "rms-outside": RMSNormEpsOutside, "scale": ScaleNorm}
GATED: dict[str, Activation] = {"swiglu": functional.silu, "geglu": functional.gelu, "reglu": functional.relu}
PLAIN: dict[str, Activation] = {"silu": functional.silu, "gelu": functional.gelu, "relu": functional.relu}


class DecoderLayer(RecurrentLayer):
    """A decoder layer: ``(x_t^l, H_{t-1}^l) -> (x_t^{l+1}, H_t^l)``."""

    def __init__(self, config: DecoderConfig, position_encoding: PositionEncoding):
        super().__init__()
        E, F, D = config.width, config.ffn_width, config.head_dim
        self.config, self.position_encoding = config, position_encoding
        self.pre = config.norm_placement == "pre"
        self.attention_norm = _make_norm(config)
        self.q = _make_linear(config, E, config.n_heads * D)
        self.k = _make_linear(config, E, config.n_kv_heads * D)
        self.v = _make_linear(config, E, config.n_kv_heads * D)
        self.o = _make_linear(config, config.n_heads * D, E)
        if config.ffn != "none":
            self.ffn_norm = _make_norm(config)
            if config.ffn in GATED:
                self.gate = _make_linear(config, E, F)
            self.up = _make_linear(config, E, F)
            self.down = _make_linear(config, F, E)
        self.fuse_storage_()

    @property
    def fused_groups(self) -> tuple[tuple[nn.Module, ...], ...]:
        qkv = (self.q, self.k, self.v)
        return (qkv, (self.gate, self.up)) if self.config.ffn in GATED else (qkv,)

    def project_qkv(self, x: Tensor, position_tensors: PositionTensors | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.qkv_heads(self.attention_norm(x) if self.pre else x, position_tensors)

    def post_attention(self, x: Tensor, attn_output: Tensor) -> Tensor:
        attn_output = attn_output[..., : self.config.head_dim]  # without the elements of the position encoding
        x = self._add(x, self.o(attn_output.flatten(-2)), self.attention_norm)
        if self.config.ffn == "none":
            return x
        normed = self.ffn_norm(x) if self.pre else x
        return self._add(x, self.down(self._mlp_hidden(normed)), self.ffn_norm)

    def _mlp_hidden(self, x: Tensor) -> Tensor:
        """Return the hidden layer of the MLP, ``(…, E) -> (…, F)``."""
        if self.config.ffn in PLAIN:
            return PLAIN[self.config.ffn](self.up(x))
        return gated_linear(x, self.gate, self.up, GATED[self.config.ffn])

    def _add(self, x: Tensor, output: Tensor, norm: nn.Module) -> Tensor:
        """Add the output of a sublayer to its residual x, and normalize the sum for the placement ``post``."""
        x = add_residual(x, functional.dropout(output, self.config.dropout, self.training))
        return x if self.pre else norm(x)


class Decoder(LearnedRowsNetwork):
    """The network. A new one is random and trainable."""

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.embed = Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.position_embedding = Embedding(config.context_length, config.width)
        encoding = _make_position_encoding(config)
        self.layers = nn.ModuleList(DecoderLayer(config, encoding) for _ in range(config.n_layers))
        if config.norm_placement == "pre":
            self.norm = _make_norm(config)
        if not config.tied:
            self.head = Linear(config.width, config.vocab_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize all parameters.

        Linear maps by Xavier, or as ``small_init`` sets; persistent rows with variance 1; embeddings with variance 1 / E.
        Memory and write tokens get the variance of token vectors at the input of the first layer.
        """
        c = self.config
        for name, x in self.named_parameters():
            if x.ndim == 1 and name.endswith("bias"):
                x.zero_()
            elif x.ndim > 1 and not x.is_meta:
                variance = 2 / sum(x.shape[-2:])
                if name.startswith("persistent") or (name in ("memory", "write_tokens") and self.scales_embeddings):
                    variance = 1
                elif name.startswith(("embed", "position_embedding", "memory", "write_tokens")):
                    variance = 1 / c.width
                elif c.small_init and name.split(".")[-2] in ("q", "k", "v", "o"):
                    variance = 2 / (5 * c.width)
                x.normal_(std=variance**0.5)

    @property
    def scales_embeddings(self) -> bool:
        """True if embeddings are multiplied by √E, the scale of the position encoding."""
        return self.config.fixnorm or self.config.positions == "sinusoidal"

    @property
    def default_reduction(self) -> Reduction:
        return Full()

    @property
    def signature(self) -> str:
        return f"decoder {self.config.signature()}"

    @property
    def fingerprint_tensors(self) -> list[Tensor]:
        tensors = self.tensors_of("embed", "layers.0.q", f"layers.{len(self.layers) - 1}.o")
        learned = {"memory": self.config.memory_tokens, "persistent_keys": self.config.persistent}
        return tensors + [getattr(self, name) for name, count in learned.items() if count]

    def embed_tokens(self, token: Tensor, position: Tensor) -> Tensor:
        c, x = self.config, self.embed(token)
        if c.fixnorm:
            x = l2_normalize(x)
        if self.scales_embeddings:
            x = x * c.width**0.5
        if c.positions == "sinusoidal":
            x = x + sinusoidal_encoding(position, c.width, x.dtype)
        if c.positions == "learned":
            x = x + self.position_embedding(position.clamp(max=c.context_length - 1))  # check_length refuses longer texts
        return functional.dropout(x, c.dropout, self.training)

    def check_length(self, clock: Tensor) -> None:
        limit = self.config.context_length
        if self.config.positions == "learned" and bool((clock > limit).any()):
            raise Error(f"the text has {int(clock.max())} tokens; expected at most {limit}, the number of learned positions")

    def final_norm(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.config.norm_placement == "pre" else x

    def compute_logits(self, x: Tensor) -> Tensor:
        c, x = self.config, self.final_norm(x)
        if not c.tied:
            return self.head(x)
        weight = embedding_weight(self.embed)
        return linear(x, l2_normalize(weight) if c.fixnorm else weight)


def _make_norm(config: DecoderConfig) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)
    return NORMS[config.norm](config.width, config.norm_eps)


def _make_linear(config: DecoderConfig, n_in: int, n_out: int) -> nn.Linear:
    return nn.Linear(n_in, n_out) if config.bias else Linear(n_in, n_out)


def _make_position_encoding(config: DecoderConfig) -> PositionEncoding:
    """Return the encoding that attention applies; learned and sinusoidal positions are added to embeddings instead."""
    if isinstance(config.positions, Rope):
        return RotaryEncoding(config.positions, config.head_dim)
    return AlibiEncoding(config.n_heads, config.head_dim) if config.positions == "alibi" else PositionEncoding()
