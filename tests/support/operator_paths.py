"""The step loop and the many-token path under one operator, and the rows that a plain loop retains for given scores."""

import math
from collections.abc import Sequence

import torch
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell
from torch import Tensor

from msrnn import Cell, Reduction
from msrnn.state.state import State

TEXT, LENGTHS = random_tokens(5, 2, 30), torch.tensor([30, 21])


def assert_paths_agree(
    reduction: Reduction | str | Sequence[Reduction | str],
    cell: Cell | None = None,
    text: Tensor = TEXT,
    lengths: Tensor | None = LENGTHS,
) -> State:
    """Compare logits and states of the step loop and of the many-token path; return the state."""
    cell = tiny_cell() if cell is None else cell
    start = cell.initial_state(len(text), reduction)
    expected, end = step_loop(cell, text, start, lengths)
    logits, state = cell(text, start, lengths=lengths)
    assert_same(state, end, 1e-8)
    assert_close(logits, expected, 1e-8)
    return end


def retained_by_scores(scores: Sequence[float], size: int, T: int) -> list[int]:
    """Return the positions that a plain loop retains, where position p has the score ``scores[p % len(scores)]``.

    NaN is the lowest score, +inf is evicted last, and of equal scores the oldest position is evicted.
    """
    kept = []
    for t in range(T):
        kept.append(t)
        if len(kept) > size:
            table = {p: -math.inf if math.isnan(scores[p % len(scores)]) else scores[p % len(scores)] for p in kept}
            kept.remove(min(kept, key=lambda p: (table[p], p)))
    return kept
