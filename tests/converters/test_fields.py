"""Checked access to config fields."""

import pytest
from support.refusals import refusing

from converters.fields import Fields


def test_values_and_defaults():
    fields = Fields({"n": 3, "eps": 1, "none": None}, "x.json")
    assert fields.get_int("n") == 3
    assert fields.get_int("none", 7) == fields.get_int("absent", 7) == 7
    assert fields.get_int("zero", 0, at_least=0) == 0
    assert isinstance(fields.get_float("eps"), float)
    assert fields.get_float("none", 0.5) == 0.5


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", [1]])
def test_other_values_than_ints_are_refused(value):
    with refusing(f"x.json: n is {value!r}; expected an int of at least 1"):
        Fields({"n": value}, "x.json").get_int("n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", 10**400])
def test_other_values_than_finite_numbers_are_refused(value):
    with refusing(f"x.json: eps is {value!r:.60}; expected a finite number"):
        Fields({"eps": value}, "x.json").get_float("eps")


@pytest.mark.parametrize("values", [{}, {"n": None}])
def test_a_missing_field_is_refused(values):
    for get, expected in (("get_int", "an int of at least 1"), ("get_float", "a finite number")):
        with refusing(f"x.json: n is missing; expected {expected}"):
            getattr(Fields(values, "x.json"), get)("n")
