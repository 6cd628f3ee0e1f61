"""Add LoRA adapters to the linear maps of a cell, merge them into the weights, or remove them."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from ..cell.cell import Cell
from ..cell.layer import RecurrentLayer
from ..distributed.adapters import add_messages_to_adapter, split_first_values_
from ..distributed.whole import whole_tensor
from ..errors import Error, check_bool, check_int, check_number
from ..layers.lora import LoraLinear
from ..layers.packed.modules import PackedLinear
from .names import short_name
from .targets import ALL_LINEAR

HEAD = "head"


def add(
    cell: Cell,
    *,
    r: int = 8,
    lora_alpha: float = 16,
    target_modules: Sequence[str] | str = ("q", "v"),
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
    generator: torch.Generator | None = None,
) -> Cell:
    """Add a LoRA adapter to linear maps of ``cell``, in place, and freeze all other parameters.

    A new adapter changes no logits. The base may have packed weights. The arguments have the names of PEFT.

    Args:
        cell: a cell without adapters.
        r: rank of the adapters.
        lora_alpha: the output of an adapter is multiplied by ``lora_alpha / r``.
        target_modules: names of linear maps, ours (``q``, ``gate``) or those of Hugging Face (``q_proj``, ``gate_proj``); the
            end of a path such as ``layers.0.q`` selects one layer. ``"all-linear"``: all linear maps of the layers.
        lora_dropout: dropout of the input of the adapters in training mode.
        use_rslora: multiply by ``lora_alpha / sqrt(r)`` (arXiv:2312.03732).
        generator: of the initial values; None is that of torch.

    Returns:
        ``cell``. Only the adapters require gradients.

    Raises:
        Error: a value out of range, a name that is no linear map of this cell, a cell that has adapters, or dropout in a cell
            that is split over ranks.
    """
    check_int("r", r, at_most=2**16)
    check_number("lora_alpha", lora_alpha, above=0)
    check_number("lora_dropout", lora_dropout, above=0, at_most=0.99, or_equal=True)
    check_bool("use_rslora", use_rslora)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise Error(f"generator is {generator!r:.60}; expected a torch.Generator")
    linears, adapters = linear_maps(cell), dict[str, LoraLinear]()
    check_dropout(cell, lora_dropout)
    for path in _select(cell, target_modules):
        _, E = whole_shape(cell, path, linears[path])
        adapters[path] = LoraLinear(linears[path], r, lora_alpha, lora_dropout, use_rslora, generator, in_features=E)
        if cell.rank_part is not None:
            split_first_values_(cell.rank_part, path, adapters[path])
    install(cell, adapters)
    return cell


def adapter_parameters(cell: Cell) -> dict[str, nn.Parameter]:
    """Return A and B of every adapter, by the names that ``cell.named_parameters`` gives them."""
    return {f"{path}.{name}": getattr(x, name) for path, x in cell.adapters.items() for name in ("lora_A", "lora_B")}


@torch.no_grad()
def merge(cell: Cell) -> Cell:
    """Add s B A of each adapter to the weight of its linear map, in place; the result is a plain cell.

    The sum is computed in the wider dtype and rounded once to that of the weight.

    Returns:
        ``cell``, frozen, with the logits of the adapted cell up to rounding. It can be saved and converted.

    Raises:
        Error: the cell has no adapters, or a packed weight, which would have to be quantised again.
    """
    check_adapted(cell)
    sums = []
    for path, x in cell.adapters.items():
        if not isinstance(x.base_layer, nn.Linear):
            found = f"{path} has a packed weight, which a merge would quantise again"
            raise Error(f"merge: {found}; expected float weights (load the model without weights=, then the adapter)")
        sums.append((x.base_layer.weight, x))
    for weight, x in sums:
        delta = x.delta_weight()
        weight.copy_(weight.to(delta.dtype) + delta)
    return remove(cell)


def remove(cell: Cell) -> Cell:
    """Remove all adapters, in place, and return ``cell``, frozen, with its original linear maps.

    Raises:
        Error: the cell has no adapters.
    """
    check_adapted(cell)
    for path, x in cell.adapters.items():
        _replace(cell, path, x.base_layer)
    cell.adapters = {}
    for layer in cell.modules():
        if isinstance(layer, RecurrentLayer):
            layer.fuse_storage_()
    return cell.requires_grad_(False)


def install(cell: Cell, adapters: dict[str, LoraLinear]) -> None:
    """Put ``adapters`` in the place of linear maps of ``cell``, by their paths. Everything else is frozen."""
    cell.requires_grad_(False)
    for path, x in adapters.items():
        x.train(cell.training)
        if cell.rank_part is not None:
            add_messages_to_adapter(cell.rank_part, path, x)
        _replace(cell, path, x)
    cell.adapters = adapters


def linear_maps(cell: Cell) -> dict[str, nn.Linear | PackedLinear]:
    """Return the linear maps of ``cell`` by their paths, such as ``layers.0.q``, the LM head included.

    Raises:
        Error: the cell has adapters.
    """
    if not isinstance(cell, Cell):
        raise Error(f"cell is {type(cell).__name__}; expected a Cell")
    if cell.adapters:
        raise Error("the cell has adapters already; expected a plain cell (call msrnn.lora.merge or msrnn.lora.remove first)")
    # an embedding in 8 bits is a linear map as well, because a tied LM head uses it
    return {path: x for path, x in cell.named_modules() if isinstance(x, nn.Linear | PackedLinear) and path != "embed"}


def whole_shape(cell: Cell, path: str, linear: nn.Linear | PackedLinear) -> tuple[int, ...]:
    """Return the shape ``(F, E)`` of the matrix of ``linear``, of which a rank of a split cell has a slice."""
    own = torch.empty(linear.out_features, linear.in_features, device="meta")
    return whole_tensor(cell.rank_part, f"{path}.weight", own).shape


def check_dropout(cell: Cell, lora_dropout: float) -> None:
    """Refuse dropout in a split cell: the ranks would drop other elements than one process.

    Raises:
        Error: as described.
    """
    if cell.rank_part is not None and lora_dropout:
        raise Error(
            f"lora_dropout is {lora_dropout} in a cell that is split over {cell.rank_part.ranks.size} ranks; expected 0"
        )


def check_adapted(cell: Cell) -> None:
    """Refuse a cell without adapters.

    Raises:
        Error: ``cell`` has no adapters, or is no cell.
    """
    if not isinstance(cell, Cell) or not cell.adapters:
        raise Error("the cell has no LoRA adapters; expected one after msrnn.lora.add or msrnn.lora.load_adapter")


def _select(cell: Cell, target_modules: Sequence[str] | str) -> list[str]:
    """Return the paths of the linear maps that ``target_modules`` names, in their order in the cell."""
    paths = list(linear_maps(cell))
    inner = [path for path in paths if path != HEAD]
    if target_modules == ALL_LINEAR:
        return inner
    if isinstance(target_modules, str) or not isinstance(target_modules, Iterable) or not (names := list(target_modules)):
        raise Error(f"target_modules is {target_modules!r:.60}; expected a list of names, or {ALL_LINEAR!r}")
    chosen = set()
    for name in names:
        own = short_name(name) if isinstance(name, str) else None
        found = [path for path in paths if own and (path == own or path.endswith(f".{own}"))]
        if not found:
            known = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in paths))
            raise Error(f"target_modules has {name!r:.60}; expected linear maps of this cell: {known}, or {ALL_LINEAR!r}")
        chosen.update(found)
    return [path for path in paths if path in chosen]


def _replace(cell: Cell, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(cell.get_submodule(parent), name, module)
