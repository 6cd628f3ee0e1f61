"""Values of command-line arguments."""

import argparse

import pytest

import msrnn
from msrnn.argtypes import positive_int, read_text, seed_int


def test_integers_of_at_least_one_or_zero():
    assert (positive_int("1"), positive_int("007"), seed_int("0"), seed_int("9" * 18)) == (1, 7, 0, 10**18 - 1)


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", " 1", "1_000", "²", "١", "9" * 19])
def test_other_texts_are_refused(text):
    for parse, least in ((positive_int, 1), (seed_int, 0)):
        with pytest.raises(argparse.ArgumentTypeError, match=f"is not an integer of at least {least}"):
            parse(text)


def test_zero_is_no_positive_integer():
    with pytest.raises(argparse.ArgumentTypeError, match="'0' is not an integer of at least 1"):
        positive_int("0")


def test_a_text_file_is_utf_8(tmp_path):
    (tmp_path / "text.txt").write_bytes("naïve\n".encode())
    assert read_text(tmp_path / "text.txt") == "naïve\n"
    (tmp_path / "text.txt").write_bytes(b"na\xefve")
    for path in (tmp_path / "text.txt", tmp_path / "missing.txt", tmp_path):
        with pytest.raises(msrnn.Error, match=f"^cannot read {path} "):
            read_text(path)
