r"""Ministral 3 (December 2025): LLaMA with YaRN positions, and queries that grow with the position.

The query of a token at position t is multiplied by $1 + \beta \ln(1 + \lfloor t / L \rfloor)$ with the training length L of the
rope (the rule of Llama 4). Keys and values are those of LLaMA, so a cached row does not change later, and the recurrence is the
same.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error, check_int
from ..layers.positional import PositionEncoding, PositionTensors, RotaryEncoding
from ..layers.rotary import Rope, YarnRope
from ..state.position_remapping import ABSOLUTE
from ..state.state import State
from .config import Config
from .llama import Llama


@dataclass(frozen=True)
class Ministral3Config(Config):
    r"""The config of a Ministral 3.

    Attributes:
        query_beta: β of the growth of queries; 0 for no growth.
        query_length: L, the number of positions between two steps of the growth.
    """

    families = ("ministral3",)
    query_beta: float = 0.1
    query_length: int = 16384

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("config: query_length", self.query_length)
        if self.query_beta != 0:
            self.check_numbers("query_beta")


MINISTRAL3_8B = Ministral3Config(
    family="ministral3",
    vocab_size=131072,
    width=4096,
    n_layers=34,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    ffn_width=14336,
    norm_eps=1e-5,
    rope=YarnRope(1e6, factor=16.0, original_length=16384, attention_factor=1.0),
    context_length=262144,
    bos_token_id=1,
    eos_token_ids=(2,),
)


@dataclass(frozen=True)
class GrowingQueries(RotaryEncoding):
    """Rotary positions, and a factor on each query that depends on its position: 1 + ``beta`` · ln(1 + ⌊t / ``length``⌋)."""

    beta: float = 0.0
    length: int = 1

    def prepare(self, position: Tensor, dtype: torch.dtype) -> PositionTensors | None:
        """Return cos, signed sin ``(…, 1, D)`` each, and the factor of queries ``(…, 1, 1)``."""
        cos, sin = self.rope.cos_sin(position, self.head_dim, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        factor = 1 + self.beta * torch.log1p((position // self.length).to(wide))
        return cos, sin, factor.to(dtype)[..., None, None]

    def apply(self, qk: Tensor, v: Tensor, n_heads: int, tensors: PositionTensors | None) -> tuple[Tensor, Tensor, Tensor]:
        if tensors is None:
            raise Error("queries of Ministral 3 depend on the position of the token; expected the result of prepare")
        cos, sin, factor = tensors
        q, k, v = super().apply(qk, v, n_heads, (cos, sin))
        return q * factor, k, v


class Ministral3(Llama):
    """The network of Ministral 3."""

    arithmetic = "ministral3"

    def initial_state(self, batch_size: int = 1, reduction: Any = None, *, places: str = ABSOLUTE, **options: Any) -> State:
        if places != ABSOLUTE and self.config.query_beta:  # queries are rotated and multiplied in one function
            found = f"places are {places!r:.60}; expected {ABSOLUTE!r}"
            raise Error(f"{found}, because the queries of this cell grow with the position in the text")
        return super().initial_state(batch_size, reduction, places=places, **options)

    initial_state.__doc__ = Cell.initial_state.__doc__

    def make_position_encoding(self, rope: Rope | None) -> PositionEncoding:
        if rope is None or not self.config.query_beta:
            return super().make_position_encoding(rope)
        return GrowingQueries(rope, self.config.head_dim, self.config.query_beta, self.config.query_length)
