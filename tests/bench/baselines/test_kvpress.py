"""kvpress as a baseline, with a stand-in for the package."""

import sys
from pathlib import Path

import pytest
from support.benchmarks import SIZE, set_times

import msrnn
from msrnn.bench.baselines import kvpress
from msrnn.bench.sections import measure
from msrnn.bench.settings import STEPS


def test_kvpress_is_measured_in_its_own_process(install_kvpress, bench):
    install_kvpress("True")
    (row,) = measure(bench, "kvpress")
    assert row.note == ""
    assert row.baseline_name.startswith("kvpress 0.0, transformers 5.")
    assert row.value > 0
    assert row.baseline > 0
    assert row.target == "≤ 0.5"


def test_the_ratio_is_the_time_of_msrnn_by_that_of_kvpress(install_kvpress, bench, monkeypatch):
    install_kvpress("True")
    set_times(monkeypatch, msrnn=[STEPS * 0.25], kvpress=[STEPS * 0.5])
    (row,) = measure(bench, "kvpress")
    assert (row.value, row.baseline, row.ratio) == (250, 500, 0.5)


@pytest.mark.parametrize(
    ("condition", "note"),
    [
        ("False", f"its cache holds {SIZE + STEPS} rows; expected {SIZE}"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_failure_of_kvpress_is_the_note(condition, note, install_kvpress, bench):
    install_kvpress(condition)
    assert [row.note for row in measure(bench, "kvpress")] == [f"kvpress: {note}"]


def test_without_an_interpreter_the_section_is_skipped(bench):
    assert [row.note for row in measure(bench, "kvpress")] == ["no --kvpress-python was given"]


def test_versions_are_those_of_the_interpreter(install_kvpress):
    assert kvpress.versions(Path(sys.executable)).startswith("0.0, transformers 5.")


@pytest.mark.parametrize(
    ("python", "text"), [("/nowhere/python", r"expected a Python interpreter \(No such"), (sys.executable, "with kvpress and")]
)
def test_interpreter_without_kvpress_is_refused(python, text):
    with pytest.raises(msrnn.Error, match=f"--kvpress-python is .*{text}"):
        kvpress.versions(Path(python))
