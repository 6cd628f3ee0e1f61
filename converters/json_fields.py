"""Numbers out of somebody's JSON, or a sentence about what stands there."""

import sys
from collections.abc import Mapping
from typing import Any

from msrnn import Error


def whole(facts: Mapping[str, Any], name: str, where: str = "config.json") -> int:
    """The whole number, at least 1, that stands under ``name``.

    Raises:
        Error: none does.
    """
    value = facts.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Error(f"{where}: {name} is {value!r:.60}; expected a whole number of at least 1")
    return value


def number(facts: Mapping[str, Any], name: str, where: str = "config.json") -> float:
    """The number that stands under ``name``.

    Raises:
        Error: none does.
    """
    value = facts.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise Error(f"{where}: {name} is {value!r:.60}; expected a number")
    return float(value)
