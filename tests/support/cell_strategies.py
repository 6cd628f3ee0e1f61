"""Hypothesis strategies for random small cells, operators and texts, and checks that a state is unchanged."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from hypothesis import settings
from hypothesis import strategies as st
from support.tiny_models import ROPES, random_tokens, tiny_cell
from torch import Tensor

from msrnn import CAOTE, H2O, TOVA, Full, Reduction, Sinks, Window
from msrnn.state.state import State

OPERATORS = [Full(), Window(0), Window(4), Sinks(4, sinks=2), H2O(4), H2O(4, per_head=False), TOVA(4), TOVA(4, per_head=True)]
"""One operator of every kind; the bounded ones are full after a few tokens."""


@dataclass(frozen=True)
class PeakWeight(Reduction):
    """A user-defined operator: evict the row with the lowest maximum weight so far; the first ``kept`` positions stay."""

    kept: int = 0
    stat_names: ClassVar[tuple[str, ...]] = ("peak",)

    def update(self, observation):
        return {"peak": torch.maximum(observation.row_stats["peak"], observation.weights.amax(2))}

    def score(self, observation):
        return observation.row_stats["peak"].masked_fill(observation.positions < self.kept, torch.inf)


def examples(count: int) -> settings:
    """Return settings of hypothesis: ``count`` examples, the same in every run, without a time limit."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


def bounded_operators(size: int | tuple[int, ...]) -> list[Reduction]:
    """Return operators of every kind; ``size`` is an int or one int per layer, each at least 1."""
    smallest = min(size) if isinstance(size, tuple) else size
    kinds = [Window(size), TOVA(size), TOVA(size, per_head=True), H2O(size), H2O(size, per_head=False), PeakWeight(size)]
    kinds += [H2O(size, recent=0), H2O(size, recent=smallest, per_head=False), CAOTE(size), CAOTE(size, per_head=False)]
    return kinds + ([Sinks(size, sinks=smallest - 1), PeakWeight(size, kept=1)] if smallest > 1 else [])


@st.composite
def cells(draw):
    """Draw a cell, a batch size, and an operator or a list of operators that fits the cell."""
    heads, kv_heads = draw(st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3), (6, 2)]))
    cell = tiny_cell(
        seed=draw(st.integers(0, 99)),
        n_layers=(L := draw(st.integers(1, 3))),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([4, 6])),
        tied=draw(st.booleans()),
        rope=draw(st.sampled_from([*ROPES.values()])),
        sliding_window=draw(st.sampled_from([None, None, 1, 4])),
    )
    size = st.integers(1, 7)
    operator = (size | st.tuples(*[size] * L)).flatmap(lambda n: st.sampled_from(bounded_operators(n)))
    one_per_layer = st.lists(operator.map(lambda o: o.for_layer(0)), min_size=L, max_size=L)
    reduction = draw(st.none() | st.sampled_from([Full(), Window(0)]) | operator | one_per_layer)
    return cell, draw(st.integers(1, 3)), reduction


def draw_text(draw, B: int, longest: int = 14) -> Tensor:
    """Draw random ids ``(B, T)`` with T up to ``longest``."""
    T = draw(st.integers(0, longest))
    return random_tokens(draw(st.integers(0, 999)), B, T)


def draw_bools(draw, B: int) -> Tensor:
    """Draw ``(B,)`` bool."""
    return torch.tensor(draw(st.lists(st.booleans(), min_size=B, max_size=B)))


def copy_tensors(state: State) -> list[dict[str, Tensor]]:
    """Return copies of all tensors of ``state``, per layer and by name, for :func:`assert_unchanged`."""
    return [{name: x.clone() for name, x in [*H.rows.items(), ("clock", H.clock)]} for H in state]


def assert_unchanged(state: State, before: list[dict[str, Tensor]]) -> None:
    """Assert that the tensors of ``state`` equal those of ``before`` bit for bit."""
    for H, tensors in zip(state, before, strict=True):
        now = {**H.rows, "clock": H.clock}
        assert now.keys() == tensors.keys()
        assert all(now[name].shape == x.shape and now[name].equal(x) for name, x in tensors.items())
