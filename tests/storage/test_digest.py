"""Digests of text."""

import hashlib

import pytest

import msrnn
from msrnn.storage.digest import digest


def test_a_digest_is_the_start_of_the_sha_256_of_the_utf_8_bytes():
    assert digest("naïve") == hashlib.sha256("naïve".encode()).hexdigest()[:16]
    assert digest("a") != digest("b")


def test_lone_surrogates_are_refused():
    with pytest.raises(msrnn.Error, match="the text is not valid Unicode"):
        digest("\udc80")
