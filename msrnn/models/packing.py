"""Packed weights of a model: which matrices are packed, their names in a file, and the modules that hold them.

Matrices of the layers have 4 bits (``int4``) or 8 (``int8``). The embedding and the LM head have 8 bits in both. A matrix with
a shape that does not fit int4 has 8 bits too. Norms, biases and sinks stay as they are. In a file, ``NAME.codes``,
``NAME.scales`` and, for 4 bits, ``NAME.zeros`` take the place of ``NAME.weight``
(:class:`~msrnn.layers.packed.matrix.PackedMatrix`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error
from ..layers.packed.matrix import GROUP, SCALE_DTYPE, PackedMatrix, fits_int4, quantise
from ..layers.packed.modules import Int4Linear, Int8Embedding, Int8Linear, PackedModule, float_names
from ..storage.lazy_tensors import LazyTensor
from .config import Config

QUANTISED_WEIGHTS = ("int4", "int8")
"""Values of ``weights=`` that quantise all matrices."""
KEPT_WEIGHTS = "packed"
"""The value of ``weights=`` that keeps the 4-bit matrices of a GGUF file."""
WEIGHT_CHOICES = (*QUANTISED_WEIGHTS, KEPT_WEIGHTS)
"""All values of ``weights=`` besides None."""
COMPUTE_DTYPE = torch.bfloat16
"""Dtype of the activations of a packed cell if none is given: PyTorch's kernels for packed matrices take bfloat16."""
EIGHT_BITS = ("embed", "head")
"""Modules that have 8 bits in every kind."""


@dataclass(frozen=True)
class LazyMatrix:
    """A packed matrix ``shape (F, E)`` of 4 or 8 bits; ``load`` returns it."""

    shape: tuple[int, int]
    bits: int
    load: Callable[[], PackedMatrix]


def pack_tensors(config: Any, tensors: Mapping[str, LazyTensor], weights: str) -> dict[str, LazyTensor]:
    """Return the parameters of a model with its matrices packed when they are read.

    Args:
        config: of the model.
        tensors: by the names of the parameters. A matrix that is packed in the wanted bits stays as it is; another packed one
            is dequantised and quantised again.
        weights: ``int4`` or ``int8``.

    Raises:
        Error: a :class:`Decoder` or an encoder; when a matrix is read, numbers that are not finite.
    """
    check_packable(config)
    kept: dict[str, LazyTensor] = {}
    matrices = {}
    for name, x in dequantise_tensors(tensors).items():
        stem = name.removesuffix(".weight")
        if len(x.shape) != 2:
            kept[name] = x
            continue
        bits = 4 if weights == "int4" and stem not in EIGHT_BITS and fits_int4(*x.shape) else 8
        codes = tensors.get(f"{stem}.codes")
        if codes is not None and code_bits(codes) == bits:
            kept |= {f"{stem}.{part}": tensors[f"{stem}.{part}"] for part in _parts((x.shape[0], x.shape[1]), bits)}
        else:
            matrices[stem] = LazyMatrix((x.shape[0], x.shape[1]), bits, partial(_quantised, name, x, bits))
    return kept | matrix_tensors(matrices)


def check_packable(config: Any) -> None:
    """Refuse a model without packed weights.

    Raises:
        Error: the model is a :class:`Decoder` or an encoder.
    """
    if not isinstance(config, Config):
        raise Error(f"weights= is given for a {config.family}; expected a published family, such as llama or qwen3")


def matrix_tensors(matrices: Mapping[str, LazyMatrix]) -> dict[str, LazyTensor]:
    """Return the parts of packed matrices under their names in a file. ``matrices`` have the names of their modules.

    A matrix is loaded once if its parts are read one after the other.
    """

    @lru_cache(maxsize=1)
    def matrix(stem: str) -> PackedMatrix:
        return matrices[stem].load()

    def part(stem: str, name: str) -> Tensor:
        return getattr(matrix(stem), name)

    tensors = {}
    for stem, x in matrices.items():
        for name, (shape, dtype) in _parts(x.shape, x.bits).items():
            tensors[f"{stem}.{name}"] = LazyTensor(shape, dtype, partial(part, stem, name))
    return tensors


def packed_names(tensors: Mapping[str, LazyTensor]) -> set[str]:
    """Return the names of the parts of packed matrices, which keep their dtype."""
    stems = {name.removesuffix(".codes") for name in tensors if name.endswith(".codes")}
    return {name for name in tensors if name.rpartition(".")[0] in stems}


def dequantise_tensors(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return ``tensors`` with float32 matrices in place of packed ones, which have to be complete."""
    return {name: tensors[name] if name in tensors else _dequantised(tensors, name) for name in float_names(tensors)}


def kind_of_weights(cell: Cell) -> str | None:
    """Return ``int4`` if a matrix of the cell has 4 bits, ``int8`` if others are packed, None for float weights."""
    bits = {module.bits for module in cell.modules() if isinstance(module, PackedModule)}
    return f"int{min(bits)}" if bits else None


def code_bits(codes: LazyTensor) -> int:
    """Return the bits of a packed matrix, 4 or 8, from its codes."""
    return 4 if codes.dtype == torch.uint8 else 8


def install_packed_modules(cell: Cell, tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Replace the modules of ``cell`` for which ``tensors`` has packed matrices; return their names.

    Raises:
        Error: the codes of a matrix that the model does not have, or codes of another type.
    """
    stems = sorted(name.removesuffix(".codes") for name in tensors if name.endswith(".codes"))
    if stems:
        check_packable(cell.config)
    matrices = {name.removesuffix(".weight"): x for name, x in cell.named_parameters() if x.ndim == 2}
    for stem in stems:
        if stem not in matrices:
            raise Error(f"tensor '{stem}.codes' is not part of this model")
        F, E = matrices[stem].shape
        dtype = tensors[f"{stem}.codes"].dtype
        four = dtype == torch.uint8
        if not (four or dtype == torch.int8) or (four and (stem == "embed" or not fits_int4(F, E))):
            raise Error(f"tensor '{stem}.codes' is {dtype}; expected torch.int8, or torch.uint8 for a matrix that fits int4")
        parent, _, name = stem.rpartition(".")
        kind = Int4Linear if four else Int8Embedding if stem == "embed" else Int8Linear
        with torch.device("meta"):
            setattr(cell.get_submodule(parent), name, kind(E, F).requires_grad_(False))
    return stems


def read_packed_matrix(module: PackedModule, stem: str, tensors: Mapping[str, LazyTensor]) -> PackedMatrix:
    """Read the parts of the matrix of ``module``."""
    return PackedMatrix(*(tensors[f"{stem}.{name}"].read() for name in _parts(module.shape, module.bits)))


def _parts(shape: tuple[int, int], bits: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of the parts of a matrix ``(F, E)``."""
    F, E = shape
    if bits == 8:
        return {"codes": ((F, E), torch.int8), "scales": ((F,), SCALE_DTYPE)}
    scales = ((F, E // GROUP), SCALE_DTYPE)
    return {"codes": ((F, E // 2), torch.uint8), "scales": scales, "zeros": scales}


def _quantised(name: str, x: LazyTensor, bits: int) -> PackedMatrix:
    matrix = quantise(x.read(), bits)
    if not all(numbers.isfinite().all() for numbers in matrix[1:] if numbers is not None):
        raise Error(f"tensor {name!r} has numbers that are NaN, infinite or too large; expected finite ones, to pack it")
    return matrix


def _dequantised(tensors: Mapping[str, LazyTensor], name: str) -> LazyTensor:
    """Return the float matrix ``name`` of packed parts in ``tensors``."""
    stem = name.removesuffix(".weight")
    codes = tensors[f"{stem}.codes"]
    bits = code_bits(codes)
    F, E = codes.shape[0], codes.shape[1] * (8 // bits)

    def load() -> Tensor:
        return PackedMatrix(*(tensors[f"{stem}.{part}"].read() for part in _parts((F, E), bits))).dequantise()

    return LazyTensor((F, E), torch.float32, load)
