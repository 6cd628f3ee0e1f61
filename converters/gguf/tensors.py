"""The tensors of a GGUF file: byte counts, offsets, dequantisation to float32."""

import math

import numpy as np
import torch
from torch import Tensor

from msrnn.errors import Error

from .header import Header

TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
)
"""The quantisation types that can be read: all that the gguf package dequantises."""
SCALE = ".scale"
"""Suffix of the factor of a whole matrix, ``(1,)``, which NVFP4 files have."""
CHUNK = 2**22
"""Number of values that are dequantised at once, because the gguf package makes several copies of its input."""


def read_tensor(header: Header, name: str) -> Tensor:
    """Return one tensor, dequantised to float32, as a copy. Raises as :func:`byte_count`."""
    import gguf  # deferred, because reading a config does not need the package

    info, n_bytes = header.tensors[name], byte_count(header, name)
    values = np.empty((math.prod(info.shape[:-1]), info.shape[-1]), np.float32)
    row_bytes, chunk_rows = n_bytes // len(values), max(1, CHUNK // info.shape[-1])
    for start in range(0, len(values), chunk_rows):
        rows = values[start : start + chunk_rows]
        data = np.fromfile(header.path, np.uint8, rows.shape[0] * row_bytes, offset=info.offset + start * row_bytes)
        rows[:] = gguf.quants.dequantize(data.reshape(-1, row_bytes), gguf.GGMLQuantizationType(info.ggml_type))
    return torch.from_numpy(values.reshape(info.shape))


def read_scaled(header: Header, name: str) -> Tensor:
    """Return one tensor as :func:`read_tensor` does, multiplied by its ``scale`` if the file has one."""
    x, scale = read_tensor(header, name), scale_of(name)
    return x * read_tensor(header, scale) if scale in header.tensors else x


def read_offset_norm(header: Header, name: str) -> Tensor:
    """Return the weight of a norm that is stored as 1 + weight, ``(E,)``, as :func:`read_tensor` does.

    The difference is exact for numbers of at least 1/2, so the norm multiplies by the numbers of the file. Writing the file
    rounded 1 + weight to float32, so binary digits of the weight that are worth less than 2⁻²³ may be lost. A bfloat16 weight
    of at least 2⁻¹⁶ has no such digits.
    """
    return read_tensor(header, name) - 1


def scale_of(name: str) -> str:
    """Return the name of the scale of a weight."""
    return name.removesuffix(".weight") + SCALE


def is_scale(header: Header, name: str) -> bool:
    """Return True for the scale of a matrix of the file."""
    weight = header.tensors.get(name.removesuffix(SCALE) + ".weight")
    return name.endswith(SCALE) and weight is not None and len(weight.shape) == 2 and header.tensors[name].shape == (1,)


def byte_count(header: Header, name: str) -> int:
    """Return the number of bytes of a tensor.

    Raises:
        Error: the quantisation type is not in ``TYPES``, a row is no multiple of the type's block, or the file is too short.
    """
    import gguf

    info, path = header.tensors[name], header.path
    ggml_type = {int(x): x for x in gguf.GGMLQuantizationType}.get(info.ggml_type)
    if ggml_type is None or ggml_type.name not in TYPES:
        label = info.ggml_type if ggml_type is None else ggml_type.name
        raise Error(
            f"{path}: tensor {name} is quantised as {label}; expected one of {', '.join(TYPES)}; take another file of the model"
        )
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
    if info.shape[-1] % block_values:
        raise Error(
            f"{path}: tensor {name} has rows of {info.shape[-1]}; {ggml_type.name} expects a multiple of {block_values}"
        )
    count = math.prod(info.shape) // block_values * block_bytes
    if info.offset + count > header.size:
        raise Error(f"{path}: ends inside tensor {name}, at {header.size} bytes; expected {info.offset + count}")
    return count


def check_offsets(header: Header) -> None:
    """Refuse gaps and overlaps, as llama.cpp does. Each tensor begins at the first aligned byte after the previous tensor.

    Raises:
        Error: an offset differs, bytes follow the last tensor, or :func:`byte_count` refuses a tensor.
    """
    at = end = header.start
    for name, info in sorted(header.tensors.items(), key=lambda item: item[1].offset):
        if info.offset != at:
            raise Error(f"{header.path}: tensor {name} is at byte {info.offset}; expected {at}, after the previous tensor")
        end = at + byte_count(header, name)
        at = -(-end // header.alignment) * header.alignment
    if not end <= header.size <= at:
        raise Error(f"{header.path} has {header.size} bytes; expected {at}, where its last tensor ends")
