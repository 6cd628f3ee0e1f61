"""Tables as Markdown, significant digits, means and their errors."""

import math
import statistics

import pytest

import msrnn
from msrnn.reporting.report import Report, Table, format_significant, markdown_table
from msrnn.reporting.resume import check_same_settings
from msrnn.reporting.statistics import Mean, mean, mean_and_deviation, paired


def test_table_is_padded_markdown():
    assert markdown_table(["operator", "8"], [["tova", "1.5"], ["sinks:SIZE:4", "10.25"]]).split("\n") == [
        "| operator     |     8 |",
        "| ------------ | ----: |",
        "| tova         |   1.5 |",
        "| sinks:SIZE:4 | 10.25 |",
    ]


def test_title_and_note_enclose_the_table():
    tables = [Table("Title", ["a", "b"], [["x", "1"]], "A note."), Table("", ["c"], [])]
    first, rest = str(Report(tables, [])).split("\n\n", 1)
    assert first == "**Title**"
    assert rest == "| a    |    b |\n| ---- | ---: |\n| x    |    1 |\n\nA note.\n\n| c    |\n| ---- |\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (46.26, "46.3"),
        (4812.4, "4,812"),
        (0.012345, "0.012"),
        (9.999, "10.00"),
        (1.0, "1.00"),
        (math.nan, "–"),
        (math.inf, "inf"),
    ],
)
def test_significant_digits(value, shown):
    assert format_significant(value) == shown


def test_mean_and_errors():
    values, others = [2.0, 3.0, 2.5], [1.0, 2.5, 2.5]
    deviation = statistics.stdev(values)
    assert mean_and_deviation(values) == pytest.approx((2.5, deviation))
    assert mean(values) == pytest.approx((2.5, deviation / math.sqrt(3)))
    assert paired(values, others) == pytest.approx(mean([1.0, 0.5, 0.0]))
    assert math.isnan(mean([1.0]).error)
    assert math.isnan(mean([1.0] * 5).error)
    assert mean([1.0] * 6).error == 0


def test_mean_is_formatted_with_its_error():
    assert f"{Mean(0.5, 0.125):+.2f}" == "+0.50 ± 0.12"
    assert f"{Mean(-0.5, math.nan):.3f}" == "-0.500"


def test_other_settings_are_refused(tmp_path):
    check_same_settings(tmp_path, {"seed": 1}, {"seed": 1})
    with pytest.raises(msrnn.Error, match=r"contains a run with seed 1; this one has 2 \(use a new folder\)"):
        check_same_settings(tmp_path, {"seed": 1}, {"seed": 2})
    with pytest.raises(msrnn.Error, match="version None; this one has 2"):
        check_same_settings(tmp_path, {"seed": 1}, {"version": 2, "seed": 2})
    with pytest.raises(msrnn.Error, match="more 'x'; this one has None"):
        check_same_settings(tmp_path, {"more": "x"}, {})
