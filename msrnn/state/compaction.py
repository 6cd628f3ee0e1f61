"""Compaction: evict many rows from the KV cache at once, between two steps.

An operator evicts after each token. Methods such as KVzip, Compactor, FINCH, or SnapKV as published read a whole text, often
several times, and then evict once. Their result is a score for each row of a state, which :func:`compact` takes.
:func:`msrnn.prefill` selects rows in the same way.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import Error, check_int, describe
from ..reductions.contract import LEARNED
from .multistate import MultiState
from .state import State


def compact(state: State, size: int, score: Callable[[int, MultiState], Tensor]) -> State:
    """Return a state that retains the ``size`` rows of the highest scores in each head, and is otherwise the same.

    The operator of the state, its statistics and the clock stay, so that steps can follow: an unbounded state grows again from
    ``size`` rows, and a bounded one evicts by its operator when it exceeds the size of the operator.

    Args:
        state: any state; it is not modified.
        size: number of rows, without learned rows; a head with fewer rows keeps them.
        score: a function of the index and H of a layer that returns a score for each row of H, ``(B, K, S)``, or ``(B, 1, S)``
            for one decision for all heads. Of equal scores the oldest positions are evicted first. NaN is the lowest score, and
            scores of empty rows (position −1) are not used. In the state of a split cell, H has the heads of this rank, and
            scores for all heads have to be the same on every rank, as scores by position are.

    Raises:
        Error: ``state`` is no State, ``size`` no int of at least 1, ``score`` no function; or a score has another shape or
            device, is no dense real tensor, or is for all heads and differs between the ranks of a split cell.
    """
    if not isinstance(state, State):
        raise Error(f"compact: state is {describe(state)}; expected a State")
    if not callable(score):
        raise Error(f"compact: score is {describe(score)}; expected a function of the index and H of a layer")
    check_int("compact: size", size)
    layers = []
    for i, H in enumerate(state):
        scores = score(i, H)
        B, K, S = H.positions.shape
        if not isinstance(scores, Tensor) or scores.is_complex() or tuple(scores.shape) not in ((B, K, S), (B, 1, S)):
            raise Error(f"compact: the score of layer {i} is {describe(scores)}; expected ({B}, {K} or 1, {S})")
        if scores.layout != torch.strided or scores.device != state.device:
            found = f"a {scores.layout} tensor on {scores.device}"
            raise Error(f"compact: the score of layer {i} is {found}; expected a dense tensor on {state.device}")
        if state.heads is not None and scores.shape[1] == 1 < state.heads.n_kv_heads:
            state.heads.ranks.check_same_values(f"score of layer {i} for all heads", scores.detach())
        layers.append(retain_highest(H, scores.detach(), size + H.n_learned))
    clock = state.clock.clone()
    return state.with_layers(H.with_rows(H.rows, clock, no_empty_rows=H.no_empty_rows) for H in layers)


def retain_highest(H: MultiState, score: Tensor, bound: int) -> MultiState:
    """Return H with the ``bound`` rows of the highest scores in each head, in order of position. Learned rows are retained.

    Args:
        H: S rows, learned rows first.
        score: ``(B, 1 or K, S)``; of equal scores the oldest positions are evicted first, NaN is the lowest.
        bound: maximum number of rows, learned rows included.
    """
    S = H.positions.shape[2]
    if bound >= S:
        return H.map(torch.clone)
    score = score.to(torch.promote_types(score.dtype, torch.float32)).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    score = score.expand(H.positions.shape).clone()
    score[..., : H.n_learned] = torch.inf
    age = H.positions.masked_fill(H.positions == LEARNED, torch.iinfo(torch.int64).max)
    order = age.argsort(dim=-1, stable=True)  # absent rows first, then the oldest tokens, learned rows last
    score = score.masked_fill(H.empty, -torch.inf).gather(2, order)
    retained = order.gather(2, score.argsort(dim=-1, stable=True))[..., S - bound :]  # (B, K, bound)

    def select(x: Tensor) -> Tensor:
        return x.gather(2, retained.view(*retained.shape, *(1,) * (x.ndim - 3)).expand(-1, -1, -1, *x.shape[3:]))

    return H.with_rows({name: select(x) for name, x in H.rows.items()}, H.clock).sorted_by_position()
