"""Read a saved state."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ..distributed.heads import RankHeads
from ..distributed.ranks import Ranks
from ..errors import Error, check_bool, check_device
from .multistate import MultiState
from .serialization import read_layers
from .split_heads import operator_of_rank
from .state import State


@overload
def load_state(
    path: str | Path, *, device: torch.device | str | None = None, logits: Literal[False] = False, group: Any = None
) -> State: ...
@overload
def load_state(
    path: str | Path, *, device: torch.device | str | None = None, logits: Literal[True], group: Any = None
) -> tuple[State, Tensor]: ...
def load_state(
    path: str | Path, *, device: torch.device | str | None = None, logits: bool = False, group: Any = None
) -> State | tuple[State, Tensor]:
    """Read a state that :meth:`State.save` wrote. The class of a user-defined operator has to be imported before.

    Args:
        device: the device of the tensors; None is the CPU.
        logits: return ``(state, logits)``; the file must have been saved with ``logits``.
        group: a process group of ``torch.distributed``: each process takes the rows of its heads, for a cell that was loaded
            with this group. The number of processes that saved the state does not matter. None: all heads.

    Raises:
        Error: a file that is missing, damaged, not a saved state or without the logits; an operator that is not defined.
    """
    check_device(device)
    check_bool("logits", logits)
    layers, fingerprint, more = read_layers(path)
    state = State(layers, fingerprint, more.get("recent_tokens"))
    if group is not None:
        state = take_own_heads(state, Ranks.of(group))
    if device is not None:
        state = state.to(device)
    if not logits:
        return state
    if "logits" not in more:
        raise Error(f"{path} holds no logits; expected a file of state.save(path, logits=logits)")
    return state, more["logits"].to(state.device)


def take_own_heads(state: State, ranks: Ranks) -> State:
    """Return a state with copies of the rows of the heads of this rank; the state itself for a group of one process.

    Raises:
        Error: the state is split already, or has a number of heads that does not fit the number of ranks.
    """
    if state.heads is not None:
        raise Error(f"state holds {state.heads} already; expected a whole state")
    if ranks.size == 1:
        return state
    heads = RankHeads(ranks, state[0].positions.shape[1])

    def taken(H: MultiState) -> MultiState:
        rows = {name: heads.own(x, 1).clone(memory_format=torch.contiguous_format) for name, x in H.rows.items()}
        H = replace(H.with_rows(rows, H.clock, no_empty_rows=H.no_empty_rows), heads=heads)
        return replace(H, reduction=operator_of_rank(H.reduction, heads))

    return State(map(taken, state), state.fingerprint, state.recent_tokens)
