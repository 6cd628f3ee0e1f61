"""Norms that PyTorch does not have in the required form: RMSNorm with epsilon inside or outside the root, and ScaleNorm."""

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


class RMSNorm(nn.Module):
    r"""$x \cdot (\overline{x^2} + \epsilon)^{-1/2} \odot g$ (arXiv:1910.07467), with epsilon inside the root, as in LLaMA.

    The mean and the root are computed in at least float32. The result is rounded to the dtype of ``x`` before the gain
    ``weight (E,)`` multiplies it, because LLaMA was trained in this order.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(…, E)``."""
        if x.dtype == torch.promote_types(x.dtype, torch.float32):  # no intermediate rounding, so one call is enough
            return rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * rms_norm(x, self.weight.shape, None, self.eps)  # computed in float32, rounded, then scaled


class WideGainRMSNorm(RMSNorm):
    """RMSNorm that multiplies by the gain before it rounds to the dtype of ``x``, as in OLMo 2 (and Gemma)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(…, E)``."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return rms_norm(x.to(wide), self.weight.shape, self.gain(wide), self.eps).to(x.dtype)

    def gain(self, dtype: torch.dtype) -> Tensor:
        """Return the factors of the normalized elements, ``(E,)`` in ``dtype``."""
        return self.weight.to(dtype)


class OffsetRMSNorm(WideGainRMSNorm):
    """RMSNorm with the gain 1 + ``weight``, as in Gemma (arXiv:2403.08295). The weight of a new norm is 0."""

    def __init__(self, width: int, eps: float):
        super().__init__(width, eps)
        with torch.no_grad():
            self.weight.zero_()

    def gain(self, dtype: torch.dtype) -> Tensor:
        return 1 + self.weight.to(dtype)


class RMSNormEpsOutside(RMSNorm):
    r"""$x / (\sqrt{\overline{x^2}} + \epsilon) \odot g$, with epsilon outside the root, as in the code of the authors.

    Source: bzhangGo/rmsnorm at c6691f2, ``rmsnorm_torch.py``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(…, E)``."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rms = wide.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return self.weight * (wide / (rms + self.eps)).to(x.dtype)


class ScaleNorm(nn.Module):
    r"""$g \cdot x / \max(\lVert x \rVert_2, \epsilon)$ with one learned number g, initially $\sqrt E$ (arXiv:1910.05895)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.tensor(width**0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(…, E)``."""
        return self.weight * l2_normalize(x, self.eps)


def l2_normalize(x: Tensor, eps: float = 1e-12) -> Tensor:
    r"""Return $x / \max(\lVert x \rVert_2, \epsilon)$ over the last dimension, computed in at least float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / wide.norm(dim=-1, keepdim=True).clamp(min=eps)).to(x.dtype)
