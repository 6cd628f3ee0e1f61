"""Layers in which key/value heads retain different numbers of rows: the base class, and one fixed size per head."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import Error
from .all_layers import AllLayers
from .budgets import has_sizes_per_head, is_for_every_layer
from .contract import FLAG_OF_FIELD, MAX_SIZE, SAFE_FLAGS, Observation, Reduction


@dataclass(frozen=True)
class HeadBudget(Reduction, ABC):
    """Base class: the operator of a layer in which heads retain different numbers of rows. It has the flags of ``operator``.

    The state of such a layer is stored without empty rows (``state/jagged_rows.py``).

    Attributes:
        operator: scores rows, separately for each key/value head.
    """

    description: ClassVar[str]
    """What a refusal calls the operator."""
    size: Any = field(init=False)
    operator: Reduction

    def __post_init__(self) -> None:
        _check_scores_heads(self.description, self.operator)
        for name in (*SAFE_FLAGS, *FLAG_OF_FIELD.values(), "stat_names", "tie_tolerance"):
            object.__setattr__(self, name, getattr(self.operator, name))
        object.__setattr__(self, "reads_heads", "all")

    def check_contract(self) -> None:
        self.operator.check_contract()

    def stat_shape(self, name: str) -> tuple[int, ...]:
        return self.operator.stat_shape(name)

    def check_heads(self, K: int) -> None:
        """Raise :class:`Error` if the operator does not fit a layer of K key/value heads."""

    @property
    @abstractmethod
    def rows_before_eviction(self) -> int:
        """Number of rows up to which no head evicts a row, if all heads hold equally many."""

    @abstractmethod
    def max_rows(self, K: int) -> int | None:
        """Return the maximum number of rows that one of K heads retains; None if a head is unbounded."""

    @abstractmethod
    def excess(self, n_rows: Tensor) -> Tensor:
        """Return the number of rows to evict, ``(…, K or 1)``, from the number of rows of each head ``(…, K)``.

        One number per head, or one for the layer. Numbers below 1 evict none.
        """

    def evicts(self, n_rows: Tensor) -> Tensor:
        """Return whether a row is evicted, ``(…, K or 1)`` bool, from the number of rows of each head ``(…, K)``."""
        return self.excess(n_rows) > 0


@dataclass(frozen=True)
class HeadSizes(HeadBudget):
    """One fixed size per key/value head: each head evicts as by ``operator`` with its own size, or never if its size is None.

    Users write ``TOVA(size=((64, 32, None),), per_head=True)``; this class is the operator of one layer.

    Unbounded heads between bounded ones are those of DuoAttention (arXiv:2410.10819): its retrieval heads retain all rows, and
    its streaming heads retain sinks and a window, as ``Sinks(((None, 256, 256),))``. The paper finds the retrieval heads by
    optimizing a gate per head; here they are given.

    Attributes:
        operator: with the sizes of the heads as its ``size``, ``((64, 32, None),)``.
        sizes: these sizes.
        groups: the heads of each size, and ``operator`` with this size; None for unbounded heads. Their scores are +inf, and
            their statistics 0.
        own_heads: True: the heads are those of one rank of a split cell, and no other heads are needed.
    """

    description: ClassVar[str] = "sizes per head"
    own_heads: bool = field(default=False, kw_only=True)
    sizes: tuple[int | None, ...] = field(init=False, repr=False, compare=False)
    groups: tuple[tuple[Reduction | None, tuple[int, ...]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        size: Any = self.operator.size
        if not has_sizes_per_head(size) or not is_for_every_layer(size):
            raise Error(f"HeadSizes: size is {size!r:.60}; expected the sizes of the heads of one layer, such as ((64, 32),)")
        (sizes,) = size
        heads = {n: tuple(k for k, size in enumerate(sizes) if size == n) for n in dict.fromkeys(sizes)}
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "size", None if None in sizes else max(sizes))
        groups = tuple((None if n is None else replace(self.operator, size=n), some) for n, some in heads.items())
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "reads_heads", "own" if self.own_heads else "all")

    def check_contract(self) -> None:
        for operator, _ in self.groups:
            if operator is not None:
                operator.check_contract()

    def check_heads(self, K: int) -> None:
        if len(self.sizes) != K:
            kind = type(self.operator).__name__
            raise Error(f"{kind}: {len(self.sizes)} sizes for a layer of {K} key/value heads; expected one per head")

    @property
    def has_bounded_head(self) -> bool:
        """True if some head has a size."""
        return any(size is not None for size in self.sizes)

    @property
    def rows_before_eviction(self) -> int:
        return min((size for size in self.sizes if size is not None), default=MAX_SIZE)

    def max_rows(self, K: int) -> int | None:
        return self.size

    def excess(self, n_rows: Tensor) -> Tensor:
        return n_rows - torch.tensor([MAX_SIZE if size is None else size for size in self.sizes], device=n_rows.device)

    def update(self, observation: Observation) -> dict[str, Tensor]:
        parts = [_updated_or_zero(operator, observation, heads) for operator, heads in self.groups]
        return {name: self.in_order([part[name] for part in parts]) for name in parts[0]}

    def score(self, observation: Observation) -> Tensor:
        return self.in_order([_scores_or_inf(operator, observation, heads) for operator, heads in self.groups])

    def in_order(self, parts: list[Tensor]) -> Tensor:
        """Concatenate results ``(B, n, …)`` of groups of heads, in the order of the heads."""
        grouped = [k for _, heads in self.groups for k in heads]
        if grouped == sorted(grouped):
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        of_heads = [x for part in parts for x in part.split(1, dim=1)]  # an index would be copied to the device
        return torch.cat([of_heads[i] for i in sorted(range(len(grouped)), key=grouped.__getitem__)], dim=1)

    def __str__(self) -> str:
        return str(self.operator)


def _updated_or_zero(operator: Reduction | None, observation: Observation, heads: Sequence[int]) -> dict[str, Tensor]:
    """Return :func:`updated_stats`, or zeros for unbounded heads."""
    if operator is not None:
        return updated_stats(operator, observation, heads)
    return {name: torch.zeros_like(of_heads(x, heads)) for name, x in observation.row_stats.items()}


def _scores_or_inf(operator: Reduction | None, observation: Observation, heads: Sequence[int]) -> Tensor:
    """Return :func:`scores`, or +inf for unbounded heads."""
    if operator is not None:
        return scores(operator, observation, heads)
    B, _, R = observation.positions.shape
    return observation.weights.new_full((B, len(heads), R), torch.inf)


def scoring_operator(operator: Reduction) -> Reduction:
    """Return the operator within a :class:`HeadBudget`, or ``operator`` itself."""
    return operator.operator if isinstance(operator, HeadBudget) else operator


def scores(operator: Reduction, observation: Observation, heads: Sequence[int]) -> Tensor:
    """Return the scores of some heads, ``(B, n, R)``: those that the operator gives without reading other heads, if it can.

    Raises:
        Error: the operator gives scores of another shape, such as one decision for the layer.
    """
    B, K, R = observation.positions.shape
    own = operator.reads_heads == "own"
    score = operator.score(_heads_as_batch(observation, heads) if own else observation)
    shape = (B * len(heads), 1, R) if own else (B, K, R)
    if not isinstance(score, Tensor) or score.shape != shape:
        found = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
        raise Error(f"{type(operator).__name__}.score returns {found}; expected {shape}, because each head has its own rows")
    return score.view(B, len(heads), R) if own else of_heads(score, heads)


def updated_stats(operator: Reduction, observation: Observation, heads: Sequence[int]) -> dict[str, Tensor]:
    """Return the updated statistics of some heads by name, ``(B, n, R, …)`` each.

    Raises:
        Error: the operator returns no dict of tensors with the names and shapes of the statistics.
    """
    B, own = len(observation.positions), operator.reads_heads == "own"
    seen = _heads_as_batch(observation, heads) if own else observation
    updated = operator.update(seen)
    found: object = type(updated).__name__
    if isinstance(updated, Mapping):
        found = {name: tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for name, x in updated.items()}
    if found != (expected := {name: tuple(x.shape) for name, x in seen.row_stats.items()}):
        raise Error(f"{type(operator).__name__}.update returns {found}; expected {expected}")
    if own:
        return {name: x.reshape(B, len(heads), *x.shape[2:]) for name, x in updated.items()}
    return {name: of_heads(x, heads) for name, x in updated.items()}


def _heads_as_batch(observation: Observation, heads: Sequence[int]) -> Observation:
    """Return the observation of n heads with one head in each entry of the batch, ``(B n, 1, …)``."""
    n = len(heads)

    def of_rows(x: Tensor) -> Tensor:
        return of_heads(x, heads).flatten(0, 1)[:, None]

    keys, values, output, queries, x = observation[4:]
    return Observation(
        of_rows(observation.weights),
        of_rows(observation.positions),
        observation.clock.repeat_interleave(n),
        {name: of_rows(y) for name, y in observation.row_stats.items()},
        None if keys is None else of_rows(keys),
        None if values is None else of_rows(values),
        None if output is None else of_rows(output),
        None if queries is None else of_rows(queries),
        None if x is None else x.repeat_interleave(n, dim=0),
    )


def of_heads(x: Tensor, heads: Sequence[int]) -> Tensor:
    """Return some heads, in increasing order, ``(B, K, …) -> (B, n, …)``; a view if no head between them is left out."""
    first, last = heads[0], heads[-1]
    if last - first == len(heads) - 1:
        return x[:, first : last + 1]
    return torch.cat([x[:, k : k + 1] for k in heads], dim=1)  # an index would be copied to the device


def _check_scores_heads(name: str, operator: object) -> None:
    """Refuse an operator that cannot decide for each head separately."""
    if not isinstance(operator, Reduction) or isinstance(operator, HeadBudget | AllLayers):
        raise Error(f"{name}: operator is {operator!r:.60}; expected a Reduction, such as TOVA(512, per_head=True)")
    kind = type(operator).__name__
    if operator.size is None:
        raise Error(f"{name}: {kind} retains all rows; expected an operator with a size")
    if operator.reads_heads == "mean" or getattr(operator, "per_head", True) is False:
        raise Error(f"{name}: {operator} takes one decision for the layer; expected one per key/value head, such as tova-head")
    if operator.merges_values:
        raise Error(f"{name}: {kind} merges values; expected an operator that only evicts rows")
    if operator.depends_on_row_layout:
        raise Error(
            f"{name}: {kind} depends_on_row_layout, but heads hold different numbers of rows; expected a class that states "
            "depends_on_row_layout = False"
        )
