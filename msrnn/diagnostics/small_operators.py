"""Small versions of an operator, and tiny cells, on which :func:`msrnn.check_operator` tries it."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from ..errors import Error
from ..layers.rotary import Rope
from ..models.config import Config
from ..models.llama import Llama
from ..reductions.budgets import flat_sizes
from ..reductions.calibrated import CalibratedReduction, ModelSizes
from ..reductions.constants import Constants
from ..reductions.contract import Reduction
from ..reductions.head_budgets import HeadBudget, HeadSizes

SIZES = (5, 9, 17, 33, 65)
"""Sizes to check an operator with. The first one that its ``validate`` accepts is taken."""

STEP = 3
"""Difference of the sizes of two heads."""

N_KV_HEADS = 2
"""Key/value heads of a tiny cell for an operator without sizes per head."""


def tiny_cell(seed: int, n_kv_heads: int = N_KV_HEADS) -> Llama:
    """Return a random cell of two layers with attention that is far from uniform."""
    config = Config("llama", 40, 16, 2, 2 * n_kv_heads, n_kv_heads, 4, 24, 1e-5, Rope(100.0), 256)
    cell, generator = Llama(config).double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in cell.named_parameters():
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            gain = 1.5 if name.endswith(("q.weight", "k.weight")) else 1.0
            scaled = noise if "embed" in name else gain * noise * x.shape[-1] ** -0.5
            x.copy_(1 + 0.2 * noise if "norm" in name else scaled)
    return cell.eval().requires_grad_(False)


def small_operator(operator: Reduction) -> Reduction:
    """Return the operator of the first layer, with a size that a short text exceeds, or such sizes per head."""
    operator = operator.for_layer(0)
    if isinstance(operator, HeadBudget):
        inner = small_operator(operator.operator)
        return inner if isinstance(operator, HeadSizes) else replace(operator, operator=inner)
    given = sorted(set(flat_sizes(operator.size)) - {None})
    for size in SIZES:
        smaller = {n: min(n, size + i * STEP) for i, n in enumerate(given)}
        if smaller != {n: n for n in given}:
            with suppress(Error, TypeError):
                return replace(operator, size=_replaced(operator.size, smaller))
    return operator


def _replaced(size: Any, smaller: dict[int, int]) -> Any:
    if isinstance(size, tuple):
        return tuple(_replaced(x, smaller) for x in size)
    return smaller[size] if isinstance(size, int) else size


def largest_size(operator: Reduction) -> int | None:
    """Return the largest size of a small operator; None if all heads are unbounded."""
    return max((n for n in flat_sizes(operator.size) if n is not None), default=None)


def n_kv_heads_of(operator: Reduction) -> int:
    """Return the number of key/value heads of a cell that a small operator fits."""
    return len(operator.size[0]) if isinstance(operator.size, tuple) and isinstance(operator.size[0], tuple) else N_KV_HEADS


def scoring_operators(operator: Reduction) -> Iterator[Reduction]:
    """Yield the operators that score the rows of the heads of a small operator: one per size, or the one of a shared budget.

    Raises:
        Error: the operator cannot decide for each head separately.
    """
    if isinstance(operator, HeadBudget):
        yield operator.operator
    elif isinstance(operator.size, tuple):
        yield from (one for one, _ in HeadSizes(operator).groups if one is not None)
    else:
        yield operator


def with_random_constants(operator: Reduction, sizes: ModelSizes) -> Reduction:
    """Return an operator with random constants for a cell of these sizes, because those that it has do not fit a tiny cell."""
    if isinstance(operator, HeadBudget):
        return replace(operator, operator=with_random_constants(operator.operator, sizes))
    if not isinstance(operator, CalibratedReduction):
        return operator
    generator = torch.Generator().manual_seed(0)
    shapes = operator.constant_shapes(sizes)
    numbers = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    return replace(operator, constants=Constants(numbers))
