"""Attention of a block of tokens under its evictions, with weights, without weights, or at remapped positions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers.attention import SCALED_PRODUCT, LogitRule, attention_logits, mask_logits, weighted_values
from ..layers.differentiation import fused_attention, in_transform
from ..layers.emulation import upcast_if_emulated
from ..state.position_remapping import PositionRemapping
from ..state.quantised_rows import dequantise_rows
from .block_scores import BlockScores, EvictionBlock


class BlockTensors(NamedTuple):
    """Queries, keys and values of one block, as attention uses them."""

    queries: Tensor
    """``(B, K, G, T, D)``."""
    keys: Tensor
    """``(B, K, R, D)``, the S rows before the block, then those of its tokens; int8 with scales."""
    values: Tensor
    """``(B, K, R, D)``, as the keys."""
    positions: Tensor
    """``(B, K, R)`` int64."""
    key_scales: Tensor | None = None
    """``(B, K, R)``, factors of int8 keys."""
    value_scales: Tensor | None = None
    """``(B, K, R)``, factors of int8 values."""
    rule: LogitRule = SCALED_PRODUCT
    """The rule of the logits."""


AttendBlock = Callable[[BlockTensors, EvictionBlock, list[BlockScores]], Tensor]
"""Attention of a block under its evictions, ``(B, K, G T, D)``."""


def attend_weighted(tensors: BlockTensors, block: EvictionBlock, parts: list[BlockScores]) -> Tensor:
    """Multiply the weights that the operator saw with the values."""
    weights = torch.cat([x.weights for x in parts], dim=3) if len(parts) > 1 else parts[0].weights
    if in_transform() or (torch.is_grad_enabled() and (tensors.queries.requires_grad or tensors.keys.requires_grad)):
        # weights with a graph; evictions are not differentiated
        visible = block.visible(0, block.T)[:, :, None]
        weights = mask_logits(block_logits(tensors), visible).softmax(dim=-1)
    return weighted_values(weights.flatten(2, 3), tensors.values, tensors.value_scales, tensors.queries.dtype)


def attend_weight_free(tensors: BlockTensors, block: EvictionBlock, parts: list[BlockScores]) -> Tensor:
    """Attend with PyTorch's fused attention, because no weights are needed."""
    G = tensors.queries.shape[2]
    visible = block.visible(0, block.T)[:, :, None].expand(-1, -1, G, -1, -1).flatten(2, 3)  # (B, 1 or K, G T, R)
    queries = upcast_if_emulated(tensors.queries.flatten(2, 3))
    keys = dequantise_rows(upcast_if_emulated(tensors.keys), tensors.key_scales, queries.dtype)
    values = dequantise_rows(upcast_if_emulated(tensors.values), tensors.value_scales, queries.dtype)
    return fused_attention(queries, keys, values, visible, tensors.rule)


def attend_remapped(places: PositionRemapping, tensors: BlockTensors, block: EvictionBlock, parts: list[BlockScores]) -> Tensor:
    """Attend at remapped positions, counted among the rows that each token can attend to."""
    visible = block.visible(0, block.T)
    logits = places.attention_logits(tensors.queries, tensors.keys, tensors.positions, visible, tensors.rule)
    weights = mask_logits(logits, visible[:, :, None]).softmax(dim=-1)
    return weighted_values(weights.flatten(2, 3), tensors.values, tensors.value_scales, tensors.queries.dtype)


def block_logits(tensors: BlockTensors) -> Tensor:
    """Return the logits of the queries of a block, ``(B, K, G, T, R)`` in at least float32."""
    logits = attention_logits(tensors.queries.flatten(2, 3), tensors.keys, tensors.key_scales, tensors.rule)
    return logits.unflatten(2, tensors.queries.shape[2:4])
