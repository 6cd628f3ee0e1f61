"""Checked access to the fields of a config: a JSON object or the metadata of a GGUF file."""

import sys
from collections.abc import Mapping
from typing import Any

from msrnn.errors import Error, is_int


class Fields:
    """Fields by name. A field that is null counts as missing.

    Attributes:
        values: the fields that are not null.
        where: the file, named in error messages.
    """

    def __init__(self, values: Mapping[str, Any], where: object):
        self.values = {name: value for name, value in values.items() if value is not None}
        self.where = where

    def get_int(self, name: str, default: int | None = None, at_least: int = 1) -> int:
        """Return the int under ``name``; without a default the field is required.

        Raises:
            Error: the field is missing, of another type or less than ``at_least``.
        """
        value: Any = self.values.get(name, default)
        if not is_int(value) or value < at_least:
            raise self.error(name, f"an int of at least {at_least}")
        return value

    def get_float(self, name: str, default: float | None = None) -> float:
        """Return the number under ``name`` as a float; without a default the field is required.

        Raises:
            Error: the field is missing, of another type or not finite.
        """
        value: Any = self.values.get(name, default)
        if not (is_int(value) or isinstance(value, float)) or not abs(value) <= sys.float_info.max:
            raise self.error(name, "a finite number")
        return float(value)

    def error(self, name: str, expected: str) -> Error:
        """Return the error for a field with a wrong value or without one."""
        found = f"is {self.values[name]!r:.60}" if name in self.values else "is missing"
        return Error(f"{self.where}: {name} {found}; expected {expected}")
