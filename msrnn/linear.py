"""The product that layers are made of, x Wᵀ without a bias, by whichever of PyTorch's kernels reads W faster.

A step multiplies one row by every matrix, so it is as fast as the matrices are read. On x86 CPUs PyTorch hands float32
products to MKL; the oneDNN kernel that it carries for compiled graphs is faster for 1 to 256 rows
(``tests/benchmarks/linear.py``). It has no derivative, so a graph is built with the other. And it keeps compiled code for every
number of rows it has met, about a megabyte for each and each shape of matrix; so that a process that reads texts of all lengths
stays as large as it is, many rows are filled up to one of few numbers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

NATIVE = {
    torch.bfloat16: getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)(),
    torch.float16: getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", bool)(),
}
"""Whether this CPU multiplies numbers of 16 bits; one that does not is some twenty times slower with them than in float32."""
FEW = 4
"""From so many rows on a matrix of 16 bits is worth being made one of float32 first."""
HAS_KERNEL = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``(…, E), (F, E) -> (…, F)``, equal to ``functional.linear`` up to rounding."""
    if x.numel() >= FEW * x.shape[-1] and (wide := workable(x)) is not x:
        return product(wide, weight.to(wide.dtype)).to(x.dtype)
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
    rows = x.numel() // x.shape[-1]
    more = -rows % (1 if rows <= 16 else 16 if rows <= 64 else 64)
    padded = functional.pad(x.flatten(0, -2), (0, 0, 0, more)) if more else x
    y = torch.ops.mkldnn._linear_pointwise(padded, weight, None, "none", [], "")
    return y[:rows].view(*x.shape[:-1], y.shape[-1]) if more else y


def workable(x: Tensor) -> Tensor:
    """``x``, in float32 where it is of 16 bits and this CPU has no products of those."""
    return x if x.device.type != "cpu" or NATIVE.get(x.dtype, True) else x.float()


class Linear(nn.Linear):
    """``nn.Linear`` without a bias, by :func:`product`."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)
