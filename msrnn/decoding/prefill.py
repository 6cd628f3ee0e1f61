"""One-shot prefill eviction: full attention over the whole prompt, then one eviction at its end.

The released code of TOVA and H2O, SnapKV and kvpress read prompts in this way. The result differs from the step loop, because
every row is computed with attention to all earlier tokens, including those that the step loop would have evicted. The KV cache
holds the whole prompt until the eviction.

Layers that keep the window of the published model read the prompt within this window, because the window is part of the model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..cell.validation import check_text
from ..errors import Error
from ..layers.attention import LogitRule, attend
from ..recurrence.all_heads import gather_observation, heads_of_rank, heads_to_gather
from ..recurrence.budget_evictions import rows_to_evict_at_once
from ..recurrence.operator_calls import retention_scores
from ..recurrence.records import BlockRecord, LayerRecorder
from ..recurrence.transition import Attended
from ..reductions.contract import EMPTY, FLAG_OF_FIELD, Observation, Reduction, constant_score, is_same_operator
from ..reductions.head_budgets import HeadBudget
from ..reductions.per_layer import per_layer
from ..state.compaction import retain_highest
from ..state.multistate import MultiState
from ..state.state import State


def prefill(
    cell: Cell,
    tokens: Tensor,
    reduction: Reduction | str | Sequence[Reduction | str],
    *,
    lengths: Tensor | None = None,
    dtype: torch.dtype | str | None = None,
) -> tuple[Tensor, State]:
    """Read a prompt with full attention, then evict the rows with the lowest scores of the last token, all at once.

    The row statistics are those of full attention. TOVA scores by the attention of the last query, H2O by the sums over the
    whole prompt. Window and Sinks retain the same positions as in the step loop. Of equal scores the oldest positions are
    evicted first, rows of score +inf last. Heads may have sizes of their own or share a budget: ``shared:last-queries:512:32``
    allocates the rows of a layer by score as Ada-KV (arXiv:2407.11550) does. If no row has to be evicted, the result is that
    of the step loop. Layers with the window of the published model (``tova:512`` on a Gemma replaces no window) are read as by
    the step loop.

    Memory is that of the unbounded KV cache. For an operator with statistics it also includes T × (64 … 256) attention weights
    of one layer at a time.

    Args:
        cell: the cell.
        tokens: ``(B, T)`` int64. Prompts of different lengths are padded on the right; T may be 0.
        reduction: an operator, a spec string, or one of them per layer, as in ``cell.initial_state``.
        lengths: lengths of the prompts without padding, ``(B,)`` int64.
        dtype: of keys and values, as in ``cell.initial_state``.

    Returns:
        The logits ``(B, V)`` of the model without the operator after the last token of each row, NaN for an empty prompt; and
        the state, from which step, unroll and decoding continue.

    Raises:
        Error: an operator merges values, which is not defined for many rows at once; also the errors of :meth:`Cell.forward`.
    """
    tokens, lengths = check_text(tokens, lengths, cell.config.vocab_size)
    B, T = tokens.shape
    state = cell.initial_state(B, reduction, dtype=dtype)
    published = per_layer(None, len(state), cell.default_reduction)
    windowed = [own.size is not None and is_same_operator(H.reduction, own) for H, own in zip(state, published, strict=True)]
    operators = [H.reduction for H in state]
    check_one_shot(operators)
    if T == 0:
        return torch.full((B, cell.config.vocab_size), torch.nan, dtype=cell.dtype, device=cell.device), state
    deferred = [DeferredEviction(operator=operator) for operator in operators]
    state = state.with_layers(
        H if keeps else replace(H, reduction=operator) for H, keeps, operator in zip(state, windowed, deferred, strict=True)
    )
    before = (lengths - 1).clamp(min=0)
    _, state = cell(tokens[:, : T - 1], state, lengths=before, last_only=True)
    recorders, rules = [LayerRecorder() for _ in operators], cell.logit_rules
    x, layers = cell.unroll(tokens.gather(1, before[:, None]), state, (lengths > 0)[:, None], recorders)
    logits = cell.compute_logits(x[:, 0]).masked_fill((lengths == 0)[:, None], torch.nan)
    layers = [
        H if keeps else _evict_once(H, recorder.blocks[0], rule)
        for H, keeps, recorder, rule in zip(layers, windowed, recorders, rules, strict=True)
    ]
    layers = [replace(H, clock=layers[0].clock) for H in layers]
    return logits, state.with_layers(layers)


def check_one_shot(operators: Iterable[Reduction]) -> None:
    """Refuse the operators of layers that cannot evict many rows at once.

    Raises:
        Error: as :func:`prefill`.
    """
    for operator in operators:
        if operator.merges_values:
            name = type(operator).__name__
            raise Error(f"prefill: {name} merges values at an eviction; expected an operator that only evicts rows")


@dataclass(frozen=True)
class DeferredEviction(Reduction):
    """An operator that keeps the row statistics of ``operator`` and evicts no row."""

    size: None = None
    operator: Reduction = field(kw_only=True)

    def __post_init__(self) -> None:
        operator, updates = self.operator, bool(self.operator.stat_names)  # without statistics the operator is never called
        flags = {
            "stat_names": operator.stat_names,
            "update_is_additive": operator.update_is_additive,
            "needs_weights": operator.needs_weights and updates,
            **{flag: getattr(operator, flag) and updates for flag in FLAG_OF_FIELD.values()},
            "needs_input": operator.needs_input,  # also for the scores of the last token
            "depends_on_row_layout": operator.depends_on_row_layout and updates,
            "reads_heads": operator.reads_heads if updates and operator.reads_heads != "mean" else "own",
        }
        for name, value in flags.items():
            object.__setattr__(self, name, value)  # flags of the instance, because they depend on its operator

    def stat_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the operator's statistic."""
        return self.operator.stat_shape(name)

    def update(self, observation: Observation) -> dict[str, Tensor]:
        """Return the operator's statistics."""
        return self.operator.update(observation)

    def score(self, observation: Observation) -> Tensor:
        """Return +inf for every row."""
        return constant_score(observation, torch.inf)


def _evict_once(H: MultiState, last: BlockRecord, rule: LogitRule) -> MultiState:
    """Return H after evicting all rows above the size of its operator, by the scores for the last token.

    Args:
        last: the record of the last token.
        rule: of the attention logits of the layer.
    """
    operator = cast(DeferredEviction, H.reduction).operator
    H = replace(H, reduction=operator)
    query, x = last.q[:, :, 0].detach(), last.inputs[:, 0]  # (B, N, D), (B, E)
    S, bound, budget = H.positions.shape[2], H.capacity, operator if isinstance(operator, HeadBudget) else None
    if budget is not None:
        bound = budget.rows_before_eviction + H.n_learned
    if bound is None or bound >= S:
        return H
    output, weights = attend(query, H.keys.detach(), H.values.detach(), ~H.empty, H.key_scales, H.value_scales, rule)
    observation = Attended(weights, output, query, x).observe(replace(H, clock=H.clock - 1))
    to_gather = heads_to_gather(H.heads, operator)
    observation = gather_observation(to_gather, operator, observation)
    score = retention_scores(operator, observation, heads=H.heads if to_gather is None else None)
    if budget is None:
        return retain_highest(H, heads_of_rank(to_gather, score), bound)
    evicted = heads_of_rank(to_gather, rows_to_evict_at_once(budget, score, observation.positions))
    return replace(H, positions=H.positions.masked_fill(evicted, EMPTY), no_empty_rows=False).sorted_by_position()
