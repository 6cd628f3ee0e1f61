"""Calls of an operator's ``update``, ``score`` and ``merge``: one observation for every path, and checked answers.

The step and the many-token path both call operators here, with the rows of the KV cache in any order and with absent rows among
them. A class with ``depends_on_row_layout`` receives copies that contain exactly the rows that are there, in order of position,
so it computes the same in every path and cannot edit the cache. Any other class receives the tensors themselves.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..distributed.heads import RankHeads
from ..errors import Error
from ..layers.differentiation import in_transform, is_batched_by_vmap, to_list
from ..reductions.contract import EMPTY, FLAG_OF_FIELD, Observation, Reduction
from ..reductions.head_budgets import scoring_operator
from ..reductions.spec_strings import is_internal
from .operator_answers import checked_score, checked_stats, checked_values, widest_float

Layout = tuple[Tensor | None, Tensor]
"""Batch rows ``(B',)``, None for all, and the columns ``(B', K, R')`` of their cached rows in order of position."""


def update_stats(
    operator: Reduction, observation: Observation, active: Tensor | None = None, complete: bool = False
) -> dict[str, Tensor]:
    """Return the statistics that ``operator.update`` gives, in the dtype of the weights.

    Args:
        operator: the operator.
        observation: the rows, −1 in ``positions`` where there is none.
        active: ``(B,)`` bool, False where the statistics of a batch row are not used; None: all are used.
        complete: True if it is known that no row is absent and all batch rows are used, which saves a synchronisation.

    Raises:
        Error: the answer has other names, shapes or types than the statistics, or is on another device.
    """
    if not observation.row_stats:
        return {}
    if not operator.depends_on_row_layout:
        return checked_stats(operator, observation, _call(operator, "update", observation))
    updated = {name: x.clone() for name, x in observation.row_stats.items()}
    for rows, columns in _layouts(observation.positions, active, complete=complete):
        copy = _copied(observation, rows, columns)
        for name, x in checked_stats(operator, copy, _invoke(operator, "update", copy)).items():
            updated[name] = _scatter(updated[name], x, rows, columns)
    return updated


def retention_scores(
    operator: Reduction,
    observation: Observation,
    scored: Tensor | None = None,
    n_rows: int | None = None,
    complete: bool = False,
    heads: RankHeads | None = None,
) -> Tensor:
    """Return the scores ``(B, 1 or K, R)`` in at least float32. NaN becomes −inf, the lowest score.

    Args:
        operator: the operator.
        observation: as :func:`update_stats`.
        scored: ``(B,)`` bool, False where the scores of a batch row are not used; None: all are used.
        n_rows: score only the batch rows that have this many rows; None: all.
        complete: as :func:`update_stats`.
        heads: the heads of the observation, if other ranks hold others. A score that is a mean over the heads is
            that of all ranks.

    Raises:
        Error: the answer is no real tensor of shape ``(B, K, R)`` or ``(B, 1, R)``.
    """
    if heads is not None and operator.reads_heads == "mean":
        return heads.mean_scores(retention_scores(operator, observation, scored, n_rows, complete))
    if not operator.depends_on_row_layout:
        return checked_score(operator, observation, _call(operator, "score", observation))
    scores = observation.weights.new_zeros(observation.positions.shape, dtype=widest_float(observation.weights.device))
    for rows, columns in _layouts(observation.positions, scored, n_rows, complete):
        copy = _copied(observation, rows, columns)
        score = checked_score(operator, copy, _invoke(operator, "score", copy))
        scores = _scatter(scores, score.to(scores.dtype).expand(columns.shape), rows, columns)
    return scores


def merge_evicted_value(
    operator: Reduction,
    observation: Observation,
    values: Tensor,
    row: Tensor,
    evicts: Tensor,
    complete: bool = False,
    gathered: RankHeads | None = None,
) -> Tensor:
    """Return the values ``(B, K, R, D)`` after row ``row (B, K)`` is evicted where ``evicts (B, K)``; a new tensor.

    ``gathered``: the heads of the other arguments, if the observation is that of the heads of all ranks; otherwise None.

    Raises:
        Error: the answer has another shape or type than the values.
    """
    if gathered is not None:
        values, row, evicts = (gathered.gather(x, 1) for x in (values, row, evicts))
        return gathered.own(merge_evicted_value(operator, observation, values, row, evicts, complete), 1)
    if not operator.depends_on_row_layout:
        merged = checked_values(operator, values, _call(operator, "merge", observation, values, row))
        return torch.where(evicts[..., None, None], merged, values)
    after = values.clone()
    for rows, columns in _layouts(observation.positions, evicts.any(1), complete=complete):
        some, index = (x if rows is None else x.index_select(0, rows) for x in (values, row))
        some = _gathered(some, columns)
        index = (columns == index[..., None]).byte().argmax(-1)  # the column of the evicted row
        copy = _copied(observation, rows, columns)
        merged = checked_values(operator, some, _invoke(operator, "merge", copy, some.clone(), index))
        stays = ~(evicts if rows is None else evicts.index_select(0, rows))
        after = _scatter(after, torch.where(stays[..., None, None], some, merged), rows, columns)
    return after


def _layouts(positions: Tensor, used: Tensor | None, n_rows: int | None = None, complete: bool = False) -> Iterator[Layout]:
    """Yield the batch rows that are used, grouped by the number of their cached rows, each with its columns in order."""
    order, R = positions.argsort(dim=-1, stable=True), positions.shape[2]
    if complete:
        yield None, order
        return
    if is_batched_by_vmap(positions):
        raise Error(
            "torch.func.vmap cannot evaluate a class with depends_on_row_layout if rows may be empty; expected a loop over the "
            "inputs, or a class that states depends_on_row_layout = False"
        )
    counts = (positions != EMPTY).sum(-1).amax(1)  # (B,)
    if used is not None:
        counts = counts.masked_fill(~used, 0)
    learned = (positions < EMPTY).sum(-1, keepdim=True)
    for count in to_list(counts.unique()):
        if count == 0 or n_rows not in (None, count):
            continue
        if count == R and bool((counts == R).all()):
            yield None, order
            continue
        rows = (counts == count).nonzero()[:, 0]
        # learned rows are sorted to the front, absent rows behind them, tokens to the end
        column = torch.arange(count, device=order.device)
        column = torch.where(column < learned.index_select(0, rows), column, column + R - count)
        yield rows, order.index_select(0, rows).gather(2, column)


def _copied(observation: Observation, rows: Tensor | None, columns: Tensor) -> Observation:
    """Return a copy of the observation that has only these batch rows and columns."""

    def copied_rows(x: Tensor) -> Tensor:  # of a tensor without columns
        return x.clone() if rows is None else x.index_select(0, rows)

    def picked(x: Tensor) -> Tensor:
        return _gathered(x if rows is None else x.index_select(0, rows), columns)

    weights, positions, clock, row_stats, keys, values, output, queries, x = observation
    return Observation(
        picked(weights.movedim(2, 3)).movedim(3, 2).contiguous(),  # (B', K, G, R')
        picked(positions),
        copied_rows(clock),
        {name: picked(x) for name, x in row_stats.items()},
        None if keys is None else picked(keys),
        None if values is None else picked(values),
        None if output is None else copied_rows(output),
        None if queries is None else copied_rows(queries),
        None if x is None else copied_rows(x),
    )


def _index(columns: Tensor, x: Tensor) -> Tensor:
    return columns.view(*columns.shape, *(1,) * (x.ndim - 3)).expand(*columns.shape, *x.shape[3:])


def _gathered(x: Tensor, columns: Tensor) -> Tensor:
    """``(B', K, R, …), (B', K, R') -> (B', K, R', …)``."""
    return x.gather(2, _index(columns, x))


def _scatter(into: Tensor, x: Tensor, rows: Tensor | None, columns: Tensor) -> Tensor:
    """Write ``x (B', K, R', …)`` into the batch rows and columns of ``into (B, K, R, …)``, in place unless in a transform."""
    some = into if rows is None else into.index_select(0, rows)
    if in_transform():
        some = some.scatter(2, _index(columns, x), x)
        return some if rows is None else into.index_copy(0, rows, some)
    some = some.scatter_(2, _index(columns, x), x)
    return some if rows is None else into.index_copy_(0, rows, some)


def _call(operator: Reduction, method: str, observation: Observation, *more: Tensor) -> object:
    """Call a method on the library's own tensors and refuse in-place edits of them.

    Compiled code and inference tensors have no version counters. A user's class receives copies there.
    """
    tensors = [*(x for x in observation if isinstance(x, Tensor)), *observation.row_stats.values(), *more]
    if torch.compiler.is_compiling() or any(x.is_inference() for x in tensors):
        if not is_internal(type(scoring_operator(operator))):
            copies: dict[str, Any] = {name: x.clone() for name, x in observation._asdict().items() if isinstance(x, Tensor)}
            row_stats = {name: x.clone() for name, x in observation.row_stats.items()}
            observation, more = observation._replace(**copies, row_stats=row_stats), tuple(x.clone() for x in more)
        return _invoke(operator, method, observation, *more)
    versions = [x._version for x in tensors]
    answer = _invoke(operator, method, observation, *more)
    if versions != [x._version for x in tensors]:
        fields = [name for name, x in observation._asdict().items() if isinstance(x, Tensor)]
        names = [*fields, *observation.row_stats, "values", "row"]
        edited = next(name for name, x, version in zip(names, tensors, versions, strict=False) if x._version != version)
        raise Error(f"{type(scoring_operator(operator)).__name__}.{method} edits {edited} in place; expected a new tensor")
    return answer


def _invoke(operator: Reduction, method: str, observation: Observation, *more: Tensor) -> object:
    """Call a method, which may edit the dict of statistics; frequent mistakes become an :class:`Error`."""
    try:
        return getattr(operator, method)(observation._replace(row_stats=dict(observation.row_stats)), *more)
    except (AttributeError, TypeError, RuntimeError) as error:
        kind = type(scoring_operator(operator))
        name = f"{kind.__name__}.{method}"
        if "NoneType" in str(error) and (missing := [x for x in FLAG_OF_FIELD if getattr(observation, x) is None]):
            code = getattr(getattr(kind, method), "__code__", None)
            reads = [x for x in missing if code and x in code.co_names]
            found = f"{reads[0]}, which is None" if reads else "a field that is None"
            raise Error(f"{name} reads {found}; expected a class with {FLAG_OF_FIELD[(reads or missing)[0]]} = True") from error
        if "more than one element of the written-to tensor" in str(error):  # an in-place edit of an expanded tensor
            raise Error(f"{name} edits its input in place; expected a new tensor") from error
        raise
