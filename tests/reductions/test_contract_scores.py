"""One rule for infinite scores, NaN, scores of any dtype, and ties, in the step loop and in the many-token path."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.operator_paths import LENGTHS, TEXT, assert_paths_agree, retained_by_scores
from support.tiny_models import assert_same, random_tokens, retained_positions, step_loop, tiny_cell

from msrnn import KeyDiff, Knorm, Reduction

MAX = torch.finfo(torch.float64).max


@dataclass(frozen=True)
class ByPosition(Reduction):
    """A score for each position modulo the number of ``scores``."""

    scores: tuple = ()
    dtype: str = "float64"

    def score(self, observation):
        table = torch.tensor(self.scores, dtype=torch.float64).to(getattr(torch, self.dtype))
        return table[observation.positions % len(self.scores)]


class RowWise(ByPosition):
    depends_on_row_layout: ClassVar[bool] = False


@pytest.mark.parametrize("kind", [ByPosition, RowWise])
@pytest.mark.parametrize(
    "scores",
    [
        (math.nan, 1.0, 2.0),
        (math.inf, 1.0, math.nan),
        (math.inf, MAX, math.inf),
        (MAX, math.inf),
        (-math.inf, 0.0, -MAX),
        (math.inf,),
        (math.nan,),
        (-math.inf, math.nan, 3.0),
        (-1.0, -2.0, math.nan, -3.0),
        (1.0, 1.0),
    ],
    ids=str,
)
def test_extreme_scores_have_one_rule(kind, scores):
    end = assert_paths_agree(kind(5, scores))
    assert retained_positions(end)[0] == [[retained_by_scores(scores, 5, n)] * 2 for n in LENGTHS.tolist()]


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16", "bfloat16", "float8_e4m3fn"])
def test_scores_of_any_real_dtype_have_one_rule(dtype):
    end = assert_paths_agree(ByPosition(5, (1, 0, 1, 1, 0, 0, 1), dtype))
    assert retained_positions(end)[0] == [[retained_by_scores((1, 0, 1, 1, 0, 0, 1), 5, n)] * 2 for n in LENGTHS.tolist()]


@pytest.mark.parametrize("layout", [True, False])
def test_integer_scores_are_exact_beyond_float32(layout):
    @dataclass(frozen=True)
    class Newest(Reduction):
        depends_on_row_layout: ClassVar[bool] = layout

        def score(self, observation):
            return 2**30 - observation.positions

    end = assert_paths_agree(Newest(5))
    assert retained_positions(end) == [[[[0, 1, 2, 3, 4]] * 2] * 2] * 2


@pytest.mark.parametrize("operator", [Knorm(8), KeyDiff(1), KeyDiff(3), Knorm(1)], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_ties_up_to_rounding_are_exact_on_repeated_tokens(operator, seed):
    text = random_tokens(seed, 2, 12).repeat(1, 3)
    cell = tiny_cell(seed=seed)
    end = assert_paths_agree(operator, cell, text, torch.tensor([36, 31]))
    _, state = cell(text[:1, :17], cell.initial_state(1, operator))
    _, split = cell(text[:1, 17:], state)
    assert_same(split, end.select([0]), 1e-8)


def test_keydiff_with_one_row_is_the_window():
    cell = tiny_cell()
    for path in (step_loop, lambda cell, text, state: cell(text, state)):
        assert retained_positions(path(cell, TEXT, cell.initial_state(2, "keydiff:1"))[1]) == [[[[29]] * 2] * 2] * 2


def test_scores_within_the_tolerance_are_equal():
    @dataclass(frozen=True)
    class Near(ByPosition):
        tie_tolerance: ClassVar[float] = 1e-3

    assert retained_positions(assert_paths_agree(Near(5, (2.0, 2.0 - 1e-3, 2.0, 1.0))))[0][0][0] == retained_by_scores(
        (2.0, 2.0, 2.0, 1.0), 5, 30
    )
    assert retained_positions(assert_paths_agree(Near(5, (2.0, 1.9, MAX))))[0][0][0] == retained_by_scores(
        (2.0, 1.9, MAX), 5, 30
    )
    extreme = (math.inf, -math.inf, 0.0, math.nan)
    assert retained_positions(assert_paths_agree(Near(5, extreme)))[0][0][0] == retained_by_scores(extreme, 5, 30)
