"""A matrix as integer codes with scales: the numbers that a packed model stores, and how they are chosen.

int4: 32 consecutive numbers of a row share a scale s and a zero z, and $w = (c - 8)\\,s + z$ with a code c from 0 to 15.
This is the form of the blocks of Q4_0 and Q4_1 in GGUF files, and of PyTorch's int4 kernels.

Codes of int4 are stored in blocks of 32 rows, as the AVX2 kernel of PyTorch reads them: ``(E, 16)`` bytes for each block. Byte
j of a column contains the code of row j in its low bits and of row j + 16 in its high bits.

int8: a row shares a scale s, and $w = c\\,s$ with a code c from −127 to 127.

Quantisation rounds to nearest and needs no data besides the matrix. For int4 it tries a few ranges for every group and keeps
the one with the smallest squared error. For int8 the range is that of the row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 32
"""Number of consecutive numbers of a row that share a scale in int4."""
BLOCK_ROWS = 32
"""Number of rows of a block of int4 codes."""
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Ranges that int4 tries, relative to that of the group. A smaller range has smaller rounding errors and clips numbers."""
SCALE_DTYPE = torch.bfloat16
"""Dtype of scales and zeros, that of PyTorch's kernels."""
CHUNK_ELEMENTS = 2**18
"""Number of elements that are quantised at once: intermediate results fit the caches, and take few MB."""


class PackedMatrix(NamedTuple):
    """A matrix ``(F, E)`` in 4 or 8 bits.

    Attributes:
        codes: int4: ``(F, E / 2)`` uint8, the blocks one after another; int8: ``(F, E)`` int8.
        scales: int4: ``(F, E / 32)``; int8: ``(F,)``; bfloat16.
        zeros: int4: as ``scales``; int8: None.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrix ``(F, E)`` in a floating-point dtype of at least the precision of float32, or rounded to it."""
        wide = torch.promote_types(dtype, torch.float32)
        if self.zeros is None:
            return (self.codes.to(wide) * self.scales.to(wide)[:, None]).to(dtype)
        groups = unpack_codes(self.codes).unflatten(1, (-1, GROUP)).to(wide) - 8  # (F, E / 32, 32)
        return (groups * self.scales.to(wide)[..., None] + self.zeros.to(wide)[..., None]).flatten(1).to(dtype)


def fits_int4(n_rows: int, n_columns: int) -> bool:
    """Return True if a matrix of this shape can be stored in int4."""
    return n_rows % BLOCK_ROWS == 0 and n_columns % GROUP == 0


def pack_codes(codes: Tensor) -> Tensor:
    """Return codes 0 … 15 in blocks, ``(F, E) -> (F, E / 2)`` uint8."""
    low, high = codes.unflatten(0, (-1, 2, BLOCK_ROWS // 2)).unbind(1)  # (F / 32, 16, E)
    return (low | high << 4).transpose(1, 2).reshape(codes.shape[0], -1)


def unpack_codes(blocks: Tensor) -> Tensor:
    """Return the codes 0 … 15 of :func:`pack_codes`, ``(F, E / 2) -> (F, E)`` uint8."""
    columns = blocks.view(-1, 2 * blocks.shape[1], BLOCK_ROWS // 2)  # (F / 32, E, 16)
    return torch.cat((columns & 15, columns >> 4), dim=2).transpose(1, 2).flatten(0, 1)


def quantise(weight: Tensor, bits: int) -> PackedMatrix:
    """Return a matrix ``(F, E)`` in 4 or 8 bits. For 4 bits its shape has to fit (:func:`fits_int4`).

    Groups or rows with a number that is not finite get a scale that is not finite.
    """
    rows = BLOCK_ROWS * max(1, CHUNK_ELEMENTS // (BLOCK_ROWS * max(1, weight.shape[1])))
    parts = [(_quantise_int4 if bits == 4 else _quantise_int8)(part.float()) for part in weight.detach().split(rows)]
    codes, scales, zeros = zip(*parts, strict=True)
    return PackedMatrix(torch.cat(codes), torch.cat(scales), torch.cat(zeros) if bits == 4 else None)


def _quantise_int4(weight: Tensor) -> PackedMatrix:
    groups = weight.unflatten(1, (-1, GROUP))  # (F, E / 32, 32)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    best: tuple[Tensor, ...] = ()
    for shrink in SHRINK:
        scale = ((high - low) * (shrink / 15)).to(SCALE_DTYPE).float()
        zero = (low * shrink + 8 * scale).to(SCALE_DTYPE).float()
        codes = ((groups - zero) / scale.masked_fill(scale == 0, 1)).round_().add_(8).clamp_(0, 15)
        error = ((codes - 8) * scale + zero - groups).square_().sum(-1, keepdim=True)
        found = error, scale, zero, codes
        best = tuple(torch.where(error < best[0], *pair) for pair in zip(found, best, strict=True)) if best else found
    _, scale, zero, codes = best
    return PackedMatrix(
        pack_codes(codes.to(torch.uint8).flatten(1)), scale[..., 0].to(SCALE_DTYPE), zero[..., 0].to(SCALE_DTYPE)
    )


def _quantise_int8(weight: Tensor) -> PackedMatrix:
    scales = (weight.abs().amax(dim=1) / 127).to(SCALE_DTYPE)
    codes = weight / scales.float().masked_fill(scales == 0, 1)[:, None]
    return PackedMatrix(codes.round_().clamp_(-127, 127).to(torch.int8), scales)
