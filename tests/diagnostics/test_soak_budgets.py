"""A soak checks layers in which heads hold different numbers of rows."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from support.refusals import refusing
from support.tiny_models import assert_same, random_tokens, tiny_cell

import msrnn
from msrnn import H2O, TOVA, Reduction, SharedBudget, Sinks
from msrnn.diagnostics.expected_rows import ExpectedRows
from msrnn.diagnostics.invariants import check_rows
from msrnn.diagnostics.soak import STATE, soak
from msrnn.reductions.contract import EMPTY
from msrnn.reductions.head_budgets import HeadSizes

CELL = tiny_cell()


@pytest.mark.parametrize(
    "reduction", ["tova-head:9/4", "h2o:8/6:recent=3", "sinks:9/5,6/4:2", "shared:tova-head:6", "shared:floor=0.5:h2o:8"]
)
def test_uneven_heads_are_read_and_checked(reduction, tmp_path):
    text = random_tokens(0, 1, 37)[0]
    rows = soak(CELL, tmp_path, 100, reduction, text=text, interval=32)
    assert [row.read for row in rows] == [32, 64, 96, 100]
    assert all(row.difference < 1e-8 and row.near_ties == 0 for row in rows)
    assert len({row.nbytes for row in rows}) == 1
    _, expected = CELL(text.repeat(3)[None, :100], CELL.initial_state(1, reduction))
    assert_same(msrnn.load_state(tmp_path / STATE), expected, 1e-8)


def test_unbounded_heads_are_refused(tmp_path):
    with refusing("reduction is sinks:full/6:2; expected an operator that bounds H, such as tova:512"):
        soak(CELL, tmp_path, 64, "sinks:full/6:2")


def test_expected_rows():
    sizes = HeadSizes(Sinks(((9, None, 5),), sinks=2))
    assert ExpectedRows.of(sizes, 3, 7) == ExpectedRows((7, 7, 5), (7, 7, 5), 19, (2, 0, 2), (7, 0, 3))
    assert str(ExpectedRows.of(sizes, 3, 7)) == "[7, 7, 5]"
    assert ExpectedRows.of(H2O(6), 2, 20) == ExpectedRows((6, 6), (6, 6), 12, (0, 0), (3, 3))
    assert str(ExpectedRows.of(H2O(6), 2, 20)) == "6 each"
    shared = ExpectedRows.of(SharedBudget(TOVA(6, per_head=True), floor=0.5), 2, 20)
    assert shared == ExpectedRows((3, 3), (9, 9), 12, (0, 0), (0, 0))
    assert str(shared) == "12 in total, 3 to 9 each"
    assert [shared.fit(torch.tensor(x)) for x in ([6, 6], [9, 3], [10, 2], [6, 5], [3, 9])] == [True, True, False, False, True]
    assert str(ExpectedRows.of(SharedBudget(TOVA(6, per_head=True)), 2, 1)) == "1 each"


@pytest.mark.parametrize(
    ("reduction", "drop", "message"),
    [
        ("tova-head:9/4", [], None),
        ("tova-head:9/4", [(0, 3)], r"layer 1: the heads hold \[8, 4\] rows in 8 columns; expected \[9, 4\]"),
        (
            "shared:tova-head:6",
            [(1, 0)],
            r"layer 1: the heads hold \[\d+, \d+\] rows in \d+ columns; expected 12 in total, 1 to 11",
        ),
        ("sinks:9/5:2", [(1, "first")], r"layer 1: the heads hold \[9, 4\]"),
    ],
)
def test_missing_rows_are_found(reduction, drop, message):
    _, state = CELL(random_tokens(0, 1, 30), CELL.initial_state(1, reduction))
    layers = list(state)
    for head, column in drop:
        row = layers[1].positions[0, head]
        row[int(row.masked_fill(row < 0, 99).argmin()) if column == "first" else column] = EMPTY
    damaged = state.with_layers(layers)
    if message is None:
        check_rows(damaged, 30)
    else:
        with pytest.raises(msrnn.Error, match=f"after 30 tokens, unroll, {message}"):
            check_rows(damaged, 30)


def test_rows_that_each_size_guarantees_are_checked():
    _, state = CELL(random_tokens(0, 1, 30), CELL.initial_state(1, "h2o:8/6:recent=3"))
    layers = list(state)
    row = layers[0].positions[0, 1]
    row[row == 28] = next(p for p in range(30) if p not in row.tolist())
    with refusing("layer 0: h2o:8/6:3 retains the first 0 and the newest 3 tokens; some are missing"):
        check_rows(state.with_layers(layers), 30)
    _, state = CELL(random_tokens(0, 1, 30), CELL.initial_state(1, "h2o:8/6"))
    check_rows(state, 30)
    layers = [replace(H, reduction=HeadSizes(H2O(((8, 6),), recent=6))) for H in state]
    with refusing("retains the first 0 and the newest 6 tokens; some are missing"):
        check_rows(state.with_layers(layers), 30)
    layers = [replace(H, reduction=HeadSizes(msrnn.Window(((8, 6),)))) for H in state]
    with refusing("retains the first 0 and the newest [8, 6] tokens; some are missing"):
        check_rows(state.with_layers(layers), 30)


@dataclass(frozen=True)
class Wavering(Reduction):
    """Scores are equal, except for a ripple that depends on the number of columns, so unroll and step loop never agree."""

    ripple: float = 0.0
    depends_on_row_layout: ClassVar[bool] = False  # which is not true

    def score(self, observation):
        positions = observation.positions.double()
        return 1 + self.ripple * (positions * positions.shape[-1] + torch.arange(positions.shape[1])[:, None]).sin()


@pytest.mark.parametrize("make", [lambda ripple: SharedBudget(Wavering(6, ripple)), lambda ripple: Wavering(((8, 5),), ripple)])
def test_near_ties_are_counted_and_larger_gaps_are_errors(make, tmp_path):
    cell = tiny_cell(dtype=torch.float32)
    rows = soak(cell, tmp_path / "near", 96, make(1e-6), interval=32)
    assert all(row.near_ties >= 1 for row in rows)
    assert all(row.difference < 1e-5 for row in rows)
    with pytest.raises(msrnn.Error, match=r"their scores differ by"):
        soak(cell, tmp_path / "far", 96, make(1e-2), interval=32)


def test_another_eviction_of_a_shared_budget_is_an_error(tmp_path, monkeypatch):
    """The unroll evicts the rows of the highest scores."""
    score = TOVA.score

    def inverted(self, observation):
        found = score(self, observation)
        return found if observation.weights.shape[-1] < 15 else -found

    monkeypatch.setattr(TOVA, "score", inverted)
    with pytest.raises(
        msrnn.Error, match=r"layer [01]: the unroll evicts position \d+, the step loop \d+; their scores differ"
    ):
        soak(CELL, tmp_path, 64, "shared:tova-head:6", interval=32)
