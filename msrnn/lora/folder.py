"""Adapter folders in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``. Nothing is unpickled."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ..cell.cell import Cell
from ..distributed.whole import errors_together, whole_folder, whole_tensor, write_whole
from ..errors import Error, can_compute, check_bool
from ..layers.lora import LoraLinear
from ..layers.packed.modules import PackedLinear
from ..storage.files import read_json, write_json
from ..storage.lazy_tensors import LazyTensor
from ..storage.safetensors_io import open_tensors, write_tensors
from .adapters import check_adapted, check_dropout, install, linear_maps, whole_shape
from .names import check_family, peft_name, without_text_part
from .peft_config import AdapterConfig, read_fields, write_fields
from .targets import Targets

CONFIG_FILE, WEIGHTS_FILE, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
"""What PEFT puts before the name of a module."""
PARTS = ("lora_A", "lora_B")
BASE_COPY = ".base_layer.weight"
"""The end of the name of a weight of the base in the file of an adapter."""
OTHER_KINDS = {
    "lora_embedding_": "an adapter of an embedding",
    "lora_magnitude_vector": "DoRA",
    "lora_B.bias": "a bias of an adapter",
    "modules_to_save": "a whole module",
}
"""Parts of tensor names of other kinds of adapters."""


def save_adapter(cell: Cell, folder: str | Path, *, base_model: str | None = None) -> None:
    """Write the adapters of ``cell`` as PEFT does, so that ``peft.PeftModel.from_pretrained(model, folder)`` reads them.

    Args:
        cell: a cell with adapters. All ranks of a split cell have to call this. Rank 0 writes the whole adapters.
        folder: a path that does not exist, or an empty folder.
        base_model: name or path of the base model, for ``base_model_name_or_path``.

    Raises:
        Error: the cell has no adapters, its family has no such format (Phi-3), or the folder cannot be written.
    """
    check_adapted(cell)
    check_family(cell)
    with whole_folder(cell.rank_part, folder) as target:
        write_new(cell, target, base_model)


def write_new(cell: Cell, folder: Path, base_model: str | None) -> None:
    """Write both files into an existing folder. In a split cell all ranks call this, and rank 0 writes."""

    def write(tensors: Mapping[str, LazyTensor]) -> None:
        write_tensors(folder / WEIGHTS_FILE, tensors, {"format": "pt"})
        _write_config(cell, folder, base_model)

    write_whole(cell.rank_part, adapter_tensors(cell), write)


def _write_config(cell: Cell, folder: Path, base_model: str | None) -> None:
    """Write ``adapter_config.json`` into an existing folder."""
    kinds = (nn.Linear, PackedLinear, LoraLinear)
    linears = (path for path, x in cell.named_modules() if isinstance(x, kinds) and path != "embed")
    names = [peft_name(cell, path) for path in linears if not path.endswith("base_layer")]
    adapters = {peft_name(cell, path): x for path, x in cell.adapters.items()}
    write_json(folder / CONFIG_FILE, write_fields(adapters, names, base_model))


def adapter_tensors(cell: Cell) -> dict[str, LazyTensor]:
    """Return A and B of every adapter by the names of PEFT. In a split cell all ranks have to read them."""
    return {
        f"{PREFIX}{peft_name(cell, path)}.{part}.weight": whole_tensor(cell.rank_part, f"{path}.{part}", getattr(x, part))
        for path, x in cell.adapters.items()
        for part in PARTS
    }


def load_adapter(cell: Cell, folder: str | Path, *, is_trainable: bool = False) -> Cell:
    """Read an adapter that :func:`save_adapter` or PEFT wrote, and add it to ``cell``, in place.

    Args:
        cell: a cell without adapters, of the base model; its weights may be packed. A rank of a split cell reads its slices.
        folder: has ``adapter_config.json`` and ``adapter_model.safetensors``.
        is_trainable: True to train the adapters on. All other parameters are frozen in any case.

    Returns:
        ``cell``. It refuses states of the cell without this adapter.

    Raises:
        Error: a file is missing or damaged, the adapter has another kind (DoRA, biases, whole modules, …), or it does not fit
            the cell: an unknown module, another shape or rank; a module of ``target_modules`` has no adapter, another module
            has one, or a value is not finite. The cell is then unchanged.
    """
    check_bool("is_trainable", is_trainable)
    linears = linear_maps(cell)
    check_family(cell)
    with errors_together(None if cell.rank_part is None else cell.rank_part.ranks):
        adapters = _read_adapters(cell, linears, folder, is_trainable)
    install(cell, adapters)
    for adapter in adapters.values():
        adapter.requires_grad_(is_trainable)
        adapter.base_layer.requires_grad_(False)
    return cell


def _read_adapters(
    cell: Cell, linears: Mapping[str, nn.Linear | PackedLinear], folder: str | Path, is_trainable: bool
) -> dict[str, LoraLinear]:
    """Return the adapters in ``folder`` by the paths of their linear maps."""
    if not isinstance(folder, str | Path) or not str(folder):
        raise Error(f"folder is {folder!r:.60}; expected a str or a Path")
    folder = Path(folder)
    if not (folder / CONFIG_FILE).exists():
        raise Error(f"{folder} has no {CONFIG_FILE}; expected the folder of a LoRA adapter")
    config = read_fields(read_json(folder / CONFIG_FILE), folder / CONFIG_FILE)
    if is_trainable:
        check_dropout(cell, config.lora_dropout)
    if not (folder / WEIGHTS_FILE).exists() and (folder / PICKLE).exists():
        raise Error(f"{folder} has {PICKLE}, a pickle, which is not executed; expected {WEIGHTS_FILE} (save again with PEFT)")
    tensors = open_tensors(folder / WEIGHTS_FILE)
    tensors = _without_base_copies(cell, tensors, linears, folder / WEIGHTS_FILE)
    pairs = _pair(cell, tensors, list(linears), config.targets, folder / WEIGHTS_FILE)
    for path in linears:
        if path not in pairs and config.targets.contain(name := peft_name(cell, path)):
            found = f"{folder / WEIGHTS_FILE} has no adapter of {name}"
            raise Error(f"{found}; expected one for every module of target_modules in {CONFIG_FILE}")
    adapters: dict[str, LoraLinear] = {}
    for path in (path for path in linears if path in pairs):  # in the order of the cell
        name, base = peft_name(cell, path), linears[path]
        _check_shapes(pairs[path], config, name, whole_shape(cell, path, base), folder / WEIGHTS_FILE)
        new = LoraLinear(base, config.rank(name), config.alpha(name), config.lora_dropout, config.use_rslora)
        for part, stored in pairs[path].items():
            x = getattr(new, part).data.copy_(_own(cell, f"{path}.{part}", stored).read())
            if not bool(x.isfinite().all()):
                raise Error(f"{folder / WEIGHTS_FILE}: {part} of {name} has NaN or infinite values; expected finite numbers")
        adapters[path] = new
    return adapters


def _without_base_copies(
    cell: Cell, tensors: Mapping[str, LazyTensor], linears: Mapping[str, nn.Linear | PackedLinear], where: Path
) -> dict[str, LazyTensor]:
    """Return ``tensors`` without copies of weights of the base, such as PEFT writes for an adapted LM head.

    Raises:
        Error: a copy differs from the weight of ``cell``, as after new tokens were added to the model.
    """
    copies = {f"{PREFIX}{peft_name(cell, path)}{BASE_COPY}": path for path in linears}
    for name, path in copies.items():
        base = linears[path]
        if name in tensors and isinstance(base, nn.Linear):  # a packed weight is rounded, so that it cannot be compared
            x, weight = tensors[name], base.weight
            if x.shape != whole_shape(cell, path, base) or not _own(cell, f"{path}.weight", x).read().to(weight).equal(weight):
                raise Error(f"{where}: tensor {name!r} differs from the weight of this cell; expected an adapter of this model")
    return {name: x for name, x in tensors.items() if name not in copies}


def _own(cell: Cell, name: str, stored: LazyTensor) -> LazyTensor:
    """Return the slice of this rank of a tensor of the whole model."""
    return stored if cell.rank_part is None else cell.rank_part.take({name: stored})[name]


def _pair(
    cell: Cell, tensors: Mapping[str, LazyTensor], paths: list[str], targets: Targets, where: Path
) -> dict[str, dict[str, LazyTensor]]:
    """Return A and B by the path of their linear map.

    Raises:
        Error: a tensor of another kind of adapter, of an unknown module or of one that is not among ``targets``, or one of A
            and B missing.
    """
    own_paths = {peft_name(cell, path): path for path in paths}
    pairs: dict[str, dict[str, LazyTensor]] = {}
    for name, x in tensors.items():
        if kind := next((kind for part, kind in OTHER_KINDS.items() if part in name), None):
            raise Error(f"{where}: tensor {name!r} is {kind}, which is not supported; expected a plain LoRA adapter")
        stem, _, part = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        path = own_paths.get(stem) or own_paths.get(without_text_part(stem))
        if part not in PARTS or not name.startswith(PREFIX) or not name.endswith(".weight") or path is None:
            expected = f"{PREFIX}{next(iter(own_paths))}.lora_A.weight"
            raise Error(f"{where}: tensor {name!r} belongs to no linear map of this cell; expected names as {expected!r}")
        if targets.chosen and not any(map(targets.contain, (stem, peft_name(cell, path)))):
            found = f"{where} has an adapter of {stem}, which target_modules in {CONFIG_FILE} do not select"
            raise Error(f"{found}; expected adapters of those modules only")
        if part in pairs.setdefault(path, {}):
            raise Error(f"{where}: tensor {name!r} occurs under two names; expected one")
        pairs[path][part] = x
    for path, pair in pairs.items():
        if missing := [part for part in PARTS if part not in pair]:
            raise Error(f"{where} has no {missing[0]} for {peft_name(cell, path)}; expected both {' and '.join(PARTS)}")
    if not pairs:
        raise Error(f"{where} has no tensors; expected those of a LoRA adapter")
    return pairs


def _check_shapes(
    pair: Mapping[str, LazyTensor], config: AdapterConfig, name: str, shape: tuple[int, ...], where: Path
) -> None:
    """Refuse A and B of another shape or dtype; ``shape (F, E)`` is that of the weight of the module ``name``."""
    r, (F, E) = config.rank(name), shape
    for part, expected in {"lora_A": (r, E), "lora_B": (F, r)}.items():
        x = pair[part]
        if x.shape != expected or not can_compute(x.dtype):
            found = f"{x.dtype} {x.shape}"
            raise Error(f"{where}: {part} of {name} is {found}; expected {expected}, for rank {r} and a weight of {shape}")
