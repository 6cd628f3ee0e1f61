r"""The many-token path of one layer: the result of T steps, computed in blocks.

Within a layer the recurrence over time depends only on that layer's queries, keys and values. So one product gives the logits
of a block of T tokens with all rows that any of them can attend to (S rows before them, T new ones). The evictions are computed
from these logits (``block_evictions.py``), and one more product with the values gives the output. The weights of the model are
read once for many tokens instead of once per token. Memory is T × (S + T), never the square of the whole text.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import Error
from ..layers.attention import SCALED_PRODUCT, LogitRule
from ..layers.differentiation import is_batched_by_vmap, is_differentiated
from ..reductions.contract import EMPTY, FLAG_OF_FIELD, Observation, Reduction
from ..state.multistate import MultiState
from ..state.position_remapping import PositionRemapping
from ..state.quantised_rows import dequantise_rows, encode_rows, replace_values
from ..state.split_heads import with_columns_of_all_ranks
from .all_heads import gather_observation, heads_to_gather
from .block_all_heads import gather_block, take_own_block
from .block_attention import AttendBlock, BlockTensors, attend_remapped, attend_weight_free, attend_weighted, block_logits
from .block_evictions import is_solved_per_token, solve_evictions
from .block_fields import BlockFields
from .block_layout import BlockLayout
from .block_scores import BlockScores, EvictionBlock
from .operator_calls import merge_evicted_value
from .projected_tokens import ProjectedTokens
from .records import LayerRecorder, SharedAcrossLayers
from .transition import append_attend_reduce

BLOCK, WEIGHT_FREE_BLOCK = 64, 256
"""Tokens per block. A longer block has fewer products and more wrong proposals; without weights proposals are rarely wrong."""

MAX_COPIED_ELEMENTS = 2**24
"""Maximum number of elements of keys and values that a block copies for an operator that needs them: 64 MB in float32."""


def unroll_layer(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    H: MultiState,
    active: Tensor | None,
    recorder: LayerRecorder | None = None,
    shared: SharedAcrossLayers | None = None,
    rule: LogitRule = SCALED_PRODUCT,
) -> tuple[Tensor, MultiState]:
    """Attend with each of T tokens and reduce after each: the result of T times append, attend, reduce.

    This synchronises with the device.

    Args:
        x: input of the layer, ``(B, T, E)``, which only an operator with ``needs_input`` reads.
        q: ``(B, N, T, D)``; k, v: ``(B, K, T, D)``; rotated, unless H has places.
        H: the state of the layer before the first token, S rows.
        active: ``(B, T)`` bool; tokens where it is False are not read. None: all are read.
        recorder: records every block.
        shared: work of earlier layers on the same tokens, which is extended.
        rule: of the attention logits.

    Returns:
        Attention output ``(B, N, T, D)``, arbitrary for tokens that are not read, and the state after the last token; an
        earlier state if not ``shared.make_state``.
    """
    if is_batched_by_vmap(q, k, v, H.keys, H.values, H.positions, H.clock):
        raise Error("torch.func.vmap cannot read many tokens at once; expected cell.step, or a batch (B, T) without vmap")
    tokens = ProjectedTokens(x, q, k, v, rule)
    if H.places and recorder is None and not _evictions_known_from_positions(H):
        return _unroll_stepwise(tokens, H, active)
    return _unroll_blocks(tokens, H, active, recorder, SharedAcrossLayers() if shared is None else shared)


def _unroll_stepwise(tokens: ProjectedTokens, H: MultiState, active: Tensor | None) -> tuple[Tensor, MultiState]:
    """:func:`unroll_layer` token by token, as the step does it."""
    x, q, k, v, outputs = tokens.x, tokens.q, tokens.k, tokens.v, [tokens.q[:, :, :0]]
    for t in range(tokens.T):
        now = None if active is None else active[:, t]
        clock = H.clock + (1 if now is None else now)
        some = x[:, t], q[:, :, t], k[:, :, t], v[:, :, t]
        output, H = append_attend_reduce(*some, H, clock, now, in_place=t > 0, rule=tokens.rule)
        outputs.append(output[:, :, None])
    return torch.cat(outputs, dim=2), H


def _unroll_blocks(
    tokens: ProjectedTokens, H: MultiState, active: Tensor | None, recorder: LayerRecorder | None, shared: SharedAcrossLayers
) -> tuple[Tensor, MultiState]:
    """:func:`unroll_layer` in blocks of tokens."""
    H, q = H.sorted_by_position(), tokens.q
    plan, outputs = _LayerPlan.of(H), list[Tensor]()
    needs_grad = is_differentiated(q, tokens.k, tokens.v, H.keys, H.values)  # autograd may have saved the rows
    for start in range(0, tokens.T, plan.block_tokens):
        H, stop = with_columns_of_all_ranks(H), min(start + plan.block_tokens, tokens.T)
        some = tokens.between(start, stop)
        stored, tensors, block = _build_block(some, H, plan, shared.layout(H, active, start, stop, q.dtype))
        block, parts = _find_evictions(block, start, plan, recorder, shared)
        output = plan.attend(tensors, block, parts)
        outputs.append(output.to(q.dtype).unflatten(2, (-1, block.T)).flatten(1, 2))  # (B, N, t, D)
        make_state = shared.make_state or stop < tokens.T
        if recorder is not None:
            recorder.add(some, block, parts, H.row_stats, None if make_state else stored)
        if make_state:
            out = H if not needs_grad and (shared.donate or start > 0) else None
            H = _state_after(H, stored, tensors.positions, block, parts, out)
    if not outputs:
        return q, H
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2), H


def _find_evictions(
    block: EvictionBlock, start: int, plan: "_LayerPlan", recorder: LayerRecorder | None, shared: SharedAcrossLayers
) -> tuple[EvictionBlock, list[BlockScores]]:
    """Return the block of this rank with its evictions, and the scores of consecutive tokens.

    The scores are empty if the evictions are those of an earlier layer.

    Args:
        block: without evictions.
        start: its first token.
        plan, recorder, shared: of the layer.
    """
    whole = gather_block(block)
    earlier = shared.evictions(whole, start) if recorder is None else None
    if earlier is not None:
        solved, parts = earlier, list[BlockScores]()
    else:
        solved, parts = solve_evictions(whole, recorder is not None and recorder.want_scores)
    if plan.positions_only:
        shared.positions_only_evictions[start] = solved
    return take_own_block(block, solved, parts)


def is_called_per_token(operator: Reduction) -> bool:
    """Return True for an operator that is called once per token in each layer, also when many tokens are read at once."""
    return operator.merges_values or is_solved_per_token(operator)


def _reads_positions_only(H: MultiState) -> bool:
    operator = H.reduction
    reads = any(getattr(operator, flag) for flag in ("needs_weights", *FLAG_OF_FIELD.values()))
    return not (reads or operator.merges_values or operator.stat_names)


def _evictions_known_from_positions(H: MultiState) -> bool:
    """Return True if remapped positions of many tokens can be counted at once, because evictions depend on positions only."""
    return H.places is not None and H.places.is_relative and _reads_positions_only(H) and not H.n_learned


@dataclass(frozen=True)
class _LayerPlan:
    """Choices that depend on the operator and on position remapping, made once per layer.

    Attributes:
        block_tokens: tokens per block.
        attend: the attention of a block.
        rotate: remapping that rotates keys for one token at a time; None if keys are rotated already or in ``attend``.
        positions_only: True if evictions depend on positions only, so that the next layers reuse them.
    """

    block_tokens: int
    attend: AttendBlock
    rotate: PositionRemapping | None
    positions_only: bool

    @classmethod
    def of(cls, H: MultiState) -> "_LayerPlan":
        operator, positions_only = H.reduction, _reads_positions_only(H)
        if H.places and _evictions_known_from_positions(H):
            return cls(BLOCK, partial(attend_remapped, H.places), None, positions_only)
        attend = attend_weighted if operator.needs_weights else attend_weight_free
        if operator.merges_values or H.places:  # the next token attends to what this eviction leaves
            return cls(1, attend, H.places, positions_only)
        tokens = BLOCK if operator.needs_weights else WEIGHT_FREE_BLOCK
        if copies := operator.needs_keys + operator.needs_values:
            tokens = min(BLOCK, max(1, MAX_COPIED_ELEMENTS // max(1, copies * H.keys.numel())))
        return cls(tokens, attend, None, positions_only)


def _build_block(
    tokens: ProjectedTokens, H: MultiState, plan: _LayerPlan, layout: BlockLayout
) -> tuple[dict[str, Tensor], BlockTensors, EvictionBlock]:
    """Return keys and values of all rows as H stores them, the tensors of the block, and the block without evictions."""
    operator, q, (B, K, T) = H.reduction, tokens.q, tokens.k.shape[:3]
    new = encode_rows(tokens.k, tokens.v, H.is_quantised)
    stored = {name: torch.cat((H.rows[name], y), dim=2) for name, y in new.items()}  # (B, K, R, …)
    entered = layout.clock if layout.uniform else layout.clock.masked_fill(~layout.active, EMPTY)
    positions = torch.cat((H.positions, entered[:, None].expand(-1, K, -1)), dim=-1)  # (B, K, R)
    tensors = BlockTensors(q.unflatten(1, (K, -1)), positions=positions, **stored, rule=tokens.rule)
    if H.places:  # rotation needs numbers
        keys = dequantise_rows(tensors.keys, tensors.key_scales, q.dtype)
        if plan.rotate:
            rotated, keys = plan.rotate.rotate(q[:, :, 0], keys, positions, H.n_learned)
            tensors = tensors._replace(queries=rotated.reshape(q.shape).unflatten(1, (K, -1)))
        tensors = tensors._replace(keys=keys, key_scales=None)
    if operator.needs_weights:
        logits = block_logits(tensors).detach().add_(layout.additive_mask)
    else:
        logits = torch.zeros(1, dtype=layout.dtype, device=q.device).expand(*tensors.queries.shape[:4], positions.shape[2])
    row_stats = {name: torch.cat((y, y.new_zeros(B, K, T, *y.shape[3:])), dim=2) for name, y in H.row_stats.items()}
    attended = (tensors.keys, tensors.key_scales), (tensors.values, tensors.value_scales)
    fields = BlockFields.of(operator, tokens.x, tensors.queries, *attended, layout.dtype)
    visible = layout.last_visible
    block = EvictionBlock(operator, layout, logits, positions, visible, row_stats, fields, H.n_learned, H.heads)
    return stored, tensors, block


def _state_after(
    H: MultiState,
    stored: dict[str, Tensor],
    positions: Tensor,
    block: EvictionBlock,
    parts: list[BlockScores],
    out: MultiState | None,
) -> MultiState:
    """Return the state after a block; its keys and values may be written over those of ``out``."""
    layout = block.layout
    if block.reduction.merges_values:
        stored = {**stored, **_merge(block, parts[-1], stored)}
    row_stats = parts[-1].last_stats() if parts else {}
    rows = {**stored, "positions": positions, **row_stats}
    clock = H.clock + (block.T if layout.uniform else layout.active.sum(1))
    grown = H.with_rows(rows, clock, no_empty_rows=layout.uniform)
    if layout.no_evictions and layout.uniform:
        return grown
    return grown.keep_rows(block.last_visible == block.T, uniform=layout.uniform, out=out)


def _merge(block: EvictionBlock, scores: BlockScores, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merge the evicted value of a block of one token, and return the values of all rows, with scales if they are int8."""
    positions = block.positions.masked_fill(~block.visible(0, 1)[:, :, 0], EMPTY)
    fields, clock = block.fields.of_tokens(0, 1, scores.weights), block.layout.clock[:, 0]
    heads = heads_to_gather(block.heads, block.reduction)
    observation = Observation(scores.weights[..., 0, :], positions, clock, scores.last_stats(), **fields)
    observation = gather_observation(heads, block.reduction, observation)
    evicted = (block.last_visible == 0) & (positions != EMPTY)  # (B, K, R), one row at most
    values = dequantise_rows(stored["values"], scales := stored.get("value_scales"), block.layout.dtype)
    row = evicted.byte().argmax(-1)
    merged = merge_evicted_value(block.reduction, observation, values, row, evicted.any(-1), gathered=heads)
    return {"values": merged} if scales is None else replace_values(stored, values, merged)
