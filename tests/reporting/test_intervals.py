"""Intervals are those of scipy's paired t test; ranks are shared by ties."""

import math

import pytest
import torch
from scipy import stats

from msrnn.reporting.intervals import T_VALUES, paired_interval, rank_with_ties


@pytest.mark.parametrize("n", [3, 4, 9, 31])
def test_the_interval_is_that_of_students_distribution(n):
    generator = torch.Generator().manual_seed(n)
    a, b = torch.randn(2, n, generator=generator, dtype=torch.float64).tolist()
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired_interval(a, b)
    assert found.value - found.half_width == pytest.approx(low, rel=2e-3)
    assert found.value + found.half_width == pytest.approx(high, rel=2e-3)
    assert found.is_tie == (low <= 0 <= high)


def test_t_values_of_scipy():
    assert pytest.approx(stats.t.ppf(0.975, range(1, 31)), abs=6e-4) == T_VALUES


@pytest.mark.parametrize("values", [[3.0], [3.0, 4.0], [3.0, 3.0], [3.0] * 5])
def test_few_pairs_have_no_interval(values):
    found = paired_interval(values, [1.0] * len(values))
    assert (found.half_width, found.is_tie) == (math.inf, True)
    assert f"{paired_interval([0.0, 0.0], [100.0, 100.0]):+.0f}" == "-100 ± –"


def test_six_equal_differences_have_the_width_0():
    """Of five fair coins all fall on one side with probability 2 / 2⁵ > 0.05, of six with 2 / 2⁶ < 0.05."""
    assert stats.binomtest(5, 5).pvalue > 0.05 > stats.binomtest(6, 6).pvalue
    found = paired_interval([3.0] * 6, [1.0] * 6)
    assert (found.value, found.half_width, found.is_tie) == (2, 0, False)
    assert paired_interval([2.0] * 6, [2.0] * 6).is_tie
    assert f"{paired_interval([2.0, 4.0, 3.0], [1.0, 2.0, 3.0]):+.1f}" == "+1.0 ± 2.5"


def test_ranks_are_shared_by_ties_with_the_best_of_the_rank():
    values = {
        "worst": [0.0, 0.1, 0.0, 0.1],
        "second": [4.9, 5.1, 5.0, 4.9],
        "best": [9.0, 9.1, 9.0, 9.2],
        "also best": [9.1, 9.0, 8.9, 9.2],
        "also second": [5.0, 4.9, 5.0, 5.0],
    }
    ranks = rank_with_ties(list(values), values)
    assert ranks == {"best": "1=", "also best": "1=", "second": "3=", "also second": "3=", "worst": "5"}
    assert rank_with_ties(["a"], {"a": [1.0]}) == {"a": "1"}
