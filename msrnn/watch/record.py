"""What is kept of a text that was observed: the numbers of the rows that each token attends to, and nothing of other rows.

A bounded layer of a long text has few of them. With all rows, scores and weights would need ``T · T`` numbers per layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..reductions.contract import Reduction
from .observe import ObservedLayer


class VisibleNumbers(NamedTuple):
    """Positions, weights and scores, ``(n,)`` each, of the rows that consecutive tokens attend to, token after token."""

    positions: Tensor
    weights: Tensor
    scores: Tensor


class RecordedPart(NamedTuple):
    """Some tokens in one layer: the numbers of each of the h heads, the evicted positions and what decided, ``(h, T)`` each."""

    heads: list[VisibleNumbers]
    evicted: Tensor
    decisions: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, layer: ObservedLayer) -> "RecordedPart":
        """Take them from a layer. Learned rows are left out."""
        heads = []
        for positions, visible, weights, scores in zip(
            layer.positions, layer.visible, layer.weights, layer.scores, strict=True
        ):
            chosen = visible & (positions >= 0)  # (T, R)
            rows = positions.expand_as(chosen)[chosen]
            heads.append(VisibleNumbers(rows.int(), weights[chosen], scores[chosen]))
        return cls(heads, layer.evicted, layer.decisions())


@dataclass(frozen=True)
class RecordedLayer:
    """One layer over a text of T tokens. h as in :class:`~msrnn.watch.observe.ObservedLayer`.

    Attributes:
        operator: the operator of the layer.
        weights, scores: for each of the h heads ``(n,)``, the numbers of the n pairs of a position and a token that attends to
            it: position after position, and for each position token after token.
        evicted: ``(h, T)`` int64, the position evicted after each token, −1 for none.
        decisions: as :meth:`~msrnn.watch.observe.ObservedLayer.decisions` returns them.
    """

    operator: Reduction
    weights: list[Tensor]
    scores: list[Tensor]
    evicted: Tensor
    decisions: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, operator: Reduction, parts: Sequence[RecordedPart]) -> "RecordedLayer":
        """Join the consecutive parts of a text."""
        weights, scores = [], []
        for heads in zip(*(part.heads for part in parts), strict=True):
            order = torch.cat([part.positions for part in heads]).argsort(stable=True)
            weights.append(torch.cat([part.weights for part in heads])[order])
            scores.append(torch.cat([part.scores for part in heads])[order])
        own, others, tied = (torch.cat(x, dim=1) for x in zip(*(part.decisions for part in parts), strict=True))
        return cls(operator, weights, scores, torch.cat([part.evicted for part in parts], dim=1), (own, others, tied))
