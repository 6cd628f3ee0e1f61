"""A check of an eviction operator on tiny random cells: every path of the library has to agree with the step loop."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error
from ..recurrence.layer_trace import LayerTrace
from ..reductions.all_layers import AllLayers
from ..reductions.contract import EMPTY, Reduction
from ..reductions.head_budgets import HeadBudget
from ..reductions.registry import parse_reduction
from ..reductions.spec_strings import is_writable
from ..state.loading import load_state
from ..state.multistate import MultiState
from ..state.state import State
from .flag_checks import check_additive, check_heads
from .small_operators import (
    largest_size,
    n_kv_heads_of,
    scoring_operators,
    small_operator,
    tiny_cell,
    with_random_constants,
)

TOLERANCE = 1e-8
"""Maximum difference between two paths in float64, of logits, keys, values and statistics."""


def check_operator(operator: Reduction | str, *, seeds: int = 2) -> None:
    """Check that the library computes the same with ``operator`` in every path. Takes a few seconds.

    On tiny random cells in float64, with a small size, a ragged batch and texts with repeated tokens, these have to agree with
    the step loop: ``cell(tokens)``, the same split over two calls, ``cell.scan`` and its ``trace.at``, a state that is saved
    and loaded, and each text of the batch alone. A step has to be repeatable and to leave its state unchanged, logits have to
    be finite, and the spec string has to give the operator back.

    With sizes per head the cells have as many key/value heads as there are sizes, and the sizes of the heads are small. Under a
    shared budget the heads of the cells share it. Some score has to be below +inf, because otherwise the rule of the operator
    would not be tested. The flags are those of the operator that scores the rows.

    Args:
        operator: the operator, or its spec string. Of sizes per layer the first is checked.
        seeds: number of random cells.

    Raises:
        Error: a check fails (the message states path and layer), or the class breaks the contract of :class:`Reduction`.
    """
    operator = parse_reduction(operator) if isinstance(operator, str) else operator
    if not isinstance(operator, Reduction):
        raise Error(f"check_operator: operator is {operator!r:.60}; expected a Reduction or a spec string")
    _check_spec_string(operator)
    small = small_operator(operator)
    for scoring in scoring_operators(small):
        one = with_random_constants(scoring, tiny_cell(0).sizes).for_layer(0)
        check_additive(one)
        check_heads(one)
    for seed in range(seeds):
        cell = tiny_cell(seed, n_kv_heads_of(small))
        _check_paths(cell, with_random_constants(small, cell.sizes), seed)


@dataclass(frozen=True)
class _Read:
    """Logits ``(B, T, V)``, NaN past the end of a text, and the state after the texts."""

    logits: Tensor
    state: State


def _check_paths(cell: Cell, operator: Reduction, seed: int) -> None:
    """Compare all paths on one cell."""
    kind = type(operator).__name__
    kind = f"{kind} of {type(operator.operator).__name__}" if isinstance(operator, HeadBudget) else kind
    of_layer, size = cell.operators_per_layer(operator)[0], largest_size(operator)
    T = 24 if size is None else 2 * size + 14
    tokens = torch.randint(cell.config.vocab_size, (2, T), generator=torch.Generator().manual_seed(seed))
    lengths, cut = torch.tensor([T, T - 9]), T // 2
    prefix = torch.randint(cell.config.vocab_size, (2, 6), generator=torch.Generator().manual_seed(seed + 1))

    def attempt(path: str, call: Callable[[], _Read]) -> _Read:
        try:
            return call()
        except Error:
            raise
        except Exception as error:  # the methods of a user-defined class may raise anything
            raise Error(f"{kind} raises {type(error).__name__} in {path}: {str(error).partition(chr(10))[0]}") from error

    def loop(state: State, text: Tensor, ends: Tensor) -> _Read:
        logits = []
        for t in range(text.shape[1]):
            active = t < ends
            found, state = cell.step(text[:, t], state, active=None if bool(active.all()) else active)
            logits.append(found.masked_fill(~active[:, None], torch.nan))
        return _Read(torch.stack(logits, 1), state)

    def start(rows: slice = slice(None)) -> State:  # after prefixes of different lengths, so that the clocks differ
        ends = torch.tensor([6, 2])[rows]
        return loop(cell.initial_state(len(ends), operator), prefix[rows], ends).state

    def step_loop(state: State, first: int, last: int, rows: slice = slice(None)) -> _Read:
        return loop(state, tokens[rows, first:last], lengths[rows] - first)

    def unroll(state: State, first: int, last: int) -> _Read:
        return _Read(*cell(tokens[:, first:last], state, lengths=(lengths - first).clamp(0, last - first)))

    def scan(weights: bool = False) -> _Read:
        logits, trace = cell.scan(tokens, start(), lengths=lengths, weights=weights)
        _compare(kind, "trace.at", trace.at(cut), half.state)
        if weights and size is not None and not any(_is_tested(layer) for layer in trace):
            raise Error(
                f"{kind}: with {size} rows all scores are +inf, so its rule is not tested; expected a method validate that "
                "refuses sizes at which all rows are protected (docs/own-operator.md, Check it)"
            )
        return _Read(logits, trace.at(T))

    half = attempt("the step loop", lambda: step_loop(start(), 0, cut))
    rest = attempt("the step loop", lambda: step_loop(half.state, cut, T))
    whole = _Read(torch.cat((half.logits, rest.logits), 1), rest.state)
    if not whole.logits[torch.arange(T) < lengths[:, None]].isfinite().all():
        raise Error(f"{kind}: logits are not finite in the step loop; expected finite numbers")

    before = half.state.clone()
    again = attempt("a repeated step", lambda: step_loop(half.state, cut, cut + 1))
    _compare(kind, "a state that was used twice", half.state, before)
    _compare_logits(kind, "a repeated step", again.logits, rest.logits[:, :1])

    first = attempt("cell(tokens)", lambda: unroll(start(), 0, cut))
    paths: dict[str, Callable[[], _Read]] = {
        "cell(tokens)": lambda: unroll(start(), 0, T),
        "cell(tokens) in two calls": lambda: unroll(first.state, cut, T),
        "a state that was saved and loaded": lambda: unroll(_reloaded(first.state, of_layer), cut, T),
        "cell.scan": scan,
        "cell.scan(weights=True)": lambda: scan(weights=True),
    }
    for path, call in paths.items():
        found = attempt(path, call)
        expected = whole.logits[:, -found.logits.shape[1] :]
        _compare(kind, path, found.state, whole.state)
        _compare_logits(kind, path, found.logits, expected)
    for b in range(2):
        end = int(lengths[b])
        path = f"text {b} of the batch alone"
        alone = attempt(path, lambda b=b, end=end: step_loop(start(slice(b, b + 1)), 0, end, slice(b, b + 1)))  # type: ignore[misc]
        _compare(kind, path, alone.state, whole.state.select([b]))
        _compare_logits(kind, path, alone.logits[0], whole.logits[b, :end])


def _is_tested(layer: LayerTrace) -> bool:
    """Return True if a token that was read gave some row a score below +inf."""
    assert layer.scores is not None
    return bool(((layer.scores < torch.inf).any(-1).any(1) & layer.active).any())


def _compare_logits(kind: str, path: str, found: Tensor, expected: Tensor) -> None:
    gap = float((found - expected).abs().nan_to_num(nan=0.0).amax())
    if gap > TOLERANCE:
        raise Error(f"{kind}: the logits of {path} differ from the step loop by {gap:.1e}; expected at most {TOLERANCE:.0e}")


def _compare(kind: str, path: str, found: State, expected: State) -> None:
    """Compare two states layer by layer, without regard to the order of rows."""
    for layer, (G, H) in enumerate(zip(found, expected, strict=True)):
        one, other = _sorted(G), _sorted(H)
        if one["positions"].shape != other["positions"].shape or not one["positions"].equal(other["positions"]):
            raise Error(
                f"{kind}: {path} retains other rows than the step loop in layer {layer}; expected the same "
                "(scores that are equal up to rounding need tie_tolerance)"
            )
        for name, x in one.items():
            gap = float((x - other[name]).abs().amax()) if x.numel() else 0.0
            if gap > TOLERANCE:
                raise Error(f"{kind}: {name} of {path} differ from the step loop by {gap:.1e} in layer {layer}")


def _sorted(H: MultiState) -> dict[str, Tensor]:
    """Return the rows in order of position, 0 where a row is empty and where both states may hold infinities."""
    H = H.sorted_by_position()
    rows = {}
    for name, x in H.rows.items():
        absent = (H.positions == EMPTY).view(*H.positions.shape, *(1,) * (x.ndim - 3))
        rows[name] = x.masked_fill(absent, EMPTY).nan_to_num(nan=1e300) if x.is_floating_point() else x
    return rows


def _reloaded(state: State, operator: Reduction) -> State:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        state.save(path)
        state = load_state(path)
    if state[0].reduction != operator:
        raise Error(f"{type(operator).__name__}: a saved state is loaded with {state[0].reduction}; expected {operator}")
    return state


def _check_spec_string(operator: Reduction) -> None:
    """Check that the spec string gives the operator back, if it can contain the settings."""
    wrapped = operator.operator if isinstance(operator, AllLayers | HeadBudget) else operator
    if is_writable(wrapped) and (found := parse_reduction(str(operator))) != operator:
        raise Error(f"spec string {str(operator)!r} gives {found!r}; expected {operator!r}")
