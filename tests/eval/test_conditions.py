"""Operators at sizes, as given on the command line."""

import argparse
import enum
from dataclasses import dataclass

import pytest
from support.refusals import refusing

import msrnn
from msrnn.eval.conditions import (
    CORE,
    Condition,
    add_condition_arguments,
    by_condition,
    check_affected,
    parse_conditions,
    unaffected,
)
from msrnn.eval.lm import LMResult
from msrnn.reductions.spec_strings import SPEC_NAMES


def test_every_operator_at_every_size():
    found = parse_conditions(["truncated", "tova:9", "sinks:SIZE:1", "full"], [8, 16])
    assert [str(c) for c in found] == ["truncated:8", "truncated:16", "tova:9", "sinks:8:1", "sinks:16:1", "full"]
    assert [(c.operator, c.size) for c in found[2:]] == [
        ("tova:9", 9),
        ("sinks:SIZE:1", 8),
        ("sinks:SIZE:1", 16),
        ("full", None),
    ]
    assert [c.truncated for c in found] == [True, True, False, False, False, False]
    assert len(parse_conditions(CORE, [8, 16])) == 1 + 7 * 2


@pytest.mark.parametrize(
    ("operators", "message"),
    [(["tova", "tova:8"], "--operators has tova:8 twice"), (["tovaa"], "'tovaa'"), (["tova:x"], "reduction 'tova:x'")],
)
def test_invalid_operators_are_refused(operators, message):
    with pytest.raises(msrnn.Error, match=message):
        parse_conditions(operators, [8])


def test_a_name_stands_for_every_size_also_if_the_class_has_a_default():
    @dataclass(frozen=True)
    class DefaultSize(msrnn.TOVA):
        size: int = 5

    found = parse_conditions(["default-size", "default-size:7"], [8, 16])
    assert [(c.operator, c.size) for c in found] == [("default-size", 8), ("default-size", 16), ("default-size:7", 7)]


def test_the_name_of_the_baseline_cannot_be_that_of_an_operator(monkeypatch):
    monkeypatch.setitem(SPEC_NAMES, "truncated", (msrnn.TOVA, {}))
    with pytest.raises(msrnn.Error, match="an operator is called 'truncated', the name of a baseline"):
        parse_conditions(["tova"], [8])


def test_settings_that_the_key_of_a_cell_does_not_contain_are_refused():
    levels = enum.Enum("Levels", ["LOW", "HIGH"])

    @dataclass(frozen=True)
    class OfKind(msrnn.TOVA):
        kind: object = levels.LOW

        def __post_init__(self):
            super().__post_init__()
            if isinstance(self.kind, str):
                object.__setattr__(self, "kind", levels[self.kind])

    assert [str(c) for c in parse_conditions(["of-kind", "of-kind:9:kind=LOW"], [8])] == ["of-kind:8", "of-kind:9"]
    with pytest.raises(
        msrnn.Error, match=r"--operators has of-kind:9:kind=HIGH, which is .*HIGH.*; expected settings that a spec"
    ):
        parse_conditions(["of-kind:9:kind=HIGH"], [8])


def test_sizes_that_change_nothing_are_refused():
    """A query sees size + 1 rows; the truncated baseline sees size."""
    conditions = parse_conditions(["full", "tova", "truncated"], [8, 9])
    assert unaffected(conditions, 9) == ["tova:8", "tova:9", "truncated:9"]
    assert unaffected(conditions, 10) == ["tova:9"]
    check_affected(conditions, 11, "a text")
    per_head = Condition("tova-head", 9, msrnn.TOVA(((4, 14),), per_head=True), "")
    assert unaffected([per_head], 10) == []
    assert unaffected([per_head], 5) == ["tova-head:4/14"]
    with refusing("--sizes: tova:9 changes nothing in a text of 10 tokens, because a query sees size + 1 rows; expected"):
        check_affected(conditions, 10, "a text")


def test_results_are_grouped_in_order():
    results = [LMResult(*key, "a 0", 1.0, 1, 1, 1.0) for key in (("b", 8), ("a", None), ("b", 8))]
    assert {key: len(group) for key, group in by_condition(results).items()} == {("b", 8): 2, ("a", None): 1}


def test_defaults_of_the_arguments():
    parser = argparse.ArgumentParser()
    add_condition_arguments(parser, ("tova",), (64,))
    args = parser.parse_args([])
    assert (args.operators, args.sizes) == (["tova"], [64])
    assert parser.parse_args(["--sizes", "4", "8"]).sizes == [4, 8]
