"""Layers with sizes per head as one :class:`MultiState` for each group of heads with the same size, without empty columns.

Each head decides from its own rows, so a group is a layer with one size. Groups of all layers are stacked for a fast step, and
unbounded heads grow without a copy of their rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from torch import Tensor

from ..reductions.contract import EMPTY, Reduction, is_same_operator
from ..reductions.head_budgets import HeadSizes, of_heads
from ..reductions.tova_paper import Full
from .jagged_rows import JaggedMultiState, padded, to_jagged
from .multistate import MultiState
from .pooled_rows import PooledMultiState, stack_pooled
from .stacking import stack, stack_layers, unstack


class StackedLayers(NamedTuple):
    """All layers of a state in one, their batches one after the other, with clock ``(B,)``."""

    parts: tuple[MultiState, ...]
    """``(L B, K, S, D)`` of all heads, one for each group of heads with the same size, or ``(L B, 1, M, D)`` of pooled rows."""
    head_sizes: HeadSizes | None = None
    """The operator of the layers, with one of its ``groups`` for each part; None for one part."""

    @classmethod
    def copy_of(cls, layers: Sequence[MultiState]) -> "StackedLayers | None":
        """Copy the layers as a state stores them; None if they cannot be stacked (:func:`~.stacking.can_stack`)."""
        if (whole := stack(layers) or stack_pooled(layers)) is not None:
            return cls((whole,))
        groups = _stack_groups(layers)
        return None if groups is None else cls(groups, cast(HeadSizes, layers[0].reduction))

    @property
    def is_view(self) -> bool:
        """True if the layers of :meth:`unstack` share the storage."""
        return self.head_sizes is None and not isinstance(self.parts[0], PooledMultiState)

    def with_parts(self, parts: Iterable[MultiState]) -> "StackedLayers":
        """Return the same layers with other parts."""
        return self._replace(parts=tuple(parts))

    def sorted_by_position(self) -> "StackedLayers":
        """Return the rows in order of position."""
        return self.with_parts(H.sorted_by_position() for H in self.parts)

    def unstack(self, n_layers: int) -> tuple[MultiState, ...]:
        """Return the layers as a state stores them, without spare rows."""
        layers = zip(*(unstack(part, n_layers) for part in self.parts), strict=True)
        if self.head_sizes is None:
            return tuple(H.to_jagged() if isinstance(H, PooledMultiState) else H for (H,) in layers)
        return tuple(merge_groups(self.head_sizes, groups) for groups in layers)


def _stack_groups(layers: Sequence[MultiState]) -> tuple[MultiState, ...] | None:
    """Copy the layers into one stacked H for each group of heads; None if they cannot be stacked.

    They cannot if operators differ between layers, if a head depends on other heads, or if all heads are unbounded.
    """
    operator = layers[0].reduction
    if not isinstance(operator, HeadSizes) or operator.operator.reads_heads != "own" or not operator.has_bounded_head:
        return None
    needs_other_ranks = any(H.heads is not None for H in layers) and not operator.own_heads
    alike = all(is_same_operator(H.reduction, operator) and H.n_learned == layers[0].n_learned for H in layers)
    if needs_other_ranks or not alike:
        return None
    groups: list[list[MultiState]] = [[] for _ in operator.groups]
    for H in map(padded, layers):
        for group, (of_group, heads) in zip(groups, operator.groups, strict=True):
            group.append(_take_heads(H, of_group or Full(), heads))
    if any(H.keys.shape != group[0].keys.shape for group in groups for H in group):
        return None
    return tuple(stack_layers(group) for group in groups)


def _take_heads(H: MultiState, operator: Reduction, heads: Sequence[int]) -> MultiState:
    """Return some heads as a layer of their own, in as few columns as they need."""
    rows = {name: of_heads(x, heads) for name, x in H.rows.items()}
    taken = replace(H.with_rows(rows, H.clock), reduction=operator)
    return replace(
        taken, row_stats={name: x for name, x in taken.row_stats.items() if name in operator.stat_names}
    ).sorted_by_position()


def merge_groups(operator: HeadSizes, groups: Sequence[MultiState]) -> JaggedMultiState:
    """Return a layer of all heads, jagged, from those of :func:`_take_heads`. Statistics of unbounded heads are 0."""
    S = max(H.positions.shape[2] for H in groups)
    bounded = next(H for H in groups if H.reduction.size is not None)

    def with_columns(name: str, H: MultiState) -> Tensor:
        B, K, S_own = H.positions.shape
        like = bounded.rows[name]
        found = like.new_full((B, K, S, *like.shape[3:]), EMPTY if name == "positions" else 0)
        if name in H.rows:
            found[:, :, :S_own] = H.rows[name]
        return found

    rows = {name: operator.in_order([with_columns(name, H) for H in groups]) for name in bounded.rows}
    return to_jagged(replace(bounded, reduction=operator).with_rows(rows, bounded.clock))
