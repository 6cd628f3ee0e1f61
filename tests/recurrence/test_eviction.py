"""The evicted row: ties, protected rows, empty rows."""

import math
from dataclasses import dataclass

import pytest
import torch
from support.one_token import evicted, reduced, rows_at

from msrnn import H2O, TOVA, Reduction, Sinks, Window
from msrnn.recurrence import eviction


@dataclass(frozen=True)
class ScoreByPosition(Reduction):
    """A given score for each position."""

    scores: tuple = ()

    def score(self, seen):
        table = torch.tensor([*self.scores, 0.0], dtype=torch.float64)
        return table[seen.positions]


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
def test_of_equal_scores_the_oldest_position_is_evicted(rows):
    place = {p: i for i, p in enumerate([*rows, 4])}
    weights = [0.25] * 5
    assert evicted(rows_at(rows, TOVA(4)), [[weights]]) == {0}
    weights[place[1]] = weights[place[3]] = weights[place[4]] = 0.1
    assert evicted(rows_at(rows, TOVA(4)), [[weights]]) == {1}
    assert evicted(rows_at(rows, TOVA(4, per_head=True)), [[weights]]) == {1}
    received = torch.tensor([[[1.0 if p in (0, 2) else 0.5 for p in rows]]], dtype=torch.float64)
    assert evicted(rows_at(rows, H2O(4, recent=1), {"accumulated_attention": received}), [[[0.2] * 5]]) == {1}
    assert evicted(rows_at(rows, Window(4)), [[weights]]) == {0}
    assert evicted(rows_at(rows, Sinks(4, sinks=2)), [[weights]]) == {2}


def test_infinite_score_is_not_evicted():
    inf = math.inf
    for stays in range(5):
        scores = tuple(1.0 if p == stays else inf for p in range(5))
        assert evicted(rows_at([2, 0, 3, 1], ScoreByPosition(4, scores)), [[[0.2] * 5]]) == {stays}
    assert evicted(rows_at([2, 0, 3, 1], ScoreByPosition(4, (inf, 3.0, 2.0, inf, 9.0))), [[[0.2] * 5]]) == {2}


@pytest.mark.parametrize("scores", [(-5.0,) * 5, (-math.inf,) * 5, (1.0,) * 5])
def test_empty_row_is_filled_before_an_eviction(scores):
    H = rows_at([2, -1, 3, 1], ScoreByPosition(4, scores))
    assert sorted(reduced(H, [[[0.25, 0.0, 0.25, 0.25, 0.25]]]).positions.flatten().tolist()) == [1, 2, 3, 4]
    for operator in (TOVA(4), Window(4), Sinks(4, sinks=1), H2O(4)):
        numbers = {name: torch.zeros(1, 1, 4).double() for name in operator.stat_names}
        after = reduced(rows_at([2, -1, 3, 1], operator, numbers), [[[0.25, 0.0, 0.25, 0.25, 0.25]]])
        assert sorted(after.positions.flatten().tolist()) == [1, 2, 3, 4]


def test_select_evicted_row_decides_per_head_or_layer():
    positions = torch.tensor([[[4, 0, 2, 5], [0, 1, 4, 5]]])
    assert eviction.select_evicted_row(torch.tensor([[[3.0, 2.0, 1.0, 1.0], [0.0, 7.0, 7.0, 0.0]]]), positions).tolist() == [
        [2, 0]
    ]
    assert eviction.select_evicted_row(torch.tensor([[[3.0, 2.0, 2.0, 9.0]]]), positions[:, :1].repeat(1, 2, 1)).tolist() == [
        [1]
    ]
