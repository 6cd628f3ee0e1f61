"""Append, attend, *reduce*: how an operator's scores become the rows of the next H.

The operator only says how dear a row is; here the dearest stay. Nothing waits for the device, and once H is full no shape
changes.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import Error
from ..layers.attention import attend
from ..reductions.contract import EMPTY, Observation, Reduction
from ..state.multistate import MultiState


def updated(operator: Reduction, look: Observation) -> dict[str, Tensor]:
    """The operator's numbers after this step, as it gives them, in the dtype of the weights.

    Raises:
        Error: another name or shape than the rows have.
    """
    row_stats = {name: x.to(look.weights.dtype) for name, x in operator.update(look).items()}
    expected = {name: tuple(x.shape) for name, x in look.row_stats.items()}
    if (found := {name: tuple(x.shape) for name, x in row_stats.items()}) != expected:
        raise Error(f"{type(operator).__name__}.update gives {found}; expected {expected}")
    return row_stats


def dearness(operator: Reduction, look: Observation, pinned: int) -> Tensor:
    """The operator's score, ``(B, 1 or K, R)`` floating; +inf of the first ``pinned`` rows.

    Raises:
        Error: another shape.
    """
    score, shape = operator.score(look), look.positions.shape
    if score.ndim != 3 or score.shape not in (shape, (shape[0], 1, shape[2])):
        shapes = f"{tuple(shape)} or {(shape[0], 1, shape[2])}"
        raise Error(f"{type(operator).__name__}.score gives shape {tuple(score.shape)}; expected {shapes}")
    score = score if score.is_floating_point() else score.double()  # infinities have to fit in
    return score.index_fill(-1, torch.arange(pinned, device=score.device), torch.inf) if pinned else score


def merged(operator: Reduction, look: Observation, values: Tensor, row: Tensor, leaves: Tensor) -> Tensor:
    """The values ``(B, K, R, D)`` once row ``row (B, K)`` has gone where ``leaves (B, K)``: the operator's, a new tensor.

    Raises:
        Error: another shape.
    """
    after = operator.merge(look, values, row)
    if after.shape != values.shape:
        found = tuple(after.shape)
        raise Error(f"{type(operator).__name__}.merge gives shape {found}; expected {tuple(values.shape)}")
    return torch.where(leaves[..., None, None], after, values)


def lowest(score: Tensor, positions: Tensor, pinned: int = 0) -> Tensor:
    """Which row has the lowest score, of ties (and where all are infinite) the one at the oldest position; none of the first
    ``pinned``.

    ``score (B, 1 or K, R)``, ``positions (B, K, R)`` -> row index ``(B, 1 or K)``. Nothing here waits for the device.
    """
    more = score != score.amin(-1, keepdim=True)
    more[..., :pinned] = True
    return positions[:, : score.shape[1]].masked_fill(more, torch.iinfo(torch.int64).max).argmin(-1)


def advance(
    q: Tensor, k: Tensor, v: Tensor, H: MultiState, clock: Tensor, active: Tensor | None, in_place: bool
) -> tuple[Tensor, MultiState]:
    """All three: what one token reads, and H after it.

    Args:
        q: ``(B, N, D)``; k, v: ``(B, K, D)``; rotated, unless H has places.
        clock, active: as of :func:`reduce`; in_place: as of ``H.append``.

    Returns:
        ``(B, N, D)``, and the new H.
    """
    seen = H.append(k, v, in_place=in_place)  # S + 1 rows
    q, keys = (q, seen.keys) if seen.places is None else seen.places.turned(q, seen.keys, seen.positions, seen.pinned)
    read, weights = attend(q, keys, seen.values, None if seen.gapless else seen.empty)
    return read, reduce(seen, weights, clock, active, keys)


def reduce(seen: MultiState, weights: Tensor, clock: Tensor, active: Tensor | None, met: Tensor | None = None) -> MultiState:
    """Of the rows that the current query saw, let the operator take out what exceeds its size.

    Args:
        seen: S + 1 rows, the token's own last, as ``H.append`` gives them; their storage is written to, unless a graph
            needs it.
        weights: with which the query read them, ``(B, K, G, S + 1)``.
        clock: ``(B,)``, the clock after this token.
        active: ``(B,)`` bool; rows where it is false stand still, as if nothing had been appended. None: all active.
        met: the keys as the query met them; None is as they are kept.

    Returns:
        All S + 1 rows while S is below the bound, and S rows from then on: one is overwritten and shapes stand still.
    """
    operator, positions = seen.reduction, seen.positions
    S = positions.shape[2] - 1
    before = seen.row_stats if active is None else {name: x.clone() for name, x in seen.row_stats.items()}
    keys = (seen.keys if met is None else met).detach() if operator.needs_keys else None
    look = Observation(weights.detach(), positions, seen.clock, dict(seen.row_stats), keys)  # the choice is not differentiated
    row_stats = updated(operator, look)
    grows = seen.bound is None or seen.bound > S
    look = look._replace(row_stats=row_stats)
    score = None if grows else dearness(operator, look, seen.pinned)
    if active is not None:
        row_stats = {name: torch.where(active.view(-1, *(1,) * (x.ndim - 1)), x, before[name]) for name, x in row_stats.items()}
    if score is None:
        if active is not None:
            positions[..., S].masked_fill_(~active[:, None], EMPTY)
        row_stats = {name: x.contiguous() for name, x in row_stats.items()}
        return replace(seen, clock=clock, row_stats=row_stats, gapless=seen.gapless and active is None)
    if not seen.gapless:
        score = score.masked_fill(seen.empty[:, : score.shape[1]], -torch.inf)  # an empty row goes before any other
    row = lowest(score, positions, seen.pinned).expand(positions.shape[:2])  # (B, K)
    if active is not None:
        row = torch.where(active[:, None], row, S)  # the row of a token that is not read goes
    graph = weights.requires_grad or seen.values.requires_grad  # it keeps all that was read, gradient or not
    values = seen.values
    if operator.merges_values:
        real = positions.gather(2, row[..., None])[..., 0] != EMPTY
        values = merged(operator, look, values, row, real if active is None else real & active[:, None])
        values = values if graph else seen.values.copy_(values)
    keys, values, positions = (_overwrite(x, row, not graph) for x in (seen.keys, values, positions))
    row_stats = {name: _overwrite(x, row, False) for name, x in row_stats.items()}
    keys, values, positions = keys[:, :, :S], values[:, :, :S], positions[:, :, :S]
    row_stats = {name: x[:, :, :S].clone() for name, x in row_stats.items()}
    room = None if graph else seen.room
    return replace(seen, keys=keys, values=values, positions=positions, clock=clock, row_stats=row_stats, room=room)


def _overwrite(rows: Tensor, row: Tensor, in_place: bool) -> Tensor:
    """``rows (B, K, S + 1, …)`` with the last one written over row ``row (B, K)``, which may be the last itself."""
    (B, K), last = row.shape, rows[:, :, -1]
    place = (torch.arange(B, device=row.device)[:, None], torch.arange(K, device=row.device), row)
    # not by ``scatter_``, which copies all rows of a 16-bit dtype
    return rows.index_put_(place, last.clone()) if in_place else rows.index_put(place, last)
