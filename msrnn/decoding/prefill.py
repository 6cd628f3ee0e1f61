"""The shortcut of the released codes: the whole prompt under full attention, then one cut by what the last query saw.

TOVA's and H2O's code, SnapKV and kvpress read a prompt so. It is a transition of its own, not the fold: every row was made by
tokens that saw all before them, rows that the operator would have let go included, and H holds the whole prompt until the cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..cell.validation import check_text
from ..errors import Error
from ..layers.attention import attend
from ..recurrence.operator_calls import retention_scores
from ..recurrence.unroll import Events
from ..reductions.contract import LEARNED, Observation, Reduction
from ..reductions.registry import per_layer
from ..state.multistate import MultiState
from ..state.state import State


def prefill(
    cell: Cell,
    tokens: Tensor,
    reduction: Reduction | str | Sequence[Reduction | str],
    *,
    lengths: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Read a prompt with full attention, the operator's numbers kept as if nobody left; then the rows with the lowest scores
    go, as the last token sees them, all at once.

    TOVA cuts by the last query's attention, H2O by the sums over the whole prompt; Window and Sinks hold what they always hold.
    Of equal scores the oldest positions go, and rows of score +inf last. Where the prompt is no longer than ``size`` this is
    the fold. Memory is that of the unbounded H, and of T × (64 … 256) attention weights in one layer at a time.

    Args:
        cell: the cell.
        tokens: ``(B, T)`` int64, right-padded where ragged; T may be 0.
        reduction: as ``cell.initial_state`` takes it.
        lengths: ``(B,)`` int64, as of a call.

    Returns:
        logits ``(B, V)`` after each row's last token, those of the unbounded model, NaN for a row that read nothing; and the
        state, with which the step, the fold and decoding go on as with any other.

    Raises:
        Error: as a call; an operator that merges values, which knows no cut of many rows.
    """
    tokens, lengths = check_text(tokens, lengths, cell.config.vocab_size)
    operators = per_layer(reduction, len(cell.layers))
    for operator in operators:
        if operator.merges_values:
            name = type(operator).__name__
            raise Error(f"prefill: {name} changes values as a row leaves; expected an operator that only drops rows")
    B, T = tokens.shape
    state = cell.initial_state(B, operators)
    if T == 0:
        return torch.full((B, cell.config.vocab_size), torch.nan, dtype=cell.dtype, device=cell.device), state
    state = state.with_layers(replace(H, reduction=Uncut(operator=H.reduction)) for H in state)
    before = (lengths - 1).clamp(min=0)
    _, state = cell(tokens[:, : T - 1], state, lengths=before, last_only=True)
    events = [Events() for _ in operators]
    x, layers = cell.unroll(tokens.gather(1, before[:, None]), state, (lengths > 0)[:, None], events)
    logits = cell.compute_logits(x[:, 0]).masked_fill((lengths == 0)[:, None], torch.nan)
    layers = [replace(_cut(H, e[0].q[:, :, 0]), clock=layers[0].clock) for H, e in zip(layers, events, strict=True)]
    return logits, state.with_layers(layers)


@dataclass(frozen=True)
class Uncut(Reduction):
    """Keeps the numbers of ``operator``; nothing leaves."""

    size: None = None
    operator: Reduction = field(kw_only=True)

    @property
    def stat_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.operator.stat_names

    @property
    def update_is_additive(self) -> bool:  # type: ignore[override]
        return self.operator.update_is_additive

    @property
    def needs_weights(self) -> bool:  # type: ignore[override]
        return self.operator.needs_weights and bool(self.operator.stat_names)

    @property
    def depends_on_row_layout(self) -> bool:  # type: ignore[override]
        return self.operator.depends_on_row_layout and bool(self.operator.stat_names)

    @property
    def needs_keys(self) -> bool:  # type: ignore[override]
        return self.operator.needs_keys and bool(self.operator.stat_names)

    def validate(self, size: int | None) -> None:
        pass

    def stat_shape(self, name: str) -> tuple[int, ...]:
        return self.operator.stat_shape(name)

    def update(self, seen: Observation) -> dict[str, Tensor]:
        return self.operator.update(seen)

    def score(self, seen: Observation) -> Tensor:
        return torch.full_like(seen.positions[:, :1], torch.inf, dtype=seen.weights.dtype)


def _cut(H: MultiState, query: Tensor) -> MultiState:
    """H as the last query ``(B, N, D)`` leaves it."""
    operator = cast(Uncut, H.reduction).operator
    H = replace(H, reduction=operator)
    S, bound = H.positions.shape[2], H.bound
    if bound is None or bound >= S:
        return H
    _, weights = attend(query.detach(), H.keys.detach(), H.values.detach(), H.empty)
    seen = Observation(weights, H.positions, H.clock - 1, H.row_stats, H.keys.detach() if operator.needs_keys else None)
    score = retention_scores(operator, seen).expand(H.positions.shape).clone()
    score[..., : H.pinned] = torch.inf
    last = H.positions.masked_fill(H.positions == LEARNED, torch.iinfo(torch.int64).max)
    order = last.argsort(dim=-1, stable=True)  # empty rows first, then the oldest, and what is learned last
    score = score.masked_fill(H.empty, -torch.inf).gather(2, order)
    kept = order.gather(2, score.argsort(dim=-1, stable=True))[..., S - bound :]  # (B, K, bound)

    def picked(x: Tensor) -> Tensor:
        return x.gather(2, kept.view(*kept.shape, *(1,) * (x.ndim - 3)).expand(-1, -1, -1, *x.shape[3:]))

    return H.with_rows({name: picked(x) for name, x in H.rows.items()}, H.clock).ordered()
