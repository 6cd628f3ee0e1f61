"""Checks of the rows of a layer before they are written to a file, and after they are read from one."""

from collections.abc import Sequence

import torch

from ..errors import Error, describe
from ..reductions.contract import EMPTY, LEARNED
from ..reductions.head_budgets import HeadBudget
from .jagged_rows import JaggedMultiState, n_jagged_rows, padded
from .multistate import MultiState
from .quantised_rows import MAX_CODE, QUANTISED_DTYPE, SCALES


def check_jagged(H: JaggedMultiState) -> None:
    """Check that the rows of each head can be found.

    Raises:
        ValueError: they cannot.
    """
    head_rows, M = H.head_rows, H.keys.shape[2] if H.keys.ndim > 2 else -1
    sound = head_rows.ndim == 2 and head_rows.dtype == torch.int64 and H.positions.ndim == 3 and bool((head_rows >= 0).all())
    if sound:
        held = head_rows.sum(-1)  # (B,)
        shapes = {x.shape[:3] for name, x in H.rows.items() if name != "head_rows"}
        sound = shapes == {(len(held), 1, M)} and n_jagged_rows(head_rows) == M
    if not sound or ((H.positions[:, 0] != EMPTY) != (torch.arange(M) < held[:, None])).any():
        raise ValueError(f"jagged rows of shape {tuple(H.keys.shape)} contradict head_rows {describe(head_rows)}")


def _is_within_budget(H: MultiState, budget: HeadBudget, where: str) -> bool:
    """Return True if the heads ``(B, K, S)`` are those of the budget and hold no more rows than it allows.

    A rank of a split cell cannot count the rows of other heads, so its rows are not compared with a budget for all heads.

    Raises:
        Error: the heads are not those of the budget. The message begins with ``where``.
    """
    if H.heads is not None and budget.reads_heads == "all":
        return True
    try:
        budget.check_heads(H.positions.shape[1])
    except Error as error:
        raise Error(f"{where}: {error}") from None
    return not bool(budget.evicts((H.positions >= 0).sum(-1)).any())


def check_layers(layers: Sequence[MultiState], where: str) -> None:
    """Check the layers of a state, of which jagged ones have passed :func:`check_jagged`. One at a time is copied.

    Raises:
        Error: the rows of a layer contradict those of the first layer, the operator or the clock, or are not finite. The
            message begins with ``where``.
    """
    first = padded(layers[0])
    for i, H in enumerate(layers):
        _check_layer(padded(H), first, f"{where}: layer {i}")


def _check_layer(H: MultiState, first: MultiState, where: str) -> None:
    B, K, S, _ = H.keys.shape if H.keys.ndim == 4 else (0, 0, 0, 0)
    clock, n = H.clock, H.n_learned
    # in an H with learned and empty rows only, the batch may be ragged
    only_learned = H.reduction.size is None and bool((H.positions < 0).all())
    lowest = LEARNED if only_learned else EMPTY
    sound = (
        (H.keys.dtype == QUANTISED_DTYPE if H.is_quantised else H.keys.is_floating_point())
        and H.keys.shape == H.values.shape == (first.keys.shape[0], first.keys.shape[1], S, first.keys.shape[3])
        and H.keys.dtype == H.values.dtype == first.keys.dtype
        and all(H.rows[name].shape == (B, K, S) for name in ("positions", *(SCALES.values() if H.is_quantised else ())))
        and H.positions.dtype == clock.dtype == torch.int64
        and clock.shape == (B,)
        and all(x.shape == (B, K, S, *H.reduction.stat_shape(name)) for name, x in H.row_stats.items())
        and all(x.is_floating_point() for x in H.row_stats.values())
        and not isinstance(H.reduction.size, tuple)
        and (H.capacity is None or H.capacity >= S)
        and (not isinstance(H.reduction, HeadBudget) or _is_within_budget(H, H.reduction, where))
        and bool(((clock >= 0) & (clock < 2**62)).all())
        and bool((H.positions[..., :n] == LEARNED).all())
        and bool(((H.positions[..., n:] >= lowest) & (H.positions < clock[:, None, None])[..., n:]).all())
    )
    if not sound:
        raise Error(f"{where}: rows of shape {tuple(H.keys.shape)} contradict the operator {H.reduction} or the clock")
    in_order = H.positions.sort(dim=-1).values
    if bool(((in_order[..., 1:] == in_order[..., :-1]) & (in_order[..., 1:] >= 0)).any()):
        raise Error(f"{where}: a head holds a position twice; expected each position once")
    for name in ("keys", "values"):
        numbers = H.rows[SCALES[name]] if H.is_quantised else H.rows[name]
        if not bool((numbers.isfinite().unsqueeze(-1).flatten(3).all(-1) | H.empty).all()):
            raise Error(f"{where}: {name} are not finite; expected a state without NaN and infinity")
        if H.is_quantised and not bool(((numbers > 0) | H.empty).all() and numbers.dtype == torch.float32):
            raise Error(f"{where}: scales of {name} are {numbers.dtype} or not above 0; expected float32 above 0")
        if H.is_quantised and bool((H.rows[name] < -MAX_CODE).any()):
            raise Error(f"{where}: {name} hold -128; expected -127 to 127")
