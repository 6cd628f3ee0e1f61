"""Read a saved state."""

from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor

from ..errors import Error, check_bool, check_device
from .serialization import read_layers
from .state import State


@overload
def load_state(path: str | Path, *, device: torch.device | str | None = None, logits: Literal[False] = False) -> State: ...
@overload
def load_state(
    path: str | Path, *, device: torch.device | str | None = None, logits: Literal[True]
) -> tuple[State, Tensor]: ...
def load_state(
    path: str | Path, *, device: torch.device | str | None = None, logits: bool = False
) -> State | tuple[State, Tensor]:
    """Read a state that :meth:`State.save` wrote. The class of a user-defined operator has to be imported before.

    Args:
        device: the device of the tensors; None is the CPU.
        logits: return ``(state, logits)``; the file must have been saved with ``logits``.

    Raises:
        Error: a file that is missing, damaged, not a saved state or without the logits; an operator that is not defined.
    """
    check_device(device)
    check_bool("logits", logits)
    layers, fingerprint, more = read_layers(path)
    state = State(layers, fingerprint, more.get("recent_tokens"))
    if device is not None:
        state = state.to(device)
    if not logits:
        return state
    if "logits" not in more:
        raise Error(f"{path} holds no logits; expected a file of state.save(path, logits=logits)")
    return state, more["logits"].to(state.device)
