"""The product that layers are made of, x Wᵀ without a bias, by whichever of PyTorch's kernels reads W faster.

A step multiplies one row by every matrix, so it is as fast as the matrices are read. On x86 CPUs PyTorch hands float32
products to MKL; the oneDNN kernel that it carries for compiled graphs is faster for 1 to 256 rows
(``tests/benchmarks/linear.py``). It has no derivative, so a graph is built with the other.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

HAS_KERNEL = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``(…, E), (F, E) -> (…, F)``, equal to ``functional.linear`` up to rounding."""
    plain = (
        not HAS_KERNEL
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.numel() == 0
        or torch.compiler.is_compiling()
        or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    )
    if plain:
        return functional.linear(x, weight)
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class Linear(nn.Linear):
    """``nn.Linear`` without a bias, by :func:`product`."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)
