"""The matrices of a GGUF file that keep their own four bits: Q4_0 and Q4_1.

Both have blocks of 32 numbers, as int4 has groups of 32 (:mod:`msrnn.layers.packed.matrix`). A block of Q4_0 is a scale d in
float16 and 32 codes c with $w = d (c - 8)$; a block of Q4_1 is d, a minimum m and 32 codes with $w = d c + m$
(llama.cpp, ``ggml/src/ggml-common.h`` and ``ggml-quants.c``). The codes stay, and only d and m + 8 d are rounded to bfloat16.
"""

from collections.abc import Mapping
from functools import partial

import gguf
import numpy as np
import torch

from msrnn.layers.packed.matrix import GROUP, SCALE_DTYPE, PackedMatrix, fits_int4, pack_codes
from msrnn.models.packing import LazyMatrix

from .header import Header
from .tensors import byte_count, scale_of

HEADER_NUMBERS = {"Q4_0": 1, "Q4_1": 2}
"""Number of float16 numbers before the codes of a block."""


def packed_matrices(header: Header, names: Mapping[str, str]) -> dict[str, LazyMatrix]:
    """Return the matrices that can be kept in 4 bits.

    Args:
        header: of the file.
        names: msrnn's names of the modules, by the names of their weights in the file.
    """
    found = {}
    for name, stem in names.items():
        info = header.tensors[name]
        kind = gguf.GGMLQuantizationType(info.ggml_type).name
        if kind in HEADER_NUMBERS and len(info.shape) == 2 and fits_int4(*info.shape) and scale_of(name) not in header.tensors:
            found[stem] = LazyMatrix((info.shape[0], info.shape[1]), 4, partial(read_q4_matrix, header, name))
    return found


def read_q4_matrix(header: Header, name: str) -> PackedMatrix:
    """Return a matrix of type Q4_0 or Q4_1 with its own codes. Raises as :func:`byte_count`."""
    info, n_bytes = header.tensors[name], byte_count(header, name)
    (F, E), n = info.shape, HEADER_NUMBERS[gguf.GGMLQuantizationType(info.ggml_type).name]
    data = np.fromfile(header.path, np.uint8, n_bytes, offset=info.offset)
    blocks = torch.from_numpy(data).view(F, E // GROUP, 2 * n + GROUP // 2)
    numbers = blocks[..., : 2 * n].contiguous().view(torch.float16).float()  # (F, E / 32, 1 or 2)
    scale = numbers[..., 0]
    zero = numbers[..., 1] + 8 * scale if n == 2 else torch.zeros_like(scale)
    nibbles = blocks[..., 2 * n :]  # byte i has the codes i and i + 16
    codes = torch.cat((nibbles & 15, nibbles >> 4), dim=-1).flatten(1)  # (F, E)
    return PackedMatrix(pack_codes(codes), scale.to(SCALE_DTYPE), zero.to(SCALE_DTYPE))
