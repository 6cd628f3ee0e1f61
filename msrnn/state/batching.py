"""Batch rows of states: checked indices into a batch, and what states need in common to become one batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import Error
from ..reductions.contract import is_same_operator

if TYPE_CHECKING:
    from .state import State


def batch_index(rows: object, clock: Tensor) -> Tensor:
    """Check ``rows`` of :meth:`State.select`; return indices ``(B',)`` int64 from 0 into the batch of ``clock (B,)``."""
    batch = clock.shape[0]
    if isinstance(rows, slice):
        rows = range(batch)[rows]
    if not isinstance(rows, Tensor | Sequence | range):
        raise Error(f"select: rows are {rows!r}; expected a tensor, a list or a slice of batch rows")
    try:
        index = torch.as_tensor(rows if isinstance(rows, Tensor) else list(rows), device=clock.device)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise Error(f"select: rows are {rows!r:.60}; expected ints") from None
    if index.numel() == 0:
        index = index.long()
    if index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
        raise Error(f"select: rows are {index.dtype} of shape {tuple(index.shape)}; expected integers of shape (B',)")
    if index.device.type == "cpu" and ((index < -batch) | (index >= batch)).any():
        raise Error(f"select: rows are {index.tolist()}; expected indices into a batch of {batch}")
    return torch.where(index < 0, index + batch, index)


def difference(state: "State", first: "State") -> str:
    """Return what keeps a state from joining the batch of the ``first``, as the end of a sentence; empty if nothing does."""
    if len(state) != len(first) or not state.fingerprint.matches(first.fingerprint):
        return "belongs to another model than state 0"
    for layer, (H, G) in enumerate(zip(state, first, strict=True)):
        if not is_same_operator(H.reduction, G.reduction):
            return f"has {H.reduction} in layer {layer}, state 0 has {G.reduction}"
        if H.heads != G.heads:
            return "has other heads of the model than state 0"
        if H.places != G.places:
            return f"has places {_rule(state)!r}, state 0 has {_rule(first)!r}"
        if H.n_learned != G.n_learned or H.keys.shape[1::2] != G.keys.shape[1::2]:
            return f"has other learned rows or heads in layer {layer} than state 0"
    if (state.dtype, state.device) != (first.dtype, first.device):
        return f"is {state.dtype} on {state.device}, state 0 is {first.dtype} on {first.device}"
    return ""


def _rule(state: "State") -> str:
    return "absolute" if state.places is None else state.places.rule


def cat_recent_tokens(states: "Sequence[State]") -> Tensor | None:
    """Return the recent tokens of all batch rows ``(B, n)``, padded in front with −1; None if no state has any."""
    width = max((x.shape[1] for state in states if (x := state.recent_tokens) is not None), default=0)
    if not width:
        return None
    parts = []
    for state in states:
        padded = state.clock.new_full((len(state.clock), width), -1)
        if state.recent_tokens is not None:
            padded[:, width - state.recent_tokens.shape[1] :] = state.recent_tokens
        parts.append(padded)
    return torch.cat(parts)
