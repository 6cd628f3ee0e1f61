"""Cells from a config and tensors: check, build, and load a model folder (:mod:`msrnn.storage.model_folder`)."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from ..cell.cell import Cell
from ..cell.layer import RecurrentLayer
from ..errors import Error, can_compute, check_device, check_dtype
from ..layers.packed.modules import PackedModule
from ..storage.lazy_tensors import LazyTensor
from ..storage.model_folder import open_weights, read_config_fields, read_extra_files
from .packing import install_packed_modules, packed_names, read_matrix
from .registry import AnyConfig, build_on_meta, config_from_dict


def load(folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Cell:
    """Return the cell in a folder that :meth:`Cell.save` wrote, in eval mode with frozen parameters.

    Args:
        folder: its path.
        dtype: of the parameters; None keeps the dtype of the file.
        device: of the parameters; None is the CPU.

    Raises:
        Error: the folder does not exist, a file is missing or corrupt, or the tensors do not match the config.
    """
    if not isinstance(folder, str | Path) or not str(folder):
        raise Error(f"folder is {folder!r:.60}; expected a str or a Path")
    folder = Path(folder)
    config = config_from_dict(read_config_fields(folder))
    cell = build_frozen(config, open_weights(folder), dtype=dtype, device=device)
    cell.extra_files = read_extra_files(folder)
    return cell


def check_tensors(config: AnyConfig, tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None = None) -> torch.dtype:
    """Check that ``tensors`` are the parameters of ``config`` without loading them; return the dtype of the new cell.

    Args:
        config: of the cell.
        tensors: by the names of the parameters.
        dtype: of the new cell; None: the dtype of the tensors.

    Raises:
        Error: a tensor is missing, unknown, misshapen or not floating-point; several dtypes although ``dtype`` is None.
    """
    check_dtype(dtype)
    if config.n_layers > len(tensors):  # checked first, so that a damaged config does not build a huge network
        raise Error(f"config: n_layers is {config.n_layers}; expected at most {len(tensors)}, the number of tensors")
    meta = build_on_meta(config)
    install_packed_modules(meta, tensors)
    packed = packed_names(tensors)
    expected = {name: tuple(x.shape) for name, x in meta.state_dict().items()}
    for name, x in tensors.items():
        if name not in expected:
            raise Error(f"tensor {name!r} is not part of this model")
        if x.shape != expected[name]:
            raise Error(f"tensor {name!r} has shape {x.shape}; expected {expected[name]}")
        if not name.endswith(".codes") and not can_compute(x.dtype):
            raise Error(f"tensor {name!r} is {x.dtype}; expected floating-point numbers")
    if missing := sorted(expected.keys() - tensors.keys()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Error(f"tensor {missing[0]!r}{more} missing")
    dtypes = {x.dtype for name, x in tensors.items() if name not in packed}
    if dtype is None and len(dtypes) > 1:
        raise Error(f"the tensors have several dtypes, {', '.join(sorted(map(str, dtypes)))}; choose one with dtype=")
    return dtypes.pop() if dtype is None else dtype


def build_frozen(
    config: AnyConfig,
    tensors: Mapping[str, LazyTensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Cell:
    """Return a cell in eval mode with frozen parameters, copied from ``tensors`` one at a time.

    Args:
        config: of the cell.
        tensors: by the names of the parameters.
        dtype: of the parameters; None: the dtype of the tensors.
        device: of the parameters; None is the CPU.

    Raises:
        Error: as :func:`check_tensors`, before a tensor is loaded; a tensor cannot be loaded.
    """
    dtype = check_tensors(config, tensors, dtype)
    check_device(device)
    device = "cpu" if device is None else device
    cell = build_on_meta(config).eval().requires_grad_(False)
    packed = install_packed_modules(cell, tensors)
    cell._apply(lambda x: torch.empty(x.shape, dtype=dtype if x.is_floating_point() else x.dtype, device=device))
    for name in sorted(tensors, key=lambda name: -math.prod(tensors[name].shape)):  # the largest first: lowest peak memory
        if (stem := name.rpartition(".")[0]) not in packed:
            cell.get_parameter(name).copy_(tensors[name].read())
        elif name.endswith(".codes"):
            module = cell.get_submodule(stem)
            assert isinstance(module, PackedModule)
            module.set_matrix(read_matrix(module, stem, tensors))
    for layer in cell.layers:
        assert isinstance(layer, RecurrentLayer)
        layer.fuse_storage_()
    return cell
