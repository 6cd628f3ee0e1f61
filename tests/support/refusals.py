"""Expected errors."""

import re

import pytest

import msrnn


def refusing(message):
    """Expect a ``msrnn.Error`` with ``message`` as a part of its text."""
    return pytest.raises(msrnn.Error, match=re.escape(message))
