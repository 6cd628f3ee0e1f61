"""Medians, ratios and targets of results."""

import pytest

from msrnn.bench.result import Result, paired


def test_values_are_medians_and_ratios_are_taken_round_by_round():
    row = paired("work", "s", [2.0, 9.0, 4.0], "other", [1.0, 3.0, 8.0], "≤ 1.25")
    assert (row.value, row.baseline, row.ratio, row.low, row.high) == (4.0, 3.0, 2.0, 0.5, 3.0)
    assert paired("work", "s", [2.0, 9.0, 4.0]).ratio is None
    with pytest.raises(ValueError, match="longer"):
        paired("work", "s", [1.0], "other", [1.0, 2.0])


@pytest.mark.parametrize(
    ("ratio", "target", "reached"),
    [
        (1.25, "≤ 1.25", True),
        (1.26, "≤ 1.25", False),
        (1.0, "< 1", False),
        (0.99, "< 1", True),
        (0.45, "≥ 0.45 (aim 0.5)", True),
        (0.44, "≥ 0.45 (aim 0.5)", False),
        (None, "≤ 1", None),
        (0.5, "", None),
    ],
)
def test_target_is_reached_or_not(ratio, target, reached):
    assert Result("work", ratio=ratio, target=target).reached is reached
