"""Checks of a cell and a state before a step is recorded (``capture.py``)."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from ..errors import Error
from ..layers.differentiation import in_transform
from ..layers.hooks import has_hooks
from ..reductions.head_budgets import HeadBudget, HeadSizes
from ..reductions.per_layer import format_operators
from ..reductions.shared_budget import SharedBudget
from ..state.multistate import MultiState
from ..state.position_remapping import ABSOLUTE
from ..state.state import State

if TYPE_CHECKING:
    from .cell import Cell


def check_capturable(cell: "Cell", state: State, devices: Collection[str]) -> None:
    """Refuse a cell or a state that a recorded step cannot read. This may wait for the device.

    Args:
        devices: the types of devices on which a step can be recorded.

    Raises:
        Error: as :func:`~msrnn.cell.capture.capture`.
    """
    _check_cell(cell, state, devices)
    for layer, H in enumerate(state):
        check_full(f"capture: layer {layer}", H)
    uneven = [H.reduction for H in state if isinstance(H.reduction, HeadBudget)]
    if uneven and (state.places is not None or state.stacked()[0] is None):
        kind, rule = "sizes per head are", "each head decides from its own rows (reads_heads = 'own')"
        if isinstance(uneven[0], SharedBudget):
            kind, rule = "a shared budget is", "its operator reads neither keys, values nor the attention output"
        places = ABSOLUTE if state.places is None else state.places.rule
        found = f"{format_operators([H.reduction for H in state])}, places {places}"
        expected = f"all layers have the same operator (random ones differ), {rule}, and positions are absolute"
        raise Error(f"capture: {kind} recorded if {expected}; found {found}")


def _check_cell(cell: "Cell", state: State, devices: Collection[str]) -> None:
    if not isinstance(state, State):
        raise Error(f"capture: state is {type(state).__name__}; expected a State, as initial_state returns it")
    if cell.device.type not in devices:
        raise Error(f"capture: the cell is on {cell.device}; expected {' or '.join(devices)}, or step_ instead")
    cell.check_state(state, len(state.clock))
    if cell.rank_part is not None:
        raise Error("capture: the cell is split over several processes, which a recording does not include; expected step_")
    if hooked := [name or "the cell" for name, module in cell.named_modules() if has_hooks(module)]:
        raise Error(f"capture: {hooked[0]} has a hook, which a recording cannot call; expected no hooks, or step_ instead")
    if state.requires_grad or cell.needs_grad(state):
        raise Error("capture: the step would build an autograd graph; use torch.no_grad(), or requires_grad_(False)")
    if in_transform() or torch._C._is_any_autocast_enabled():
        raise Error("capture: autocast or a transform of torch.func is active; expected neither")


def check_full(name: str, H: MultiState) -> None:
    """Refuse a layer that a recorded step cannot read. This may wait for the device."""
    if H.capacity is None:
        raise Error(f"{name} is unbounded ({H.reduction}); expected a bounded operator, such as tova:512")
    if isinstance(H.reduction, HeadBudget):
        _check_heads(name, H)
        return
    if H.reduction.depends_on_row_layout:
        operator = type(H.reduction).__name__
        raise Error(f"{name} has {operator}, which depends_on_row_layout; expected an operator that does not, or step_ instead")
    if (rows := H.keys.shape[2]) < H.capacity:
        raise Error(f"{name} holds {rows} of {H.capacity} rows; expected a full state, so read more tokens first")
    if not H.no_empty_rows and bool(H.empty.any()):
        raise Error(f"{name} has empty rows in some sequences; expected a full state, so read more tokens first")


def _check_heads(name: str, H: MultiState) -> None:
    """Refuse a layer in which the number of rows can still grow. This waits for the device."""
    held = (~H.empty).sum(-1) - H.n_learned  # (B, K)
    if isinstance(H.reduction, SharedBudget):
        found, expected = held.sum(-1).tolist(), [held.shape[1] * H.reduction.size] * len(held)
    else:
        assert isinstance(H.reduction, HeadSizes)
        found, expected = held.flatten().tolist(), list(H.reduction.sizes) * len(held)
    if found != expected:
        raise Error(f"{name} holds {found} of {expected} rows; expected a full state, so read more tokens first")
