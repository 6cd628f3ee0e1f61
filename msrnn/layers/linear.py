"""The product that layers are made of, x Wᵀ without a bias, by whichever of PyTorch's kernels reads W faster.

A step multiplies one row by every matrix, so it is as fast as the matrices are read. On x86 CPUs PyTorch hands float32
products to MKL; the oneDNN kernel that it carries for compiled graphs is faster for 1 to 256 rows
(``tests/benchmarks/linear.py``). It has no derivative, so a graph is built with the other. And it keeps compiled code for every
number of rows it has met, about a megabyte for each and each shape of matrix; so that a process that reads texts of all lengths
stays as large as it is, many rows are filled up to one of few numbers.

Matrices that multiply the same x (query, key and value; gate and up) are read faster as one. They stay parameters of their own,
but lie one after the other in one storage, and where they are found so, one product is made. Nothing depends on it: a parameter
that was given another storage, by whatever way, is multiplied by itself.
"""

from collections.abc import Sequence

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


def side_by_side(x: Tensor, *linears: nn.Module) -> Tensor:
    """``(…, E) -> (…, F_1 + F_2 + …)``, what each of the modules makes of ``x``; in one product where their weights are one."""
    weights = [_own(linear) for linear in linears]
    learnt = torch.is_grad_enabled() and any(w is not None and w.requires_grad for w in weights)
    if learnt or (weight := _joined(weights)) is None:
        return torch.cat([linear(x) for linear in linears], dim=-1)
    return product(x, weight)


def lay_together(*linears: nn.Module) -> None:
    """Give the weights one storage, in this order, where they have none yet; parameters, numbers and gradients stay."""
    weights = [w for linear in linears if type(w := linear._parameters.get("weight")) is nn.Parameter]
    like = {(w.dtype, w.device, w.shape[1:], w.layout) for w in weights}
    if len(weights) < len(linears) or len(like) != 1 or weights[0].layout != torch.strided or weights[0].is_meta:
        return
    if _joined(weights) is None and not weights[0].is_shared():
        with torch.inference_mode(weights[0].is_inference()):
            rows = torch.cat([w.detach() for w in weights])
        for weight, part in zip(weights, rows.split([len(w) for w in weights]), strict=True):
            weight.data = part


def _own(linear: nn.Module) -> Tensor | None:
    """The weight of a module that does nothing but multiply by it, watched by nobody."""
    plain = type(linear) is Linear and not _watched(linear)
    return linear._parameters.get("weight") if plain else None


def _watched(linear: nn.Module) -> bool:
    """Whether a call would do more than ``Linear.forward``: hooks of all kinds, a ``forward`` of its own."""
    own = (linear._forward_hooks, linear._forward_pre_hooks, linear._backward_hooks, linear._backward_pre_hooks)
    return any(own) or "forward" in vars(linear) or nn.modules.module._has_any_global_hook()


def _joined(weights: Sequence[Tensor | None]) -> Tensor | None:
    """``(F_1 + F_2 + …, E)``, one matrix of all, if that is how they lie in memory."""
    first, rows, end = weights[0], 0, 0
    if torch.compiler.is_compiling():
        return None
    for weight in weights:
        if type(weight) is not nn.Parameter or not weight.is_contiguous() or (rows and weight.data_ptr() != end):
            return None
        rows, end = rows + weight.shape[0], weight.data_ptr() + weight.nbytes
    assert first is not None
    width, storage = first.shape[1], first.untyped_storage()
    if first.is_meta or end > storage.data_ptr() + storage.nbytes():  # neighbours by chance
        return None
    return first.as_strided((rows, width), (width, 1))
