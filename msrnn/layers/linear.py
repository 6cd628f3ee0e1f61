"""Matrix products of the layers, x Wᵀ without a bias, with the faster of two CPU kernels.

A step multiplies one row by every matrix, so memory bandwidth limits its speed. On x86 CPUs PyTorch computes float32 products
with MKL. The oneDNN kernel that PyTorch uses for compiled graphs is faster for 1 to 256 rows (``tests/benchmarks/linear.py``).
It has no derivative, so products that need a gradient use ``functional.linear``. It also caches about 1 MB of compiled code for
each number of rows and each matrix shape. Many rows are therefore padded to one of few numbers, which bounds the cache.

Matrices that multiply the same x (q, k and v; gate and up) are read faster as one matrix. :func:`fuse_storage_` makes their
parameters adjacent in one storage, and :func:`fused_linear` then computes one product for all of them. This is only an
optimisation: a parameter that has moved to other storage is multiplied separately.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .differentiation import in_transform
from .emulation import upcast_if_emulated
from .hooks import has_hooks

UPCAST_MIN_ROWS = 4
"""Minimum number of rows for which a 16-bit matrix is converted to float32 before an emulated product."""
PLAIN_TENSORS = (nn.Parameter, Tensor)
"""Types of weights that the kernel accepts: no subclass, such as a quantised weight of another library."""
FUSED_DEVICES = ("cpu", "cuda")
"""Devices where weights share a storage. :func:`with_own_storage` needs DLPack, which other devices may not have."""
MAX_MOVED_BYTES = 2**25
"""Groups of more bytes on a CPU are not moved into one storage. One product of such a group is at most 7 % faster than several,
and moving the mapped weights of a 7B model would copy two thirds of them."""
HAS_KERNEL = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return x Wᵀ, ``(…, E), (F, E) -> (…, F)``, equal to ``functional.linear`` up to rounding."""
    if x.numel() >= UPCAST_MIN_ROWS * x.shape[-1] and (wide := upcast_if_emulated(x)) is not x:
        return linear(wide, weight.to(wide.dtype)).to(x.dtype)
    plain = (
        not HAS_KERNEL
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.numel() == 0
        or torch.compiler.is_compiling()
        or in_transform()
        or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        or type(weight) not in PLAIN_TENSORS
    )
    if plain:
        return functional.linear(x, weight)
    rows = x.numel() // x.shape[-1]
    padding = -rows % (1 if rows <= 16 else 16 if rows <= 64 else 64)
    padded = functional.pad(x.flatten(0, -2), (0, 0, 0, padding)) if padding else x
    y = torch.ops.mkldnn._linear_pointwise(padded, weight, None, "none", [], "")
    return y[:rows].view(*x.shape[:-1], y.shape[-1]) if padding else y


class Linear(nn.Linear):
    """``nn.Linear`` without a bias, computed by :func:`linear`."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ, ``(…, E) -> (…, F)``."""
        return linear(x, self.weight)


def fused_linear(x: Tensor, *linears: nn.Module) -> Tensor:
    """Return the concatenated outputs of several modules, ``(…, E) -> (…, F_1 + F_2 + …)``.

    One product computes all of them if the weights are adjacent in memory (:func:`fuse_storage_`), no module has a hook, and
    no weight needs a gradient.
    """
    if (fused_product := getattr(linears[0], "fused_product", None)) is not None:  # packed matrices
        y = fused_product(x, linears)
        return torch.cat([module(x) for module in linears], dim=-1) if y is None else y
    weights = [_plain_weight(module) for module in linears]
    trainable = torch.is_grad_enabled() and any(w is not None and w.requires_grad for w in weights)
    if trainable or (weight := _fused_weight(weights)) is None:
        y = torch.cat([module(x) for module in linears], dim=-1)
        return y if y.dtype == x.dtype or torch._C._is_any_autocast_enabled() else y.to(x.dtype)
    return linear(x, weight)


def gated_linear(x: Tensor, gate: nn.Module, up: nn.Module, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Return activation(gate(x)) · up(x), the hidden layer of a gated MLP (arXiv:2002.05202), ``(…, E) -> (…, F)``."""
    gated, linear_part = fused_linear(x, gate, up).chunk(2, dim=-1)
    return activation(gated) * linear_part


def fuse_storage_(*linears: nn.Module) -> None:
    """Move the weights of several modules into one storage, in this order. Parameters, values and gradients stay the same.

    Nothing happens where the weights differ in dtype, device or width, are shared between processes, are fused already or too
    large (:data:`MAX_MOVED_BYTES`), and on devices other than :data:`FUSED_DEVICES`.
    """
    weights = [w for module in linears if type(w := module._parameters.get("weight")) is nn.Parameter]
    kinds = {(w.dtype, w.device, w.shape[1:], w.layout) for w in weights}
    if len(weights) < len(linears) or len(kinds) != 1 or weights[0].layout != torch.strided:
        return
    device = weights[0].device.type
    if device not in FUSED_DEVICES or (device == "cpu" and sum(w.nbytes for w in weights) > MAX_MOVED_BYTES):
        return
    if _fused_weight(weights) is None and not (device == "cpu" and weights[0].is_shared()):  # always True on CUDA
        with torch.inference_mode(weights[0].is_inference()):
            rows = torch.cat([w.detach() for w in weights])
        for weight, part in zip(weights, rows.split([len(w) for w in weights]), strict=True):
            weight.data = part


def with_own_storage(x: Tensor) -> Tensor:
    """Return a tensor over the memory of ``x`` with a storage of its own; ``x`` itself if its storage has nothing else.

    Savers of state dicts take tensors of one storage for copies of one tensor, or write the storage of all of them.
    """
    if type(x) is not Tensor or x.device.type not in FUSED_DEVICES or not x.is_contiguous():
        return x
    return x if x.untyped_storage().nbytes() == x.nbytes else torch.from_dlpack(x)


def _plain_weight(module: nn.Module) -> Tensor | None:
    """Return the weight of a :class:`Linear` without hooks; None for another module."""
    return module._parameters.get("weight") if type(module) is Linear and not has_hooks(module) else None


def _fused_weight(weights: Sequence[Tensor | None]) -> Tensor | None:
    """Return ``(F_1 + F_2 + …, E)``, a view of all weights, if they are adjacent in one storage; otherwise None."""
    first, rows, end = weights[0], 0, 0
    if torch.compiler.is_compiling():
        return None
    for weight in weights:
        if type(weight) is not nn.Parameter or not weight.is_contiguous() or (rows and weight.data_ptr() != end):
            return None
        rows, end = rows + weight.shape[0], weight.data_ptr() + weight.nbytes
    assert first is not None
    width, storage = first.shape[1], first.untyped_storage()
    if first.is_meta or end > storage.data_ptr() + storage.nbytes():  # adjacent by chance, in different storages
        return None
    return first.as_strided((rows, width), (width, 1))
