"""Scores, attention weights and evictions of a text, as the cell computes them while it reads the text."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..layers.attention import LogitRule, attention_logits, mask_logits
from ..recurrence.eviction import above_lowest
from ..recurrence.layer_trace import LayerTrace
from ..reductions.contract import Reduction
from ..state.multistate import MultiState
from ..state.state import State

QUERY_TOKENS = 256
"""Maximum number of queries for which attention weights of all heads are computed at once."""


@dataclass(frozen=True)
class ObservedLayer:
    """One layer while it reads T tokens after a state of S rows; R = S + T.

    h is 1 if the operator decides for the whole layer, and K if it decides for each key/value head.

    Attributes:
        operator: the operator of the layer.
        positions: ``(h, R)`` int64, the position of each row, −2 for learned rows, −1 for none.
        visible: ``(h, T, R)`` bool, True for rows that a token attends to: H before it, and its own row.
        scores: ``(h, T, R)``, the operator's scores; NaN where not visible.
        weights: ``(h, T, R)``, attention weights: the mean over all query heads, or over the query heads of a key/value head.
        evicted: ``(h, T)`` int64, the position evicted after each token, −1 for none.
    """

    operator: Reduction
    positions: Tensor
    visible: Tensor
    scores: Tensor
    weights: Tensor
    evicted: Tensor

    def decisions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what decided each eviction, ``(h, T)`` each, for tokens without an eviction NaN, NaN and False.

        Returns:
            The score of the evicted row; the lowest score of the other rows; and True where the evicted row shared the lowest
            score with others, so that its position decided.
        """
        none = self.evicted < 0
        is_evicted = (self.positions[:, None] == self.evicted[..., None]) & self.visible & ~none[..., None]
        own = self.scores.masked_fill(~is_evicted, torch.inf).amin(-1)
        others = self.scores.masked_fill(is_evicted | ~self.visible, torch.inf).amin(-1)
        finite = self.scores.masked_fill(~self.visible, torch.inf)
        learned = (self.positions < -1)[:, None].expand_as(finite)
        tied = (~above_lowest(finite, learned | ~self.visible, self.operator.tie_tolerance)).sum(-1) > 1
        return own.masked_fill(none, torch.nan), others.masked_fill(none, torch.nan), tied & ~none


@torch.no_grad()
def observe(cell: Cell, tokens: Tensor, state: State) -> tuple[Tensor, list[ObservedLayer], State]:
    """Read ``tokens (1, T)`` after ``state``, as :meth:`Cell.scan` does.

    Returns:
        Logits ``(T, V)``, the layers, and the state after the text.

    Raises:
        Error: as :meth:`Cell.scan`.
    """
    logits, trace = cell.scan(tokens, state, weights=True)
    layers = [_observed(H, layer, rule) for H, layer, rule in zip(state, trace, cell.logit_rules, strict=True)]
    return logits[0], layers, trace.at(tokens.shape[1])


def _observed(H: MultiState, trace: LayerTrace, rule: LogitRule) -> ObservedLayer:
    assert trace.scores is not None
    T, R = trace.active.shape[1], trace.rows.shape[2]
    step, last = torch.arange(T, device=trace.rows.device), trace.last_visible[0]  # (1 or K, R)
    entered = torch.arange(R, device=step.device) - (R - T)
    visible = (last[:, None] >= step[:, None]) & (entered <= step[:, None])  # (1 or K, T, R)
    scores, evicted, positions = trace.scores[0], trace.left[0], trace.rows[0]  # (1 or K, T, R), (K, T), (K, R)
    heads = scores.shape[0]
    weights = _weights(trace, rule, visible)
    weights = weights.mean(0, keepdim=True) if heads == 1 else weights
    visible = visible.expand(trace.rows.shape[1], -1, -1)[:heads]
    scores = scores.expand(trace.rows.shape[1], -1, -1)[:heads]
    return ObservedLayer(H.reduction, positions[:heads], visible, scores, weights, evicted[:heads])


def _weights(trace: LayerTrace, rule: LogitRule, visible: Tensor) -> Tensor:
    """Return the attention weights ``(K, T, R)``, mean over the query heads that share a key/value head."""
    keys, parts = trace.keys[0], list[Tensor]()  # (K, R, D)
    queries = trace.queries[0].unflatten(0, (len(keys), -1))  # (K, G, T, D)
    for start in range(0, queries.shape[2], QUERY_TOKENS):
        some = queries[:, :, start : start + QUERY_TOKENS]
        logits = attention_logits(some.flatten(1, 2), keys, rule=rule).unflatten(1, some.shape[1:3])  # (K, G, t, R)
        parts.append(mask_logits(logits, visible[:, None, start : start + QUERY_TOKENS]).softmax(-1).mean(1))
    return torch.cat(parts, dim=1)
