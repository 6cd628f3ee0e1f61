r"""A linear map with a LoRA adapter, $y = x W^\top + s\,(x A^\top) B^\top$ (arXiv:2106.09685, eq. 3)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .packed.modules import PackedLinear


class LoraLinear(nn.Module):
    r"""A frozen linear map and a trainable one of rank r. B is zero at first, so a new adapter changes nothing.

    The names are those of PEFT. A and B have the dtype of the base, or float32 if the base has 16 bits. The sum has the dtype
    of the output of the base.

    Args:
        base_layer: ``nn.Linear`` or a packed linear map, E to F elements.
        r: the rank.
        lora_alpha: the scale s is ``lora_alpha / r``.
        lora_dropout: probability with which elements of x are dropped before A, in training mode.
        use_rslora: s is ``lora_alpha / sqrt(r)`` (arXiv:2312.03732).
        generator: of the random A, which is initialized as ``nn.Linear`` is.
        in_features: number of columns of A; None: that of ``base_layer``, which may be a slice of the matrix.

    Attributes:
        lora_A: ``(r, E)``.
        lora_B: ``(F, r)``.
    """

    def __init__(
        self,
        base_layer: nn.Linear | PackedLinear,
        r: int,
        lora_alpha: float,
        lora_dropout: float = 0.0,
        use_rslora: bool = False,
        generator: torch.Generator | None = None,
        in_features: int | None = None,
    ):
        super().__init__()
        self.base_layer: nn.Linear | PackedLinear = base_layer
        self.r, self.lora_alpha = r, lora_alpha
        self.lora_dropout, self.use_rslora = lora_dropout, use_rslora
        near = next(x for x in (*base_layer.parameters(), *base_layer.buffers()) if x.is_floating_point())
        dtype = torch.promote_types(near.dtype, torch.float32)
        device = near.device if generator is None else generator.device
        draw = torch.empty(r, in_features or base_layer.in_features, dtype=dtype, device=device)
        nn.init.kaiming_uniform_(draw, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(draw.to(near.device))
        self.lora_B = nn.Parameter(torch.zeros(base_layer.out_features, r, dtype=dtype, device=near.device))

    @property
    def scaling(self) -> float:
        """The scale s."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the base plus that of the adapter, ``(…, E) -> (…, F)``."""
        y = self.base_layer(x)
        dropped = functional.dropout(x.to(self.lora_A.dtype), self.lora_dropout, self.training)
        update = self.expand(self.project(dropped)) * self.scaling
        return y + update.to(y.dtype)

    def project(self, x: Tensor) -> Tensor:
        """Return x Aᵀ, ``(…, E) -> (…, r)``."""
        return functional.linear(x, self.lora_A)

    def expand(self, x: Tensor) -> Tensor:
        """Return x Bᵀ, ``(…, r) -> (…, F)``."""
        return functional.linear(x, self.lora_B)

    def delta_weight(self) -> Tensor:
        """Return s B A, what merging adds to the weight, ``(F, E)``."""
        return (self.lora_B @ self.lora_A) * self.scaling

    def extra_repr(self) -> str:
        return f"r={self.r}, lora_alpha={self.lora_alpha:g}, lora_dropout={self.lora_dropout:g}, use_rslora={self.use_rslora}"
