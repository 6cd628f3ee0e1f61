"""Products x Wᵀ with packed matrices.

PyTorch has kernels that read the codes of a matrix themselves (``aten/src/ATen/native/cpu/int4mm_kernel.cpp``,
``int8mm_kernel.cpp``). They take bfloat16 inputs, are made for few rows, and have no derivative. All other products dequantise
a part of the matrix at a time, multiply by it and drop it. Both ways use the same numbers, up to rounding.

The int4 kernel reads the blocks of :mod:`.matrix`, or blocks of the same form with 64 rows on a CPU with AVX-512.
"""

import torch
from einops import rearrange
from torch import Tensor

from ..differentiation import in_transform
from ..emulation import upcast_if_emulated
from .matrix import BLOCK_ROWS, GROUP, PackedMatrix, pack_codes

MAX_KERNEL_ROWS = {4: 64, 8: 4}
"""Maximum number of rows of x that the kernels multiply, by the bits of the matrix. From then on dequantising is faster."""
PART_ELEMENTS = 2**20
"""Number of elements of a matrix that are dequantised at once."""


def _kernel_block_rows() -> int | None:
    """Return the number of rows of a block that the int4 kernel of this CPU reads; None if it has no such kernel."""
    if not hasattr(torch, "_convert_weight_to_int4pack_for_cpu") or not hasattr(torch, "_weight_int4pack_mm_for_cpu"):
        return None
    for rows in (64, 32):
        codes = torch.arange(2 * rows * GROUP, dtype=torch.int32, device="cpu").view(2 * rows, GROUP).remainder(15)
        expected = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
        if torch.equal(expected.flatten(), to_blocks(pack_codes(codes.to(torch.uint8)), rows).flatten()):
            return rows
    return None


def block_rows(n_rows: int) -> int:
    """Return the number of rows of the blocks in memory of a matrix with ``n_rows`` rows."""
    rows = KERNEL_BLOCK_ROWS
    return rows if rows and n_rows % rows == 0 else BLOCK_ROWS


def to_blocks(codes: Tensor, rows: int) -> Tensor:
    """Return the codes ``(F, E / 2)`` of a :class:`PackedMatrix` in blocks of ``rows`` rows, 32 or 64. 32 copies nothing."""
    if rows == BLOCK_ROWS or codes.is_meta:  # a meta tensor has the right shape; shifts of it would import the compiler
        return codes
    first, second = codes.view(-1, 2, 2 * codes.shape[1], BLOCK_ROWS // 2).unbind(1)  # (F / 64, E, 16)
    return torch.cat((first & 15 | second << 4, first >> 4 | second & 240), dim=2).view(codes.shape)


def from_blocks(blocks: Tensor, rows: int) -> Tensor:
    """Return the codes of blocks of ``rows`` rows; the inverse of :func:`to_blocks`."""
    if rows == BLOCK_ROWS or blocks.is_meta:
        return blocks
    upper, lower = blocks.view(-1, 2 * blocks.shape[1], 2, BLOCK_ROWS // 2).unbind(2)  # rows 0 … 15 and 32 … 47; the others
    return torch.stack((upper & 15 | lower << 4, upper >> 4 | lower & 240), dim=1).view(blocks.shape)


def interleave_scales(matrix: PackedMatrix) -> Tensor:
    """Return scales and zeros ``(E / 32, F, 2)``, as the int4 kernel reads them."""
    assert matrix.zeros is not None
    return torch.stack((matrix.scales, matrix.zeros), dim=-1).transpose(0, 1).contiguous()


def int4_linear(x: Tensor, blocks: Tensor, scales_and_zeros: Tensor) -> Tensor:
    """Return x Wᵀ, ``(…, E) -> (…, F)``, in the dtype of x.

    Args:
        x: ``(…, E)``.
        blocks: ``(F, E / 2)`` uint8, in blocks of :func:`block_rows` rows.
        scales_and_zeros: ``(E / 32, F, 2)``.
    """
    F, E = blocks.shape[0], x.shape[-1]
    if _uses_kernel(x, scales_and_zeros, MAX_KERNEL_ROWS[4]) and block_rows(F) == KERNEL_BLOCK_ROWS:
        x, scales_and_zeros = x.contiguous(), scales_and_zeros.contiguous()
        if x.ndim == 2:
            return torch._weight_int4pack_mm_for_cpu(x, blocks, GROUP, scales_and_zeros)
        return torch._weight_int4pack_mm_for_cpu(x.view(-1, E), blocks, GROUP, scales_and_zeros).view(*x.shape[:-1], F)
    wide, rows = upcast_if_emulated(x).reshape(-1, E), block_rows(F)  # (M, E)
    count = rows * max(1, PART_ELEMENTS // (E * rows))
    outputs = []
    for part in zip(blocks.split(count), scales_and_zeros.split(count, dim=1), strict=True):
        weight = dequantise_blocks(*part, rows, wide.dtype)  # (2, E, F' / 2)
        y = torch.bmm(wide.expand(2, -1, -1), weight)  # matmul would copy the matrix
        outputs.append(rearrange(y, "half m (block j) -> m (block half j)", j=rows // 2))
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
    return y.to(x.dtype).view(*x.shape[:-1], F)


def int8_linear(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """Return x Wᵀ, ``(…, E) -> (…, F)``, in the dtype of x, for ``codes (F, E)`` int8 and ``scales (F,)``."""
    if _uses_kernel(x, scales, MAX_KERNEL_ROWS[8]) and _has_aligned_rows(codes):
        x = x.contiguous()
        if not torch.compiler.is_compiling() and x.data_ptr() % 32:  # the kernel ends the process for such a view
            x = x.clone()
        y = torch._weight_int8pack_mm(x if x.ndim == 2 else x.view(-1, x.shape[-1]), codes, scales)
        return y if x.ndim == 2 else y.view(*x.shape[:-1], y.shape[-1])
    wide = x.float() if x.dtype is torch.float16 else upcast_if_emulated(x)  # products with codes can exceed float16
    parts = codes.split(max(1, PART_ELEMENTS // codes.shape[1]))
    y = torch.cat([wide @ part.to(wide.dtype).T for part in parts], dim=-1)
    return (y * scales.to(y.dtype)).to(x.dtype)


def dequantise_blocks(blocks: Tensor, scales_and_zeros: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Return the transposed matrix of blocks of ``rows`` rows, ``(2, E, F / 2)``, rounded once to ``dtype``.

    The first half of every block is in the first half of the result, because the codes of both are in the same bytes.
    """
    F, E = blocks.shape[0], 2 * blocks.shape[1]
    wide = torch.promote_types(dtype, torch.float32)
    columns = rearrange(blocks.view(-1, E, rows // 2), "block e j -> e (block j)")  # a copy: the next operations are fast on it
    weight = torch.empty(2, E, F // 2, dtype=wide, device=blocks.device)
    weight[0], weight[1] = columns & 15, columns >> 4
    scale, zero = rearrange(
        scales_and_zeros.to(wide), "group (block half j) part -> part half group 1 (block j)", half=2, j=rows // 2
    )
    groups = weight.view(2, E // GROUP, GROUP, F // 2)
    return groups.mul_(scale).add_(zero - 8 * scale).view(2, E, F // 2).to(dtype)


def _has_aligned_rows(codes: Tensor) -> bool:
    """Return True if all rows begin at multiples of 16 bytes. On AVX-512 the int8 kernel ends the process for other rows."""
    return codes.shape[1] % 16 == 0 and (torch.compiler.is_compiling() or codes.data_ptr() % 16 == 0)


def _uses_kernel(x: Tensor, scales: Tensor, max_rows: int) -> bool:
    """Return True for a product that a kernel computes: few rows of bfloat16 on a CPU, without derivatives."""
    return (
        x.dtype is torch.bfloat16
        and scales.dtype is torch.bfloat16
        and x.is_cpu
        and 0 < x.numel() <= max_rows * x.shape[-1]
        and not (x.requires_grad and torch.is_grad_enabled())
        and not in_transform()
    )


KERNEL_BLOCK_ROWS = _kernel_block_rows()
"""Number of rows of a block that the int4 kernel of this CPU reads, 64 or 32; None if it has no such kernel.

It is found when the module is imported, by packing a small matrix, because ``torch.compile`` cannot trace that.
"""
