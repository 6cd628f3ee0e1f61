"""What a cell lets in: token ids, who of the batch is active, the lengths of a padded text, a state of its own."""

import torch
from torch import Tensor

from ..errors import Error
from ..state.fingerprint import Fingerprint
from ..state.state import State


def check_token(token: Tensor, active: Tensor | None) -> Tensor:
    """A step's ids ``(B,)``, 0 where a row stands still.

    Raises:
        Error: another shape or type, of ``active (B,)`` bool too.
    """
    if not isinstance(token, Tensor) or token.ndim != 1 or token.dtype != torch.int64:
        raise Error(f"token is {_described(token)}; expected int64 of shape (B,), one id per sequence")
    if active is None:
        return token
    if not isinstance(active, Tensor) or active.shape != token.shape or active.dtype != torch.bool:
        raise Error(f"active is {_described(active)}; expected bool of shape {tuple(token.shape)}")
    return torch.where(active, token, 0)


def check_text(tokens: Tensor, lengths: Tensor | None, vocab_size: int) -> tuple[Tensor, Tensor]:
    """A fold's ids ``(B, T)`` and lengths ``(B,)``; padding, which may be any number, becomes id 0.

    Raises:
        Error: another shape or type, a length outside 0 … T, an id outside the vocabulary.
    """
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.dtype != torch.int64:
        raise Error(f"tokens are {_described(tokens)}; expected int64 of shape (B, T)")
    B, T = tokens.shape
    if lengths is None:
        check_ids(tokens, vocab_size)
        return tokens, tokens.new_full((B,), T)
    if not isinstance(lengths, Tensor) or lengths.shape != (B,) or lengths.dtype != torch.int64:
        raise Error(f"lengths are {_described(lengths)}; expected int64 of shape ({B},)")
    lengths = lengths.to(tokens.device)
    if ((lengths < 0) | (lengths > T)).any():
        raise Error(f"lengths are {lengths.tolist()}; expected 0 to {T}, the length of the padded text")
    real = torch.arange(T, device=tokens.device) < lengths[:, None]  # (B, T)
    check_ids(tokens[real], vocab_size)
    return tokens.masked_fill(~real, 0), lengths


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """Refuse an id outside the vocabulary. Waits for the device."""
    wrong = (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        raise Error(f"token id {int(ids[wrong][0])} is outside the vocabulary of {vocab_size}")


def check_state(state: State, batch_size: int, own: Fingerprint, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a state of another model, batch size, dtype or device than the cell with this fingerprint and this parameter."""
    if not isinstance(state, State):
        raise Error(f"state is {type(state).__name__}; expected a State, as initial_state gives")
    if not state.fingerprint.matches(own):
        found = state.fingerprint.facts
        other = found if found != own.facts else "other parameters"
        raise Error(f"state belongs to another model ({other}; this cell is {own.facts})")
    held = len(state.clock)
    if held != batch_size:
        raise Error(f"state has batch size {held}; the tokens have {batch_size}")
    if state.dtype != dtype or state.device != device:
        raise Error(f"state is {state.dtype} on {state.device}; the cell is {dtype} on {device} (state.to moves it)")


def _described(x: object) -> str:
    return (
        f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
        if isinstance(x, Tensor)
        else f"{type(x).__name__} {x!r:.40}"
    )
