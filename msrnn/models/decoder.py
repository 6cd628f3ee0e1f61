"""A small decoder-only network as a cell, of interchangeable parts, to be trained.

Each part stands in a file of its own: norms (``norm.py``), positions (``rotary.py``, ``positions.py``), what H holds before the
first token (``learned.py``), the loops over layers (``network.py``). What is chosen says :class:`DecoderConfig`; the layers are
LLaMA's unless it says otherwise, parameter for parameter.
"""

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..cell.layer import RecurrentLayer
from ..errors import Error
from ..layers.embedding import Embedding
from ..layers.linear import Linear, product, side_by_side
from ..layers.norm import RMSNorm, RMSNormOutside, ScaleNorm, unit
from ..layers.positional import MORE, lean, sinusoids, slope
from ..layers.rotary import Rope, Rotation
from ..reductions.contract import Reduction
from ..reductions.core import Full
from ..state.multistate import MultiState
from ..state.state import State
from .decoder_config import DecoderConfig
from .learned_rows import Learned

Activation = Callable[[Tensor], Tensor]
NORMS: dict[str, Callable[[int, float], nn.Module]] = {"rms": RMSNorm, "rms-outside": RMSNormOutside, "scale": ScaleNorm}
GATED: dict[str, Activation] = {"swiglu": functional.silu, "geglu": functional.gelu, "reglu": functional.relu}
PLAIN: dict[str, Activation] = {"silu": functional.silu, "gelu": functional.gelu, "relu": functional.relu}


class Layer(RecurrentLayer):
    """One layer: ``(x_t^l, H_{t-1}^l) -> (x_t^{l+1}, H_t^l)``."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        E, F, D = config.width, config.ffn_width, config.head_dim
        self.config = config
        self.pre = config.placement == "pre"
        self.attention_norm = norm(config)
        self.q = linear(config, E, config.n_heads * D)
        self.k = linear(config, E, config.n_kv_heads * D)
        self.v = linear(config, E, config.n_kv_heads * D)
        self.o = linear(config, config.n_heads * D, E)
        if config.ffn != "none":
            self.ffn_norm = norm(config)
            if config.ffn in GATED:
                self.gate = linear(config, E, F)
            self.up = linear(config, E, F)
            self.down = linear(config, F, E)
        self.fuse_storage_()

    @property
    def fused_groups(self) -> tuple[tuple[nn.Module, ...], ...]:
        qkv = (self.q, self.k, self.v)
        return (qkv, (self.gate, self.up)) if self.config.ffn in GATED else (qkv,)

    def rotation(self, position: Tensor, dtype: torch.dtype) -> Rotation | None:
        c = self.config
        if c.positions == "alibi":
            return slope(position, c.n_heads, c.head_dim, dtype)
        return c.positions.rotation(position, c.head_dim, dtype) if isinstance(c.positions, Rope) else None

    def project_qkv(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        x = self.attention_norm(x) if self.pre else x
        return lean(*self.qkv_heads(x, None), rotation) if self.config.positions == "alibi" else self.qkv_heads(x, rotation)

    def post_attention(self, x: Tensor, read: Tensor) -> Tensor:
        x = self._add(x, self.o(read[..., : self.config.head_dim].flatten(-2)), self.attention_norm)
        if self.config.ffn == "none":
            return x
        normed = self.ffn_norm(x) if self.pre else x
        return self._add(x, self.down(self._ffn(normed)), self.ffn_norm)

    def _ffn(self, x: Tensor) -> Tensor:
        """``(…, E) -> (…, F)``."""
        if self.config.ffn in PLAIN:
            return PLAIN[self.config.ffn](self.up(x))
        gate, up = side_by_side(x, self.gate, self.up).chunk(2, dim=-1)
        return GATED[self.config.ffn](gate) * up

    def _add(self, x: Tensor, more: Tensor, norm: nn.Module) -> Tensor:
        x = x + functional.dropout(more, self.config.dropout, self.training)
        return x if self.pre else norm(x)


class Decoder(Learned):
    """The network. Freshly built it is random and trainable."""

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        self.embed = Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.place = Embedding(config.length, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        if config.placement == "pre":
            self.norm = norm(config)
        if not config.tied:
            self.head = Linear(config.width, config.vocab_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all matrices anew: products by Xavier or as ``small_init`` says, persistent rows of variance 1, embeddings of
        variance 1 / E; memory tokens are then as long as what embeddings make of a token."""
        c = self.config
        for name, x in self.named_parameters():
            if x.ndim == 1 and name.endswith("bias"):
                x.zero_()
            elif x.ndim > 1 and not x.is_meta:
                variance = 2 / sum(x.shape[-2:])
                if name.startswith("persistent") or (name in ("memory", "write") and self.lengthens):
                    variance = 1
                elif name.startswith(("embed", "place", "memory", "write")):
                    variance = 1 / c.width
                elif c.small_init and name.split(".")[-2] in ("q", "k", "v", "o"):
                    variance = 2 / (5 * c.width)
                x.normal_(std=variance**0.5)

    @property
    def lengthens(self) -> bool:
        """Whether embeddings are multiplied by √E, to be as long as what is added to them."""
        return self.config.fixnorm or self.config.positions == "sinusoidal"

    @property
    def kv_dim(self) -> int:
        return self.config.head_dim + (MORE if self.config.positions == "alibi" else 0)

    @property
    def default_reduction(self) -> Reduction:
        return Full()

    @property
    def rope(self) -> Rope | None:
        return self.config.positions if isinstance(self.config.positions, Rope) else None

    @property
    def signature(self) -> str:
        """What training alone looks at left out."""
        return str(replace(self.config, dropout=0.0, small_init=True, bos_token_id=None, eos_token_ids=()))

    @property
    def fingerprint_tensors(self) -> list[Tensor]:
        names = ["embed.weight", "layers.0.q.weight", f"layers.{len(self.layers) - 1}.o.weight"]
        learned = {"memory": self.config.memory_tokens, "persistent_keys": self.config.persistent}
        return list(attrgetter(*names, *(name for name, count in learned.items() if count))(self))

    def init_layer_state(self, batch_size: int, reduction: Reduction, clock: Tensor, dtype: torch.dtype) -> MultiState:
        if self.config.positions == "alibi":
            if reduction.needs_keys:
                raise Error(
                    f"{type(reduction).__name__} looks at keys, and alibi writes positions there; expected another operator"
                )
            self._check_wide(dtype)
        return super().init_layer_state(batch_size, reduction, clock, dtype)

    def check_state(self, state: State, batch_size: int) -> None:
        super().check_state(state, batch_size)
        if self.config.positions == "alibi":
            self._check_wide(state.dtype)

    def _check_wide(self, dtype: torch.dtype) -> None:
        if dtype.itemsize < 4:
            raise Error(f"alibi writes positions into keys, which {dtype} cannot tell apart; expected float32 or float64")

    def embed_tokens(self, token: Tensor, position: Tensor) -> Tensor:
        c, x = self.config, self.embed(token)
        if c.fixnorm:
            x = unit(x)
        if self.lengthens:
            x = x * c.width**0.5
        if c.positions == "sinusoidal":
            x = x + sinusoids(position, c.width, x.dtype)
        if c.positions == "learned":
            x = x + self.place(position.clamp(max=c.length - 1))  # those beyond are not read
        return functional.dropout(x, c.dropout, self.training)

    def check_length(self, clock: Tensor) -> None:
        if self.config.positions == "learned" and bool((clock > self.config.length).any()):
            raise Error(f"the text is of {int(clock.max())} tokens; there are {self.config.length} learned positions")

    def leave(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.config.placement == "pre" else x

    def compute_logits(self, x: Tensor) -> Tensor:
        c = self.config
        weight = self.embed.weight if c.tied else self.head.weight
        if c.tied and c.fixnorm:
            weight = unit(weight)
        return product(self.leave(x), weight)


def norm(config: DecoderConfig) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)
    return NORMS[config.norm](config.width, config.norm_eps)


def linear(config: DecoderConfig, n_in: int, n_out: int) -> nn.Linear:
    return nn.Linear(n_in, n_out) if config.bias else Linear(n_in, n_out)
