r"""The many-token path of one layer: the result of T steps, computed in blocks.

Within a layer the recurrence over time depends only on that layer's queries, keys and values. So one product gives the logits
of a block of T tokens with all rows that any of them can attend to (S rows before them, T new ones). The evictions are computed
from these logits (``block_evictions.py``), and one more product with the values gives the output. The weights of the model are
read once for many tokens instead of once per token. Memory is T × (S + T), never the square of the whole text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import Error
from ..layers.attention import attention_logits, mask_logits
from ..layers.differentiation import fused_attention, in_transform, is_batched_by_vmap, is_differentiated
from ..layers.linear import upcast_if_emulated
from ..reductions.contract import EMPTY, Observation, Reduction
from ..state.multistate import MultiState
from ..state.position_remapping import PositionRemapping
from .block_evictions import is_solved_per_token, solve_evictions
from .block_layout import BlockLayout
from .block_scores import BlockScores, EvictionBlock
from .operator_calls import merge_evicted_value
from .records import LayerRecorder, SharedAcrossLayers
from .transition import append_attend_reduce

BLOCK, WEIGHT_FREE_BLOCK = 64, 256
"""Tokens per block. A longer block has fewer products and more wrong proposals; without weights proposals are rarely wrong."""

MAX_COPIED_KEY_ELEMENTS = 2**24
"""Maximum number of key elements that a block copies for an operator that needs keys: 64 MB in float32."""


class BlockTensors(NamedTuple):
    """Queries, keys and values of one block, as attention uses them."""

    queries: Tensor
    """``(B, K, G, T, D)``."""
    keys: Tensor
    """``(B, K, R, D)``, the S rows before the block, then those of its tokens."""
    values: Tensor
    """``(B, K, R, D)``."""
    positions: Tensor
    """``(B, K, R)`` int64."""


AttendBlock = Callable[[BlockTensors, EvictionBlock, list[BlockScores]], Tensor]
"""Attention of a block under its evictions, ``(B, K, G T, D)``."""


def unroll_layer(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    H: MultiState,
    active: Tensor | None,
    recorder: LayerRecorder | None = None,
    shared: SharedAcrossLayers | None = None,
) -> tuple[Tensor, MultiState]:
    """Attend with each of T tokens and reduce after each: the result of T times append, attend, reduce.

    This synchronises with the device.

    Args:
        q: ``(B, N, T, D)``; k, v: ``(B, K, T, D)``; rotated, unless H has places.
        H: the state of the layer before the first token, S rows.
        active: ``(B, T)`` bool; tokens where it is False are not read. None: all are read.
        recorder: records every block.
        shared: work of earlier layers on the same tokens, which is extended.

    Returns:
        Attention output ``(B, N, T, D)``, arbitrary for tokens that are not read, and the state after the last token; an
        earlier state if not ``shared.make_state``.
    """
    if is_batched_by_vmap(q, k, v, H.keys, H.values, H.positions, H.clock):
        raise Error("torch.func.vmap cannot read many tokens at once; expected cell.step, or a batch (B, T) without vmap")
    if H.places and recorder is None and not _evictions_known_from_positions(H):
        return _unroll_stepwise(q, k, v, H, active)
    H, shared = H.sorted_by_position(), SharedAcrossLayers() if shared is None else shared
    plan, T, outputs = _LayerPlan.of(H), k.shape[2], list[Tensor]()
    needs_grad = is_differentiated(q, k, v, H.keys, H.values)  # autograd may have saved the rows
    for start in range(0, T, plan.block_tokens):
        stop = min(start + plan.block_tokens, T)
        some_q, some_k, some_v = (x[:, :, start:stop] for x in (q, k, v))
        all_keys, tensors, block = _build_block(some_q, some_k, some_v, H, plan, shared.layout(H, active, start, stop))
        known = shared.evictions(block, start) if recorder is None else None
        block, parts = (known, []) if known else solve_evictions(block, recorder is not None and recorder.want_scores)
        if plan.positions_only:
            shared.positions_only_evictions[start] = block
        output = plan.attend(tensors, block, parts)
        outputs.append(output.to(q.dtype).unflatten(2, (-1, block.T)).flatten(1, 2))  # (B, N, t, D)
        make_state = shared.make_state or stop < T
        if recorder is not None:
            keys_values = None if make_state else (all_keys, tensors.values)
            recorder.add(some_q, some_k, some_v, block, parts, H.row_stats, keys_values)
        if make_state:
            out = H if not needs_grad and (shared.donate or start > 0) else None
            H = _state_after(H, all_keys, tensors, block, parts, out)
    if not T:
        return q, H
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2), H


def _unroll_stepwise(q: Tensor, k: Tensor, v: Tensor, H: MultiState, active: Tensor | None) -> tuple[Tensor, MultiState]:
    """:func:`unroll_layer` token by token, as the step does it."""
    outputs = [q[:, :, :0]]
    for t in range(k.shape[2]):
        now = None if active is None else active[:, t]
        clock = H.clock + (1 if now is None else now)
        x, H = append_attend_reduce(q[:, :, t], k[:, :, t], v[:, :, t], H, clock, now, in_place=t > 0)
        outputs.append(x[:, :, None])
    return torch.cat(outputs, dim=2), H


def is_called_per_token(operator: Reduction) -> bool:
    """Return True for an operator that is called once per token in each layer, also when many tokens are read at once."""
    return operator.merges_values or is_solved_per_token(operator)


def _reads_positions_only(H: MultiState) -> bool:
    operator = H.reduction
    return not (operator.needs_weights or operator.needs_keys or operator.merges_values or operator.stat_names)


def _evictions_known_from_positions(H: MultiState) -> bool:
    """Return True if remapped positions of many tokens can be counted at once, because evictions depend on positions only."""
    return H.places is not None and H.places.rope.relative and _reads_positions_only(H) and not H.n_learned


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
            return cls(BLOCK, partial(_attend_remapped, H.places), None, positions_only)
        attend = _attend_weighted if operator.needs_weights else _attend_weight_free
        if operator.merges_values or H.places:  # the next token attends to what this eviction leaves
            return cls(1, attend, H.places, positions_only)
        tokens = BLOCK if operator.needs_weights else WEIGHT_FREE_BLOCK
        if operator.needs_keys:
            tokens = min(BLOCK, max(1, MAX_COPIED_KEY_ELEMENTS // max(1, H.keys.numel())))
        return cls(tokens, attend, None, positions_only)


def _attend_weighted(tensors: BlockTensors, block: EvictionBlock, parts: list[BlockScores]) -> Tensor:
    """Multiply the weights that the operator saw with the values."""
    weights = torch.cat([x.weights for x in parts], dim=3) if len(parts) > 1 else parts[0].weights
    if in_transform() or (torch.is_grad_enabled() and (tensors.queries.requires_grad or tensors.keys.requires_grad)):
        # weights with a graph; evictions are not differentiated
        visible = block.visible(0, block.T)[:, :, None]
        weights = mask_logits(_attention_logits(tensors.queries, tensors.keys), visible).softmax(dim=-1)
    values = upcast_if_emulated(tensors.values)
    return weights.to(values.dtype).flatten(2, 3) @ values


def _attend_weight_free(tensors: BlockTensors, block: EvictionBlock, parts: list[BlockScores]) -> Tensor:
    """Attend with PyTorch's fused attention, because no weights are needed."""
    G = tensors.queries.shape[2]
    visible = block.visible(0, block.T)[:, :, None].expand(-1, -1, G, -1, -1).flatten(2, 3)  # (B, 1 or K, G T, R)
    queries, keys, values = map(upcast_if_emulated, (tensors.queries.flatten(2, 3), tensors.keys, tensors.values))
    return fused_attention(queries, keys, values, visible)


def _attend_remapped(
    places: PositionRemapping, tensors: BlockTensors, block: EvictionBlock, parts: list[BlockScores]
) -> Tensor:
    """Attend at remapped positions, counted among the rows that each token can attend to."""
    visible = block.visible(0, block.T)
    logits = places.attention_logits(tensors.queries, tensors.keys, tensors.positions, visible)
    weights = mask_logits(logits, visible[:, :, None]).softmax(dim=-1)
    return weights.to(tensors.values.dtype).flatten(2, 3) @ tensors.values


def _attention_logits(queries: Tensor, keys: Tensor) -> Tensor:
    """``(B, K, G, T, D), (B, K, R, D) -> (B, K, G, T, R)`` in at least float32."""
    return attention_logits(upcast_if_emulated(queries.flatten(2, 3)), upcast_if_emulated(keys)).unflatten(
        2, queries.shape[2:4]
    )


def _build_block(
    q: Tensor, k: Tensor, v: Tensor, H: MultiState, plan: _LayerPlan, layout: BlockLayout
) -> tuple[Tensor, BlockTensors, EvictionBlock]:
    """Return the keys of all rows as they are stored, the tensors of the block, and the block without evictions."""
    (B, K, T), operator = k.shape[:3], H.reduction
    all_keys, all_values = torch.cat((H.keys, k), dim=2), torch.cat((H.values, v), dim=2)  # (B, K, R, D)
    entered = layout.clock if layout.uniform else layout.clock.masked_fill(~layout.active, EMPTY)
    positions = torch.cat((H.positions, entered[:, None].expand(-1, K, -1)), dim=-1)  # (B, K, R)
    keys = all_keys
    if plan.rotate:
        rotated, keys = plan.rotate.rotate(q[:, :, 0], all_keys, positions, H.n_learned)
        q = rotated.reshape(q.shape)
    queries = q.unflatten(1, (K, -1))
    if operator.needs_weights:
        logits = _attention_logits(queries, keys).detach().add_(layout.additive_mask)
    else:
        logits = torch.zeros(1, dtype=layout.dtype, device=keys.device).expand(*queries.shape[:4], keys.shape[2])
    row_stats = {name: torch.cat((x, x.new_zeros(B, K, T, *x.shape[3:])), dim=2) for name, x in H.row_stats.items()}
    observed_keys = keys.detach() if operator.needs_keys else None
    block = EvictionBlock(operator, layout, logits, positions, layout.last_visible, row_stats, observed_keys, H.n_learned)
    return all_keys, BlockTensors(queries, keys, all_values, positions), block


def _state_after(
    H: MultiState,
    all_keys: Tensor,
    tensors: BlockTensors,
    block: EvictionBlock,
    parts: list[BlockScores],
    out: MultiState | None,
) -> MultiState:
    """Return the state after a block; its keys and values may be written over those of ``out``."""
    layout, values = block.layout, tensors.values
    if block.reduction.merges_values:
        values = _merge(block, parts[-1], values)
    row_stats = parts[-1].last_stats() if parts else {}
    rows = {"keys": all_keys, "values": values, "positions": tensors.positions, **row_stats}
    clock = H.clock + (block.T if layout.uniform else layout.active.sum(1))
    grown = H.with_rows(rows, clock, no_empty_rows=layout.uniform)
    if layout.no_evictions and layout.uniform:
        return grown
    return grown.keep_rows(block.last_visible == block.T, uniform=layout.uniform, out=out)


def _merge(block: EvictionBlock, scores: BlockScores, values: Tensor) -> Tensor:
    """Merge the evicted value of a block of one token, and return the values of all rows."""
    positions = block.positions.masked_fill(~block.visible(0, 1)[:, :, 0], EMPTY)
    observation = Observation(scores.weights[..., 0, :], positions, block.layout.clock[:, 0], scores.last_stats(), block.keys)
    evicted = (block.last_visible == 0) & (positions != EMPTY)  # (B, K, R), one row at most
    return merge_evicted_value(block.reduction, observation, values, evicted.byte().argmax(-1), evicted.any(-1))
