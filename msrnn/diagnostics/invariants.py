"""What has to hold of a bounded state while it reads on: its rows are what the operator promises, and the fold is the step."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error
from ..reductions.contract import EMPTY, H2O, LEARNED, Reduction, Sinks, Window
from ..state.multistate import MultiState
from ..state.state import State

BOUNDS = {
    torch.float64: (1e-8, 0.0),
    torch.float32: (1e-4, 1e-4),
    torch.float16: (0.03, 0.03),
    torch.bfloat16: (0.25, 0.25),
}
"""By dtype: how far fold and step may be apart, as the mean |difference| of the logits, and the relative gap of two scores
below which either row may leave. In 16 bits about three times what SmolLM2 shows, whose own sums are rounded as coarsely."""


def check_rows(state: State, read: int, by: str = "the fold") -> None:
    """Hold a state of batch size 1 that has read ``read`` tokens to what bounds it. Waits for the device.

    In every layer and head: min(read, size) rows at as many different positions among those read, the ones that the
    operator promises to keep with them; everything that is remembered finite.

    Raises:
        Error: something else was found; after which token, by which way of reading, and in which layer.
    """
    if state.clock.tolist() != [read]:
        raise Error(f"after {read} tokens, by {by}: the clock says {state.clock.tolist()}; expected [{read}]")
    for layer, H in enumerate(state):
        if fault := _fault(H, read):
            raise Error(f"after {read} tokens, by {by}, layer {layer}: {fault}")


def _fault(H: MultiState, read: int) -> str:
    """What is wrong with one layer, or nothing."""
    size, positions = H.reduction.size, H.positions.sort(-1).values[0]  # (K, S)
    assert isinstance(size, int), "a bounded layer"
    if (positions[:, : H.pinned] != LEARNED).any():
        return f"of {H.pinned} learned rows some are gone"
    positions = positions[:, H.pinned :]
    expected, held = min(read, size), (positions != EMPTY).sum(-1)  # (K,)
    if H.clock.tolist() != [read]:
        return f"the clock says {H.clock.tolist()}"
    if positions.shape[1] > size or (held != expected).any():
        return f"the heads hold {held.tolist()} rows in {positions.shape[1]} columns; expected {expected} each"
    if ((positions < EMPTY) | (positions >= read)).any():
        return f"positions {int(positions.min())} to {int(positions.max())} are held; expected 0 to {read - 1}"
    if ((positions[:, 1:] == positions[:, :-1]) & (positions[:, 1:] != EMPTY)).any():
        return "a head holds a position twice"
    first, newest = _promised(H.reduction)
    kept = (positions != EMPTY) & ((positions < first) | (positions >= read - newest))
    if (kept.sum(-1) != min(read, first + newest)).any():
        return f"{H.reduction} keeps the first {first} and the newest {newest} tokens; some have left"
    for name, x in H.rows.items():
        if not x.isfinite().all():
            return f"{name} are not finite"
    return ""


def _promised(operator: Reduction) -> tuple[int, int]:
    """How many of the first and of the newest tokens an operator never lets go, whatever is read."""
    size = operator.size
    assert isinstance(size, int)
    if isinstance(operator, Sinks):
        return operator.sinks, size - operator.sinks
    if isinstance(operator, H2O):
        return 0, size // 2 if operator.recent is None else operator.recent
    return 0, size if isinstance(operator, Window) else 0


@dataclass(frozen=True)
class Compared:
    """The step beside the fold over the same few tokens.

    Attributes:
        fold_ms: milliseconds a token by the fold, which gives the logits of them all.
        step_ms: milliseconds a token, one step at a time; the median.
        difference: mean |difference| of the logits.
        near_ties: decisions in which the two let different rows go, each between rows whose scores are as good as equal.
    """

    fold_ms: float
    step_ms: float
    difference: float
    near_ties: int


def compare_step(cell: Cell, tokens: Tensor, state: State) -> tuple[Compared, State]:
    """Read ``tokens (1, T)`` by the fold and, from the same state, by the step; the state returned is the fold's.

    The states before and after are checked (:func:`check_rows`), the logits have to be finite and equal up to ``BOUNDS``, the
    positions equal but for near-ties. Once a near-tie has parted the two they are on different ways, both right: what comes
    after is not compared.

    Raises:
        Error: something else was found.
    """
    start = int(state.clock)
    end = start + tokens.shape[1]
    check_rows(state, start)
    begin = time.perf_counter()
    folded_logits, folded = cell(tokens, state)
    check_logits(folded_logits, end)  # waits for the device
    spent = time.perf_counter() - begin
    stepped, seconds, read = state.clone(), [], []
    for token in tokens.T:
        begin = time.perf_counter()
        logits, stepped = cell.step_(token, stepped)
        check_logits(logits, int(stepped.clock), "the step")
        seconds.append(time.perf_counter() - begin)
        read.append(logits)
    check_rows(folded, end)
    check_rows(stepped, end, "the step")
    bound, near = BOUNDS[folded_logits.dtype]
    alike, near_ties = tokens.shape[1], 0
    if any(
        not torch.equal(G.positions.sort(-1).values, H.positions.sort(-1).values) for G, H in zip(folded, stepped, strict=True)
    ):
        alike, near_ties = _parting(cell, tokens, state, near)
    differences = (folded_logits - torch.stack(read, dim=1))[:, :alike].abs().double()  # (1, T', V)
    difference = float(differences.mean())
    if not difference <= bound:
        raise Error(
            f"after {start + alike} tokens, the fold's logits are {difference:.1e} off the step's; expected {bound:.0e} at most"
        )
    return Compared(1e3 * spent / tokens.shape[1], 1e3 * median(seconds), difference, near_ties), folded


def check_logits(logits: Tensor, read: int, by: str = "the fold") -> None:
    """Refuse logits that are not finite.

    Raises:
        Error: they are not.
    """
    if not logits.isfinite().all():
        raise Error(f"after {read} tokens, by {by}: the logits are not finite")


def _parting(cell: Cell, tokens: Tensor, state: State, near: float) -> tuple[int, int]:
    """The first token at which fold and step let different rows go, each decision shown to be a near-tie.

    Up to that token both have read the same, so every layer and head decided on the same numbers but for rounding.

    Returns:
        How many tokens they read alike, that one included, and in how many decisions they parted there.

    Raises:
        Error: a decision that is no near-tie, or none that explains the difference.
    """
    _, trace = cell.scan(tokens, state, weights=True)
    for t, token in enumerate(tokens.T):
        before, state = state, cell.step(token, state)[1]
        parted = 0
        for layer, (H, after, said) in enumerate(zip(before, state, trace, strict=True)):
            assert said.scores is not None
            for k, row in enumerate(said.rows[0].tolist()):
                a, b = int(said.left[0, k, t]), _left(H, after, k)
                if a == b:
                    continue
                scores = dict(zip(row, said.scores[0, k % said.scores.shape[1], t].tolist(), strict=True))
                one, other = scores.get(a, torch.nan), scores.get(b, torch.nan)
                gap = abs(one - other) / (max(abs(one), abs(other)) or 1.0)
                if not gap <= near:
                    raise Error(
                        f"after {int(state.clock)} tokens, layer {layer}: position {a} leaves by the fold and {b} by the step, "
                        f"of scores {gap:.1e} apart; expected the same"
                    )
                parted += k < said.scores.shape[1]  # one decision for all heads counts once
        if parted:
            return t + 1, parted
    raise Error(f"after {int(state.clock)} tokens, fold and step hold different rows, and no decision of theirs explains it")


def _left(before: MultiState, after: MultiState, head: int) -> int:
    """The position that left a head in a step, −1 none."""
    had, has = ({int(p) for p in H.positions[0, head] if p != EMPTY} for H in (before, after))
    return next(iter((had | {int(before.clock)}) - has), EMPTY)
