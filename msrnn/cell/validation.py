"""Checks of the arguments of a cell: token ids, active rows, lengths of a padded batch, and states."""

import textwrap
from collections.abc import Collection

import torch
from torch import Tensor

from ..distributed.heads import RankHeads
from ..errors import Error, describe
from ..layers.differentiation import is_batched_by_vmap
from ..state.fingerprint import Fingerprint
from ..state.quantised_rows import QUANTISED_DTYPE
from ..state.state import State


def check_token(token: Tensor, active: Tensor | None) -> Tensor:
    """Check the arguments of a step; return the ids ``(B,)`` with 0 in inactive rows.

    Raises:
        Error: ``token`` is not a dense int64 tensor of shape ``(B,)``, or ``active`` is not bool of the same shape.
    """
    if not isinstance(token, Tensor) or token.ndim != 1 or token.dtype != torch.int64:
        raise Error(f"token is {describe(token)}; expected int64 of shape (B,), one id per sequence")
    if token.layout != torch.strided:
        raise Error(f"token is {token.layout}; expected a dense tensor")
    if active is None:
        return token
    if not isinstance(active, Tensor) or active.shape != token.shape or active.dtype != torch.bool:
        raise Error(f"active is {describe(active)}; expected bool of shape {tuple(token.shape)}")
    if active.device != token.device:
        raise Error(f"active is on {active.device}; expected {token.device}, as the tokens")
    return torch.where(active, token, 0)


def check_text(tokens: Tensor, lengths: Tensor | None, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Check a padded batch; return the ids ``(B, T)`` with 0 as padding, and the lengths ``(B,)``.

    Padding may contain any number.

    Raises:
        Error: ``tokens`` or ``lengths`` has another shape, dtype or layout, a length is outside 0 … T, or an id is outside the
            vocabulary.
    """
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.dtype != torch.int64:
        raise Error(f"tokens are {describe(tokens)}; expected int64 of shape (B, T)")
    if tokens.layout != torch.strided or tokens.is_meta:
        found = "on the meta device, which has no values" if tokens.is_meta else str(tokens.layout)
        raise Error(f"tokens are {found}; expected a dense tensor of the device of the cell")
    if is_batched_by_vmap(tokens):
        raise Error("tokens have a batch dimension of torch.func.vmap; expected a batch (B, T) without vmap, or cell.step")
    B, T = tokens.shape
    if lengths is None:
        check_ids(tokens, vocab_size)
        return tokens, tokens.new_full((B,), T)
    if not isinstance(lengths, Tensor) or lengths.shape != (B,) or lengths.dtype != torch.int64 or lengths.is_meta:
        raise Error(f"lengths are {describe(lengths)}; expected int64 of shape ({B},)")
    lengths = lengths.to(tokens.device)
    if ((lengths < 0) | (lengths > T)).any():
        raise Error(f"lengths are {lengths.tolist()}; expected 0 to {T}, the length of the padded text")
    valid = torch.arange(T, device=tokens.device) < lengths[:, None]  # (B, T)
    check_ids(tokens[valid], vocab_size)
    return tokens.masked_fill(~valid, 0), lengths


def check_device_of_ids(name: str, ids: Tensor, device: torch.device) -> None:
    """Refuse ids on another device than that of the cell.

    Raises:
        Error: the devices differ; the message begins with ``name``.
    """
    if ids.device != device:
        raise Error(f"{name} on {ids.device}; expected {device}, as the cell (use .to)")


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """Raise :class:`Error` for an id outside the vocabulary. This synchronises with the device."""
    invalid = (ids < 0) | (ids >= vocab_size)
    if invalid.any():
        raise Error(f"token id {int(ids[invalid][0])} is outside the vocabulary of {vocab_size}")


def check_state(
    state: State,
    batch_size: int,
    fingerprint: Fingerprint,
    dtype: torch.dtype,
    device: torch.device,
    heads: RankHeads | None,
) -> None:
    """Check that a state belongs to the cell with this ``fingerprint``, ``dtype``, ``device`` and the ``heads`` of the rank.

    Raises:
        Error: the state has another fingerprint, heads, batch size, dtype or device. A cell of any dtype reads 8-bit rows.
    """
    if not isinstance(state, State):
        raise Error(f"state is {type(state).__name__}; expected a State, as initial_state returns it")
    if not state.fingerprint.matches(fingerprint):
        found, own = _from_first_difference(state.fingerprint.signature, fingerprint.signature)
        difference = f"{found}; this cell has {own}" if found else "other parameters of the same config"
        raise Error(f"state belongs to another model ({difference})")
    if state.heads != heads:
        found, own = ("all heads" if x is None else str(x) for x in (state.heads, heads))
        hint = "msrnn.load_state(path, group=...) reads the heads of a rank from a saved state"
        raise Error(f"state holds {found}; this cell has {own}; expected a state of this cell ({hint})")
    if len(state.clock) != batch_size:
        raise Error(f"state has batch size {len(state.clock)}; the tokens have {batch_size}")
    if state.dtype not in (dtype, QUANTISED_DTYPE) or state.device != device:
        raise Error(f"state is {state.dtype} on {state.device}; expected {dtype} on {device}, as the cell (see state.to)")


def _from_first_difference(one: str, other: str, length: int = 160) -> tuple[str, str]:
    """Return two signatures from the first field that differs, shortened; two empty texts if they are equal."""
    if one == other:
        return "", ""
    equal = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = one.rfind(", ", 0, equal) + 2 if ", " in one[:equal] else 0
    shown = [textwrap.shorten(text[start:], length, placeholder=" …") for text in (one, other)]
    return shown[0], shown[1]


def check_tensor_names(found: Collection[str], expected: Collection[str]) -> None:
    """Check the names of the tensors of a cell before they are saved.

    Raises:
        Error: they are not those of the config, because a module has been changed.
    """
    if changed := sorted(set(found) ^ set(expected)):
        kind = "has tensor" if changed[0] in found else "has no tensor"
        hint = "merge adapters and remove pruning and parametrizations before save, or save cell.state_dict()"
        raise Error(f"save: the cell {kind} {changed[0]!r}; expected the tensors of its config ({hint})")
