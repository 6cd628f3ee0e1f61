"""Input, queries, keys and logit rule of each layer of a cell that reads a text without an operator."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..layers.attention import LogitRule
from ..layers.positional import PositionEncoding


class LayerReading(NamedTuple):
    """One layer and one text of T tokens."""

    layer: int
    """Index of the layer."""
    x: Tensor
    """``(T, E)``, the input of the layer."""
    queries: Tensor
    """``(K, G, T, D)``, rotated."""
    keys: Tensor
    """``(K, T, D)``, rotated."""
    rule: LogitRule
    """The rule of the attention logits."""
    window: int | None
    """Number of earlier tokens that a token attends to; None: all."""
    encoding: PositionEncoding
    """The position encoding."""


@torch.no_grad()
def read_layers(cell: Cell, tokens: Tensor) -> Iterator[LayerReading]:
    """Yield the reading of each layer, in order, for one text ``tokens (T,)`` int64 under the published model."""
    inputs: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in cell.layers]
    try:
        state = cell.initial_state(1)
        _, trace = cell.scan(tokens[None], state, logits=False)
    finally:
        for handle in handles:
            handle.remove()
    T, n_kv_heads = len(tokens), cell.config.n_kv_heads
    for i, (x, layer) in enumerate(zip(inputs, trace, strict=True)):
        queries = layer.queries[0].unflatten(0, (n_kv_heads, -1))
        size = state[i].reduction.size
        assert not isinstance(size, tuple)
        yield LayerReading(i, x[0], queries, layer.keys[0, :, -T:], cell.logit_rules[i], size, cell.position_encodings[i])
