"""Checks of a bounded state: the rows that the operator guarantees, and equality of the unroll and the step loop."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error
from ..reductions.contract import EMPTY, LEARNED, Reduction
from ..reductions.tova_paper import H2O, Sinks, Window
from ..state.multistate import MultiState
from ..state.state import State

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

    Every layer and head must hold min(clock, size) rows at distinct positions below ``clock``, among them the rows that the
    operator guarantees. Keys, values and row statistics must be finite.

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
    size, positions = H.reduction.size, H.positions.sort(-1).values[0]  # (K, S)
    assert isinstance(size, int), "a bounded layer"
    if (positions[:, : H.n_learned] != LEARNED).any():
        return f"some of the {H.n_learned} learned rows are missing"
    positions = positions[:, H.n_learned :]
    expected, counts = min(clock, size), (positions != EMPTY).sum(-1)  # (K,)
    if H.clock.tolist() != [clock]:
        return f"the clock is {H.clock.tolist()}"
    if positions.shape[1] > size or (counts != expected).any():
        return f"the heads hold {counts.tolist()} rows in {positions.shape[1]} columns; expected {expected} each"
    if ((positions < EMPTY) | (positions >= clock)).any():
        return f"the positions are {int(positions.min())} to {int(positions.max())}; expected 0 to {clock - 1}"
    if ((positions[:, 1:] == positions[:, :-1]) & (positions[:, 1:] != EMPTY)).any():
        return "a head holds a position twice"
    first, newest = _guaranteed_rows(H.reduction)
    guaranteed = (positions != EMPTY) & ((positions < first) | (positions >= clock - newest))
    if (guaranteed.sum(-1) != min(clock, first + newest)).any():
        return f"{H.reduction} retains the first {first} and the newest {newest} tokens; some are missing"
    for name, x in H.rows.items():
        if not x.isfinite().all():
            return f"{name} are not finite"
    return ""


def _guaranteed_rows(operator: Reduction) -> tuple[int, int]:
    """Return the number of first tokens and the number of newest tokens that an operator never evicts."""
    size = operator.size
    assert isinstance(size, int)
    if isinstance(operator, Sinks):
        return operator.sinks, size - operator.sinks
    if isinstance(operator, H2O):
        return 0, size // 2 if operator.recent is None else operator.recent
    return 0, size if isinstance(operator, Window) else 0


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

    Before that token both paths have read the same rows, so their scores are equal up to rounding.

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
            for k, row in enumerate(record.rows[0].tolist()):
                a, b = int(record.left[0, k, t]), _evicted(H, after, k)
                if a == b:
                    continue
                scores = dict(zip(row, record.scores[0, k % record.scores.shape[1], t].tolist(), strict=True))
                one, other = scores.get(a, torch.nan), scores.get(b, torch.nan)
                gap = abs(one - other) / (max(abs(one), abs(other)) or 1.0)
                if not gap <= max_gap:
                    raise Error(
                        f"after {int(state.clock)} tokens, layer {layer}: the unroll evicts position {a}, the step loop {b}; "
                        f"their scores differ by {gap:.1e}, so this is not a near-tie"
                    )
                near_ties += k < record.scores.shape[1]  # a decision shared by all heads counts once
        if near_ties:
            return t + 1, near_ties
    raise Error(
        f"after {int(state.clock)} tokens: unroll and step loop hold different rows, but replaying the tokens found no step at "
        "which their evictions differ"
    )


def _evicted(before: MultiState, after: MultiState, head: int) -> int:
    """Return the position that a step evicted from a head, or −1."""
    had, has = ({int(p) for p in H.positions[0, head] if p != EMPTY} for H in (before, after))
    return next(iter((had | {int(before.clock)}) - has), EMPTY)
