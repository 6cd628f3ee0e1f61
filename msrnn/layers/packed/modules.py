"""Modules that hold packed matrices in place of :class:`~msrnn.layers.linear.Linear` and the embedding.

Codes and scales are buffers: they are not trained. ``state_dict`` contains them as a :class:`PackedMatrix` names them
(``codes``, ``scales``, ``zeros``), in the same layout on every CPU. ``to`` changes the dtype of the scales, except to
float16, which has no numbers for small ones. The codes do not change.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import describe
from ..hooks import has_hooks
from ..linear import MAX_MOVED_BYTES, with_own_storage
from .kernels import block_rows, from_blocks, int4_linear, int8_linear, interleave_scales, to_blocks
from .matrix import GROUP, SCALE_DTYPE, PackedMatrix


class PackedModule(nn.Module):
    """A module with one packed matrix ``(F, E)``; the base class of all modules here."""

    bits: ClassVar[int]
    shape: tuple[int, int]

    @property
    def matrix(self) -> PackedMatrix:
        """The matrix, with codes in the layout of files."""
        raise NotImplementedError

    def set_matrix(self, matrix: PackedMatrix) -> None:
        """Replace the matrix by one of the same shape and bits, in the dtype and on the device of this module."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedModule":
        """Apply ``to``, ``half`` and the like. Scales stay bfloat16 in float16 cells, because small ones would become 0."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, x in self._buffers.items():
            if x is not None and x.dtype == torch.float16 and (old := before[name]) is not None:
                self._buffers[name] = torch.empty_like(x, dtype=SCALE_DTYPE) if old.is_meta else old.to(x.device, SCALE_DTYPE)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, x in self.matrix._asdict().items():
            if x is not None:
                destination[prefix + name] = x

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        parts = {prefix + name: x for name, x in self.matrix._asdict().items() if x is not None}
        if strict:
            unexpected_keys += [key for key in state_dict if key.startswith(prefix) and key not in parts]
        if missing := [key for key in parts if key not in state_dict]:
            missing_keys += missing
            return
        for key, x in parts.items():
            found = state_dict[key]
            fits = isinstance(found, Tensor) and found.shape == x.shape
            if not fits or (found.dtype != x.dtype and not (x.is_floating_point() and found.is_floating_point())):
                error_msgs.append(f"{key} is {describe(found)}; expected {x.dtype} of shape {tuple(x.shape)}")
                return
        assign = local_metadata.get("assign_to_params_buffers", False)
        if assign:  # also where this module is on the meta device
            self._buffers.update(
                {name: torch.empty_like(x, device=found.device) for name, x in self.named_buffers(recurse=False)}
            )
        before = dict(self._buffers)
        self.set_matrix(PackedMatrix(*(state_dict[key] for key in parts)))
        if not assign:  # copied, so that fused matrices stay fused
            for name, x in before.items():
                if x is not None and (new := self._buffers[name]) is not None:
                    self._buffers[name] = x.copy_(new)


class PackedLinear(PackedModule):
    """A linear map without a bias, x Wᵀ."""

    fused_dims: ClassVar[dict[str, int]]
    """Names of the two buffers, and the dimension of each along which matrices for the same x are concatenated."""
    product: ClassVar[Callable[..., Tensor]]
    """``product(x (…, E), *buffers) -> (…, F)``."""
    _fused: "FusedMatrices | None" = None

    @property
    def in_features(self) -> int:
        return self.shape[1]

    @property
    def out_features(self) -> int:
        return self.shape[0]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ, ``(…, E) -> (…, F)``."""
        own = self._buffers
        # attributes are slower to read, and contain the tensors that a parametrization computes
        tensors = own.values() if len(own) == len(self.fused_dims) else (getattr(self, name) for name in self.fused_dims)
        return type(self).product(x, *tensors)

    def fused_product(self, x: Tensor, modules: Sequence[nn.Module]) -> Tensor | None:
        """Return the concatenated outputs of ``modules``, of which this is the first, by one product.

        None if :func:`fuse_packed_` has not fused them, a matrix has been replaced since, or a module has hooks.
        """
        fused = self._fused
        if fused is None or len(fused.parts) != len(modules):
            return None
        for module, (first, second) in zip(modules, fused.parts, strict=True):
            tensors = list(module._buffers.values())
            if len(tensors) != 2 or tensors[0] is not first or tensors[1] is not second or has_hooks(module):
                return None
        return type(self).product(x, *fused.tensors)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled; the layer fuses its matrices again."""
        return {name: value for name, value in vars(self).items() if name != "_fused"}


class FusedMatrices(NamedTuple):
    """Matrices that multiply the same x: the concatenated buffers, and the buffers of each module, which are views of them."""

    tensors: list[Tensor]
    parts: list[tuple[Tensor, Tensor]]


class Int4Linear(PackedLinear):
    """A linear map in 4 bits. The codes are held in the blocks that the kernel of this CPU reads."""

    bits = 4
    product = staticmethod(int4_linear)
    blocks: Tensor
    scales_and_zeros: Tensor
    fused_dims: ClassVar[dict[str, int]] = {"blocks": 0, "scales_and_zeros": 1}

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.shape = (n_out, n_in)
        self.register_buffer("blocks", torch.zeros(n_out, n_in // 2, dtype=torch.uint8))
        self.register_buffer("scales_and_zeros", torch.zeros(n_in // GROUP, n_out, 2, dtype=SCALE_DTYPE))

    @property
    def matrix(self) -> PackedMatrix:
        scales, zeros = self.scales_and_zeros.to(SCALE_DTYPE).transpose(0, 1).unbind(-1)
        return PackedMatrix(from_blocks(self.blocks, block_rows(self.shape[0])), scales.contiguous(), zeros.contiguous())

    def set_matrix(self, matrix: PackedMatrix) -> None:
        blocks = with_own_storage(to_blocks(matrix.codes.to(self.blocks.device), block_rows(self.shape[0])))
        self.blocks, self.scales_and_zeros = blocks, interleave_scales(matrix).to(self.scales_and_zeros)


class Int8Linear(PackedLinear):
    """A linear map in 8 bits."""

    bits = 8
    product = staticmethod(int8_linear)
    codes: Tensor
    scales: Tensor
    fused_dims: ClassVar[dict[str, int]] = {"codes": 0, "scales": 0}

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.shape = (n_out, n_in)
        self.register_buffer("codes", torch.zeros(n_out, n_in, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(n_out, dtype=SCALE_DTYPE))

    @property
    def matrix(self) -> PackedMatrix:
        return PackedMatrix(self.codes, self.scales.to(SCALE_DTYPE))

    def set_matrix(self, matrix: PackedMatrix) -> None:
        self.codes = with_own_storage(matrix.codes.to(self.codes.device))
        self.scales = matrix.scales.to(self.scales)


class Int8Embedding(Int8Linear):
    """A token embedding in 8 bits, ``(V, E)``. :meth:`logits` multiplies by the same matrix, as a tied LM head."""

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids ``(…,)`` as ``(…, E)``, in at least float32. The network rounds to the dtype of the cell."""
        wide = torch.promote_types(self.scales.dtype, torch.float32)
        return self.codes[ids].to(wide) * self.scales[ids].to(wide).unsqueeze(-1)

    def logits(self, x: Tensor) -> Tensor:
        """Return x Wᵀ, ``(…, E) -> (…, V)``."""
        return self.product(x, self.codes, self.scales)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}"


def fuse_packed_(*modules: nn.Module) -> bool:
    """Fuse the matrices of modules with the same input, in this order, so that one product computes all of them.

    Large matrices on a CPU stay where they are: they would be copied, and several products are as fast as one. So do matrices
    that are shared between processes.

    Returns:
        False if a module is not packed, or the modules have different bits, widths, dtypes, devices or blocks.
    """
    first = modules[0]
    if not isinstance(first, PackedLinear) or any(type(module) is not type(first) for module in modules):
        return False
    sizes = [module.shape[0] for module in modules if isinstance(module, PackedLinear)]
    if first.bits == 4 and len({block_rows(F) for F in (*sizes, sum(sizes))}) > 1:  # blocks of 32 and of 64 rows
        return False
    parts = {name: [x for module in modules if (x := module._buffers[name]) is not None] for name in first.fused_dims}
    if any(x.is_cpu and x.is_shared() for group in parts.values() for x in group):  # between processes
        return True
    for name, dim in first.fused_dims.items():
        if len({(x.dtype, x.device, *x.shape[:dim], *x.shape[dim + 1 :]) for x in parts[name]}) > 1:
            return False
    if parts[next(iter(parts))][0].is_cpu and sum(x.nbytes for group in parts.values() for x in group) > MAX_MOVED_BYTES:
        return True
    tensors = []
    for name, dim in first.fused_dims.items():
        tensors.append(torch.cat(parts[name], dim))
        for module, part in zip(modules, tensors[-1].split([x.shape[dim] for x in parts[name]], dim), strict=True):
            module._buffers[name] = part
    first._fused = FusedMatrices(tensors, [tuple(module._buffers.values()) for module in modules])  # type: ignore[misc]
    return True


def float_names(names: Iterable[str]) -> set[str]:
    """Return the names of tensors, with ``NAME.weight`` in place of the parts of each packed matrix."""
    found = set(names)
    stems = {name.removesuffix(".codes") for name in found if name.endswith(".codes")}
    return {name for name in found if name.rpartition(".")[0] not in stems} | {f"{stem}.weight" for stem in stems}
