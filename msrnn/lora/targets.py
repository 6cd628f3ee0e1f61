"""The modules that ``adapter_config.json`` says it adapts, as PEFT selects them.

Source: github.com/huggingface/peft 0.21.2, ``check_target_module_exists`` in ``src/peft/tuners/tuners_utils.py``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import Error, is_int
from .names import HF_HEAD

ALL_LINEAR = "all-linear"
"""The value of ``target_modules`` for every linear map except the LM head."""


@dataclass(frozen=True)
class Targets:
    """Which modules of a model have an adapter.

    Attributes:
        chosen, excluded: ``target_modules`` and ``exclude_modules``: a regular expression for whole names, names or ends of
            names; None: the file does not say.
        layers: ``layers_to_transform``, indices of layers; None: all.
        pattern: ``layers_pattern``, names of the list of layers; empty: any name.
    """

    chosen: str | Sequence[str] | None
    excluded: str | Sequence[str] | None
    layers: Sequence[int] | None
    pattern: Sequence[str]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Targets":
        """Return the targets in the fields of ``adapter_config.json``.

        Raises:
            Error: a field has another type, or an invalid regular expression.
        """
        chosen, excluded = (_names(name, fields.get(name)) for name in ("target_modules", "exclude_modules"))
        layers = fields.get("layers_to_transform")
        layers = [layers] if is_int(layers) else layers
        if layers is not None and not (isinstance(layers, list) and all(is_int(i) for i in layers)):
            raise Error(f"layers_to_transform is {layers!r:.60}; expected an int or a list of ints")
        found = _names("layers_pattern", fields.get("layers_pattern")) or []
        pattern = [found] if isinstance(found, str) else found
        for part in pattern:
            _names("layers_pattern", part)
        return cls(chosen, excluded, layers or None, pattern)

    def contain(self, name: str) -> bool:
        """Return True if the module ``name``, a name of PEFT, is to have an adapter; False also if the file does not say."""
        if not self.chosen or _matches(self.excluded, name):
            return False
        if self.chosen == ALL_LINEAR:
            return name != HF_HEAD
        if isinstance(self.chosen, str) or name in self.chosen:
            return _matches(self.chosen, name)
        return _matches(self.chosen, name) and self._is_in_layers(name)

    def _is_in_layers(self, name: str) -> bool:
        if self.layers is None:
            return True
        lists = [rf"(?:^|.*?\.){part}\.(\d+)\." for part in self.pattern] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for pattern in lists if (match := re.match(pattern, name))), None)
        return found is not None and int(found[1]) in self.layers


def _names(name: str, value: object) -> str | Sequence[str] | None:
    """Return the value of a field that has a regular expression or a list of names."""
    if isinstance(value, str) and value != ALL_LINEAR:
        try:
            re.compile(value)
        except re.error as error:
            raise Error(f"{name} is {value!r:.60}; expected a regular expression ({error})") from None
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise Error(f"{name} is {value!r:.60}; expected a list of names or a regular expression")
    return value


def _matches(chosen: str | Sequence[str] | None, name: str) -> bool:
    if not chosen:
        return False
    if isinstance(chosen, str):
        return re.fullmatch(chosen, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in chosen)
