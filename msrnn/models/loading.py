"""Cells from a config and tensors: check, build, and load a model folder (:mod:`msrnn.storage.model_folder`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..cell.cell import Cell
from ..cell.layer import RecurrentLayer
from ..distributed.rank_part import RankPart
from ..distributed.ranks import Ranks
from ..errors import Error, can_compute, check_device, check_dtype
from ..layers.packed.matrix import SCALE_DTYPE
from ..layers.packed.modules import PackedModule
from ..storage.digest import digest
from ..storage.lazy_tensors import LazyTensor
from ..storage.model_folder import open_weights, read_config_fields, read_extra_files
from .config import Config
from .olmo2 import Olmo2
from .packing import install_packed_modules, packed_names, read_packed_matrix
from .parameter_storage import read_parameters
from .registry import FAMILIES, AnyConfig, build_on_meta, config_from_dict


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    group: Any = None,
) -> Cell:
    """Return the cell in a folder that :meth:`Cell.save` wrote, in eval mode with frozen parameters.

    On the CPU, in the dtype of the file, the parameters are views of the mapped file (docs/converting.md), otherwise copies.

    Args:
        folder: its path.
        dtype: of the parameters; None keeps the dtype of the file.
        device: of the parameters; None is the CPU.
        group: a process group of ``torch.distributed``: each process reads and holds its slices of the model, as
            :func:`msrnn.distribute` describes. None: the whole model.

    Raises:
        Error: the folder does not exist, a file is missing or corrupt, or the tensors do not match the config; as
            :func:`msrnn.distribute` with a ``group``.
    """
    if not isinstance(folder, str | Path) or not str(folder):
        raise Error(f"folder is {folder!r:.60}; expected a str or a Path")
    folder = Path(folder)
    config = config_from_dict(read_config_fields(folder))
    rank_part = None if group is None else part_of_rank(config, Ranks.of(group))
    cell = build_frozen(config, open_weights(folder), dtype=dtype, device=device, rank_part=rank_part)
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
    packed, expected = packed_names(tensors), tensor_shapes(config, tensors)
    for name, x in tensors.items():
        if name not in expected:
            raise Error(f"tensor {name!r} is not part of this model")
        if x.shape != expected[name]:
            raise Error(f"tensor {name!r} has shape {x.shape}; expected {expected[name]}")
        if not name.endswith(".codes") and not can_compute(x.dtype):
            raise Error(f"tensor {name!r} is {x.dtype}; expected floating-point numbers")
        if name in packed and not name.endswith(".codes") and x.dtype != SCALE_DTYPE:
            raise Error(f"tensor {name!r} is {x.dtype}; expected {SCALE_DTYPE}, the dtype of stored scales")
    if missing := sorted(expected.keys() - tensors.keys()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Error(f"tensor {missing[0]!r}{more} missing")
    dtypes = {x.dtype for name, x in tensors.items() if name not in packed}
    if dtype is None and len(dtypes) > 1:
        raise Error(f"the tensors have several dtypes, {', '.join(sorted(map(str, dtypes)))}; choose one with dtype=")
    return dtypes.pop() if dtype is None else dtype


def tensor_shapes(config: AnyConfig, tensors: Mapping[str, LazyTensor]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors that a cell has, with the packed matrices that ``tensors`` has.

    A file in this order has each fused group in one piece.

    Raises:
        Error: a packed matrix that the model does not have.
    """
    meta = build_on_meta(config)
    install_packed_modules(meta, tensors)
    return {name: tuple(x.shape) for name, x in meta.state_dict().items()}


def build_frozen(
    config: AnyConfig,
    tensors: Mapping[str, LazyTensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    rank_part: RankPart | None = None,
) -> Cell:
    """Return a cell in eval mode with frozen parameters, which are views of mapped files or copies (:mod:`.parameter_storage`).

    Args:
        config: of the cell.
        tensors: by the names of the parameters.
        dtype: of the parameters; None: the dtype of the tensors.
        device: of the parameters; None is the CPU.
        rank_part: the part of the model to hold; None: all of it.

    Raises:
        Error: as :func:`check_tensors`, before a tensor is loaded; a tensor cannot be loaded.
    """
    dtype = check_tensors(config, tensors, dtype)
    check_device(device)
    if rank_part is None:
        cell = build_on_meta(config)
    else:
        tensors, cell = rank_part.take(tensors), build_on_meta(rank_part.local_config)
        cell.config, cell.rank_part = config, rank_part
    cell.eval().requires_grad_(False)
    packed, parts = install_packed_modules(cell, tensors), packed_names(tensors)
    device = torch.device("cpu" if device is None else device)
    floats = {name: x for name, x in tensors.items() if name not in parts}
    values, names = read_parameters(cell, floats, dtype, device), {x: name for name, x in cell.named_parameters()}

    def value(x: Tensor) -> Tensor:
        if isinstance(x, nn.Parameter):
            return values[names[x]]
        return torch.empty(x.shape, dtype=dtype if x.is_floating_point() else x.dtype, device=device)

    cell._apply(value)
    for stem in packed:
        module = cell.get_submodule(stem)
        assert isinstance(module, PackedModule)
        module.set_matrix(read_packed_matrix(module, stem, tensors))
    for layer in cell.layers:
        assert isinstance(layer, RecurrentLayer)
        layer.fuse_storage_()
    if rank_part is not None:
        rank_part.add_messages(cell)
    return cell


def part_of_rank(config: AnyConfig, ranks: Ranks) -> RankPart | None:
    """Return the part of a model that this rank holds; None for a group of one process.

    Raises:
        Error: the config differs between the ranks; a model of a kind that cannot be split; sizes that do not fit the number of
            ranks.
    """
    ranks.check_same("config", digest(repr(config.to_dict())))
    if ranks.size == 1:
        return None
    if not isinstance(config, Config):
        raise Error(f"config: family is {config.family}, which cannot be split over {ranks.size} ranks; expected one process")
    return RankPart(config, ranks, norms_whole_width=issubclass(FAMILIES[config.family][1], Olmo2))
