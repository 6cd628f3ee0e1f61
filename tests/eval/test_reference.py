"""The operator that the others are compared with."""

import pytest
from support.refusals import refusing

import msrnn
from msrnn.eval.conditions import parse_conditions, parse_paired_conditions
from msrnn.eval.reference import choose_reference


@pytest.mark.parametrize(
    ("operators", "reference"),
    [
        (["window"], "full"),
        (["h2o", "tova"], "tova"),
        (["full", "h2o", "window"], "h2o"),
        (["window:9"], "full"),
        ([], "full"),
    ],
)
def test_the_default_reference_is_tova_or_the_first_bounded_operator_of_several(operators, reference):
    conditions = parse_paired_conditions(operators, [9])
    assert choose_reference(None, conditions) == reference
    assert choose_reference("full", conditions) == "full"
    with pytest.raises(msrnn.Error, match="--against is 'knorm'; expected one of the operators, full"):
        choose_reference("knorm", conditions)
    with pytest.raises(msrnn.Error, match=r"--against is 'ful' \(did you mean 'full'\?\); expected one of the operators, full"):
        choose_reference("ful", conditions)


@pytest.mark.parametrize(
    ("operators", "reference"),
    [
        (["full", "tova-head:12/6", "h2o"], "tova-head:12/6"),  # both have 9 rows on average
        (["full", "tova-head:12/4", "h2o"], "full"),
        (["full", "tova-head:12/4", "h2o", "window"], "h2o"),
        (["full", "sinks:full/9:2", "h2o", "window"], "h2o"),
        (["window", "full"], "full"),
        (["tova-head:12/4", "window"], "tova-head:12/4"),
    ],
)
def test_the_default_reference_has_a_size_in_common_with_another_operator(operators, reference):
    assert choose_reference(None, parse_conditions(operators, [9])) == reference


def test_a_reference_without_a_size_in_common_is_refused():
    conditions = parse_conditions(["full", "tova-head:12/4", "h2o", "window", "sinks:full/4:2"], [9, 10])
    found = "--against is tova-head:12/4, with 8 rows, but the other operators have 9, 10"
    with refusing(f"{found}; expected an operator of one of these sizes, or full, which is compared with all"):
        choose_reference("tova-head:12/4", conditions)
    for against in ("full", "h2o", "sinks:full/4:2"):  # an unbounded reference is compared with all
        assert choose_reference(against, conditions) == against
