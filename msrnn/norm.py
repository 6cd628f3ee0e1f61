"""RMSNorm (arXiv:1910.07467), as LLaMA writes it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


class RMSNorm(nn.Module):
    r"""$x \cdot (\overline{x^2} + \epsilon)^{-1/2} \odot g$, with epsilon inside the root.

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
