"""Checks of a bounded state: the rows that the operator guarantees, and equality of the unroll and the step loop."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error
from ..recurrence.layer_trace import LayerTrace
from ..reductions.contract import EMPTY, LEARNED
from ..reductions.shared_budget import SharedBudget
from ..state.multistate import MultiState
from ..state.state import State
from .expected_rows import ExpectedRows

BOUNDS = {
    torch.float64: (1e-8, 0.0),
    torch.float32: (1e-4, 1e-4),
    torch.float16: (0.03, 0.03),
    torch.bfloat16: (0.25, 0.25),
}
"""Tolerances by dtype. The first is the maximum mean |difference| of logits between unroll and step loop. The second is the
maximum relative gap of two scores at which either row may be evicted. In 16 bits they are about three times the values
measured for SmolLM2."""


def check_rows(state: State, clock: int, path: str = "unroll") -> None:
    """Check the rows of a bounded state of batch size 1. Waits for the device.

    Every head must hold min(clock, size) rows at distinct positions below ``clock``, among them the rows that the operator
    guarantees. Under a shared budget the heads of a layer hold this number on average. Keys, values and row statistics must
    be finite.

    Args:
        state: the state to check.
        clock: number of tokens that the state has read.
        path: ``unroll`` or ``step loop``, for the error message.

    Raises:
        Error: the state violates a condition; the message states token, path and layer.
    """
    if state.clock.tolist() != [clock]:
        raise Error(f"after {clock} tokens, {path}: the clock is {state.clock.tolist()}; expected [{clock}]")
    for layer, H in enumerate(state):
        if violation := _violation(H, clock):
            raise Error(f"after {clock} tokens, {path}, layer {layer}: {violation}")


def _violation(H: MultiState, clock: int) -> str:
    """Return the first violated condition of one layer, or an empty string."""
    positions = H.positions.sort(-1).values[0]  # (K, S)
    if (positions[:, : H.n_learned] != LEARNED).any():
        return f"some of the {H.n_learned} learned rows are missing"
    positions = positions[:, H.n_learned :]
    expected, counts = ExpectedRows.of(H.reduction, len(positions), clock), (positions != EMPTY).sum(-1)  # (K,)
    if H.clock.tolist() != [clock]:
        return f"the clock is {H.clock.tolist()}"
    if positions.shape[1] > max(expected.most) or not expected.fit(counts):
        return f"the heads hold {counts.tolist()} rows in {positions.shape[1]} columns; expected {expected}"
    if ((positions < EMPTY) | (positions >= clock)).any():
        return f"the positions are {int(positions.min())} to {int(positions.max())}; expected 0 to {clock - 1}"
    if ((positions[:, 1:] == positions[:, :-1]) & (positions[:, 1:] != EMPTY)).any():
        return "a head holds a position twice"
    if expected.missing(positions, clock):
        return f"{H.reduction} retains {expected.guaranteed}; some are missing"
    for name, x in H.rows.items():
        if not x.isfinite().all():
            return f"{name} are not finite"
    return ""


@dataclass(frozen=True)
class StepVsUnroll:
    """Comparison of the step loop with the unroll over the same tokens.

    Attributes:
        unroll_ms: milliseconds per token of the unroll, with all logits.
        step_ms: median milliseconds of a step.
        difference: mean |difference| of the logits.
        near_ties: number of decisions in which the two paths evict different rows of almost equal scores.
    """

    unroll_ms: float
    step_ms: float
    difference: float
    near_ties: int


def compare_step(cell: Cell, tokens: Tensor, state: State) -> tuple[StepVsUnroll, State]:
    """Read ``tokens (1, T)`` from ``state`` by the unroll and by the step loop; return the comparison and the unroll's state.

    The states before and after are checked by :func:`check_rows`. Logits must be finite and equal within ``BOUNDS``. Positions
    must be equal, except after a near-tie: there both results are valid, so later tokens are not compared.

    Raises:
        Error: a condition is violated.
    """
    start = int(state.clock)
    end = start + tokens.shape[1]
    check_rows(state, start)
    begin = time.perf_counter()
    unroll_logits, unrolled = cell(tokens, state)
    check_logits(unroll_logits, end)  # waits for the device
    spent = time.perf_counter() - begin
    stepped, seconds, step_logits = state.clone(), [], []
    for token in tokens.T:
        begin = time.perf_counter()
        logits, stepped = cell.step_(token, stepped)
        check_logits(logits, int(stepped.clock), "step loop")
        seconds.append(time.perf_counter() - begin)
        step_logits.append(logits)
    check_rows(unrolled, end)
    check_rows(stepped, end, "step loop")
    bound, max_gap = BOUNDS[unroll_logits.dtype]
    n_equal, near_ties = tokens.shape[1], 0
    pairs = zip(unrolled, stepped, strict=True)
    if any(not torch.equal(G.positions.sort(-1).values, H.positions.sort(-1).values) for G, H in pairs):
        n_equal, near_ties = _first_divergence(cell, tokens, state, max_gap)
    differences = (unroll_logits - torch.stack(step_logits, dim=1))[:, :n_equal].abs().cpu().double()  # (1, T', V)
    difference = float(differences.mean())
    if not difference <= bound:
        raise Error(
            f"after {start + n_equal} tokens: the logits of unroll and step loop differ by {difference:.1e}; "
            f"expected at most {bound:.0e}"
        )
    return StepVsUnroll(1e3 * spent / tokens.shape[1], 1e3 * median(seconds), difference, near_ties), unrolled


def check_logits(logits: Tensor, clock: int, path: str = "unroll") -> None:
    """Refuse logits that are not finite.

    Raises:
        Error: a logit is infinite or NaN.
    """
    if not logits.isfinite().all():
        raise Error(f"after {clock} tokens, {path}: the logits are not finite")


def _first_divergence(cell: Cell, tokens: Tensor, state: State, max_gap: float) -> tuple[int, int]:
    """Find the first token at which unroll and step loop evict different rows, and check that each decision is a near-tie.

    Before that token both paths have read the same rows, so their scores are equal up to rounding. Under a shared budget the
    rows of a layer are evicted one after the other, from the lowest score on, so the lowest of the rows that differ decide.

    Returns:
        The number of tokens up to and including that token, and the number of decisions that differ there.

    Raises:
        Error: a decision is not a near-tie, or no decision differs.
    """
    _, trace = cell.scan(tokens, state, weights=True, logits=False)
    for t, token in enumerate(tokens.T):
        before, state = state, cell.step(token, state)[1]
        near_ties = 0
        for layer, (H, after, record) in enumerate(zip(before, state, trace, strict=True)):
            assert record.scores is not None
            K, decisions = H.positions.shape[1], record.scores.shape[1]
            shared = isinstance(H.reduction, SharedBudget)  # one decision for several rows of the layer
            first, second = _evicted_by_unroll(record, t), _evicted_by_step(H, after)
            for heads in [range(K)] if shared else [range(k, k + 1) for k in range(K)]:
                differing = ({row for row in rows if row[0] in heads} for rows in (first - second, second - first))
                (one, a), (other, b) = (_lowest(rows, record, t) for rows in differing)
                if a == b == EMPTY:
                    continue
                gap = abs(one - other) / (max(abs(one), abs(other)) or 1.0)
                if not gap <= max_gap:
                    raise Error(
                        f"after {int(state.clock)} tokens, layer {layer}: the unroll evicts position {a}, the step loop {b}; "
                        f"their scores differ by {gap:.1e}, so this is not a near-tie"
                    )
                near_ties += heads[0] < decisions  # a decision shared by all heads counts once
        if near_ties:
            return t + 1, near_ties
    raise Error(
        f"after {int(state.clock)} tokens: unroll and step loop hold different rows, but replaying the tokens found no step at "
        "which their evictions differ"
    )


def _evicted_by_unroll(record: LayerTrace, t: int) -> set[tuple[int, int]]:
    """Return the evicted rows of one token, as pairs of a head and a position."""
    rows, last = record.rows[0], record.last_visible[0]  # (K, R), (1 or K, R)
    heads, columns = ((last == t).expand_as(rows) & (rows >= 0)).nonzero(as_tuple=True)
    return set(zip(heads.tolist(), rows[heads, columns].tolist(), strict=True))


def _evicted_by_step(before: MultiState, after: MultiState) -> set[tuple[int, int]]:
    """Return the rows that a step evicted, as pairs of a head and a position."""
    had, has = ({(k, p) for k, row in enumerate(H.positions[0].tolist()) for p in row if p >= 0} for H in (before, after))
    return (had | {(k, int(before.clock)) for k in range(before.positions.shape[1])}) - has


def _lowest(evicted: set[tuple[int, int]], record: LayerTrace, t: int) -> tuple[float, int]:
    """Return the lowest score of evicted rows and its position; NaN and −1 if there are none."""
    assert record.scores is not None
    scores, found = record.scores[0, :, t], list[tuple[float, int]]()  # (1 or K, R)
    for k, p in evicted:
        column = int((record.rows[0, k] == p).nonzero()[0])
        found.append((float(scores[k % len(scores), column]), p))
    return min(found, default=(torch.nan, EMPTY))
