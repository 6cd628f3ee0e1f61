"""Results as Markdown and as lines of text."""

import pytest

from msrnn.bench.report import line, markdown
from msrnn.bench.result import Result, paired

ROWS = [paired("a, b", "ms", [1.5, 3.0, 0.5], "c", [1.0, 1000.0, 0.25], "≤ 2", "so"), Result("d", note="why")]


def test_table_is_markdown():
    assert markdown({"on": "a day"}, {"One token": ROWS}) == (
        "- on: a day\n\n**One token**\n\n"
        "|      |   msrnn | baseline |         |  ratio (low … high) | target | reached |\n"
        "| ---- | ------: | -------: | ------: | ------------------: | -----: | ------: |\n"
        "| a, b | 1.50 ms |        c | 1.00 ms | 1.500 (0.00 … 2.00) |    ≤ 2 | yes; so |\n"
        "| d    |         |          |         |                     |        |     why |"
    )


@pytest.mark.parametrize(
    ("value", "shown"), [(0.01234, "0.0123"), (2.0, "2.00"), (99.94, "99.9"), (100.4, "100"), (1234567.0, "1,234,567")]
)
def test_numbers_have_three_significant_digits(value, shown):
    assert line(Result("work", "ms", value)) == f"work: {shown} ms"


def test_line_has_the_same_cells():
    assert [line(row) for row in ROWS] == ["a, b: 1.50 ms, c 1.00 ms, × 1.500 (0.00 … 2.00) (≤ 2: yes; so)", "d: why"]
