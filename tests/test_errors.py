"""Bounds and messages of the argument checks, and the printed form of errors."""

import math

import pytest
import torch

import msrnn
from msrnn.errors import (
    MAX_MESSAGE_CHARACTERS,
    Error,
    check_bool,
    check_device,
    check_dtype,
    check_int,
    check_number,
    counted,
    did_you_mean,
    is_int,
)


def refused(check, *args, **more):
    """Return the message of the refusal, or an empty string if the value is accepted."""
    try:
        check(*args, **more)
    except Error as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (1, {}, ""),
        (0, {}, "x is 0; expected an int of at least 1"),
        (0, {"at_least": 0}, ""),
        (-1, {"at_least": 0}, "x is -1; expected an int of at least 0"),
        (9, {"at_most": 9}, ""),
        (10, {"at_most": 9}, "x is 10; expected an int from 1 to 9"),
        (True, {}, "x is True; expected an int of at least 1"),
        (1.0, {}, "x is 1.0; expected an int of at least 1"),
        ("1", {}, "x is '1'; expected an int of at least 1"),
        (None, {}, "x is None; expected an int of at least 1"),
    ],
)
def test_ints_within_bounds(value, bounds, message):
    assert refused(check_int, "x", value, **bounds) == message


@pytest.mark.parametrize(
    ("value", "at_most", "message"),
    [
        (0.5, 1, ""),
        (1, 1, ""),
        (1.0, 1.0, ""),
        (1.5, 1, "x is 1.5; expected a number above 0 and at most 1"),
        (0, 1, "x is 0; expected a number above 0 and at most 1"),
        (1e300, math.inf, ""),
        (10**300, math.inf, ""),
        (10**400, math.inf, f"x is {'1' + '0' * 59}; expected a number above 0"),
        (math.inf, math.inf, "x is inf; expected a number above 0"),
        (math.nan, math.inf, "x is nan; expected a number above 0"),
        (True, math.inf, "x is True; expected a number above 0"),
        ("1", math.inf, "x is '1'; expected a number above 0"),
    ],
)
def test_numbers_above_a_bound(value, at_most, message):
    assert refused(check_number, "x", value, 0, at_most) == message


def test_one_has_a_singular():
    assert [counted(n, "word") for n in (0, 1, 2, 1200)] == ["0 words", "1 word", "2 words", "1200 words"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, ""),
        (0.0, ""),
        (0.99, ""),
        (-1, "x is -1; expected a number of at least 0 and at most 0.99"),
        (False, "x is False; expected a number of at least 0 and at most 0.99"),
        (math.nan, "x is nan; expected a number of at least 0 and at most 0.99"),
        (1, "x is 1; expected a number of at least 0 and at most 0.99"),
    ],
)
def test_numbers_that_may_equal_the_bound(value, message):
    assert refused(check_number, "x", value, 0, 0.99, or_equal=True) == message


def test_bools_are_no_ints_and_ints_are_no_bools():
    assert is_int(3)
    assert not is_int(True)
    assert not is_int(3.0)
    assert refused(check_bool, "x", False) == ""
    assert refused(check_bool, "x", 1) == "x is 1; expected a bool"


def test_dtypes_have_arithmetic():
    for dtype in (None, torch.float64, torch.float32, torch.float16, torch.bfloat16):
        assert refused(check_dtype, dtype) == ""
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, "float32"):
        assert refused(check_dtype, dtype) == f"dtype is {dtype!r}; expected a floating-point torch.dtype"


def test_devices_are_available():
    for device in (None, "cpu", torch.device("cpu"), "meta"):
        assert refused(check_device, device) == ""
    for device in ("nowhere", 1.5):
        assert refused(check_device, device).startswith(f"device is {device!r}; ")


def test_an_error_is_a_value_error_in_printable_characters():
    error = msrnn.Error("a\x00b\nc\x1b[2Jü – 漢")
    assert isinstance(error, ValueError)
    assert str(error) == r"a\x00b\nc\x1b[2Jü – 漢"


def test_a_long_message_keeps_its_start_and_its_end():
    whole = "start " + "x" * MAX_MESSAGE_CHARACTERS + " end"
    assert str(Error(whole[:MAX_MESSAGE_CHARACTERS])) == whole[:MAX_MESSAGE_CHARACTERS]
    shown = str(Error(whole))
    assert len(shown) <= MAX_MESSAGE_CHARACTERS
    assert shown.startswith("start xxx")
    assert " … " in shown
    assert shown.endswith("xxx end")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tiy", " (did you mean 'tiny'?)"),
        ("Tiny-Decodr", " (did you mean 'tiny-decoder'?)"),
        ("tin", " (did you mean 'tiny' or 'tine'?)"),
        ("q", ""),
        ("", ""),
        ("tiny" * 10_000, ""),
    ],
)
def test_the_nearest_names_are_suggested(name, hint):
    assert did_you_mean(name, ["tine", "tiny", "tiny-decoder", "large"]) == hint
