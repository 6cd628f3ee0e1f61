"""The norms of a layer that PyTorch does not have as they are meant: RMSNorm by both conventions, ScaleNorm."""

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


class RMSNorm(nn.Module):
    r"""$x \cdot (\overline{x^2} + \epsilon)^{-1/2} \odot g$ (arXiv:1910.07467), with epsilon inside the root, as in LLaMA.

    The mean and the root are taken in at least float32; the result is rounded to the dtype of ``x``
    before the gain ``weight (E,)`` multiplies it, which is the order LLaMA was trained with.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.promote_types(x.dtype, torch.float32):  # nothing is rounded on the way: the same in one call
            return rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype)


class RMSNormOutside(RMSNorm):
    r"""$x / (\sqrt{\overline{x^2}} + \epsilon) \odot g$, with epsilon outside the root, as the authors' code has it
    (bzhangGo/rmsnorm at c6691f2, ``rmsnorm_torch.py``)."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rms = wide.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return self.weight * (wide / (rms + self.eps)).to(x.dtype)


class ScaleNorm(nn.Module):
    r"""$g \cdot x / \max(\lVert x \rVert_2, \epsilon)$, one learned number g that begins at $\sqrt E$ (arXiv:1910.05895)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.tensor(width**0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * unit(x, self.eps)


def unit(x: Tensor, eps: float = 1e-12) -> Tensor:
    r"""$x / \max(\lVert x \rVert_2, \epsilon)$ of the last dimension, taken in at least float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / wide.norm(dim=-1, keepdim=True).clamp(min=eps)).to(x.dtype)
