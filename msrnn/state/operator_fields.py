"""Operators in the file of a saved state: class and settings as JSON, constants as tensors."""

import json
from collections.abc import Iterator
from dataclasses import fields as dataclass_fields
from typing import Any

from torch import Tensor

from ..errors import Error
from ..reductions.constants import Constants
from ..reductions.contract import Reduction
from ..reductions.registry import defined_reductions

PREFIX = "constants"
"""First part of the name of a tensor of constants; the others are the digest and the name."""


def constants_of(operator: Reduction) -> Iterator[Constants]:
    """Yield the constants among the settings of an operator, and of an operator within it."""
    for f in dataclass_fields(operator):
        value = getattr(operator, f.name) if f.init else None
        if isinstance(value, Constants):
            yield value
        elif isinstance(value, Reduction):
            yield from constants_of(value)


def take_constants(tensors: dict[str, Tensor]) -> dict[str, Constants]:
    """Remove the constants from the tensors of a file, and return them by digest, without their models and sources."""
    found: dict[str, dict[str, Tensor]] = {}
    for name in [name for name in tensors if name.startswith(f"{PREFIX}.")]:
        _, digest, own = name.split(".")
        found.setdefault(digest, {})[own] = tensors.pop(name)
    return {digest: Constants(parts) for digest, parts in found.items()}


def _constants_to_dict(constants: Constants) -> dict[str, Any]:
    """Return what identifies constants, without their tensors."""
    return {"constants": constants.digest, "model": constants.model, "source": constants.source, "layer": constants.layer}


def _is_constants(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"constants", "model", "source", "layer"}


def _constants_from_dict(value: dict[str, Any], stored: dict[str, Constants]) -> Constants:
    """Return the constants of a setting.

    Raises:
        TypeError: a field has a wrong type.
        ValueError: the tensors are missing, or have another digest.
    """
    model, source, layer = value["model"], value["source"], value["layer"]
    if not isinstance(model, str) or not isinstance(source, str | None) or not isinstance(layer, int | None):
        raise TypeError("constants have a model, a source or a layer of a wrong type")
    digest = value["constants"]
    if digest not in stored:
        raise ValueError(f"the constants {digest!r:.60} are missing")
    if (stored[digest].model, stored[digest].source) != (model, source):  # the model is part of the digest
        stored[digest] = Constants(stored[digest].tensors, model, source)
    if (constants := stored[digest]).digest != digest:
        raise ValueError(f"constants have the digest {constants.digest}; expected {digest!r:.60}")
    return constants if layer is None else constants.of_layer(layer)


def _operator_name(kind: type[Reduction]) -> str:
    """Return the name of an operator class in a file: ``TOVA`` for one of the library, else ``module.Class``."""
    return kind.__qualname__ if kind.__module__.split(".")[0] == "msrnn" else f"{kind.__module__}.{kind.__qualname__}"


def operator_to_dict(operator: Reduction) -> dict[str, Any]:
    """Return the class and the settings of an operator as JSON values.

    Raises:
        Error: they cannot be written as JSON and read back as the same operator.
    """
    settings = {f.name: getattr(operator, f.name) for f in dataclass_fields(operator) if f.init}
    written = {name: _setting_to_json(x) for name, x in settings.items()}
    fields, stored = {"class": _operator_name(type(operator)), "settings": written}, {}
    for constants in constants_of(operator):
        stored[constants.digest] = constants
    try:
        again = operator_from_dict(json.loads(json.dumps(fields)), stored)
    except (TypeError, ValueError) as error:
        raise Error(f"save: the settings of {operator} cannot be saved ({error})") from None
    if type(again) is not type(operator):
        raise Error(f"save: two operator classes are called {fields['class']!r}; expected a name of its own for {operator}")
    if again != operator or any(getattr(again, name) != value for name, value in settings.items()):
        raise Error(f"save: {operator} would be read back as {again!r:.60}; expected settings that JSON preserves")
    return fields


def operator_from_dict(fields: dict[str, Any], stored: dict[str, Constants]) -> Reduction:
    """Return an operator from its class name, among the classes that are defined. Nothing is imported.

    Args:
        fields: as :func:`operator_to_dict` returns them.
        stored: the constants of the state, by digest.

    Raises:
        Error: the class is not defined, or refuses the settings.
        TypeError, ValueError: fields of another form, or constants that are missing.
    """
    name = fields["class"]
    named = [kind for kind in defined_reductions() if _operator_name(kind) == name]
    if not named:
        raise Error(f"operator {name!r} is not defined; import the class before loading the state")
    settings: dict[str, Any] = {key: _setting_from_json(value, stored) for key, value in fields["settings"].items()}
    try:
        return named[-1](**settings)
    except Error:
        raise
    except Exception as error:  # the constructor of a user-defined class can raise anything
        raise ValueError(f"{name}: {error}") from None


def _setting_to_json(value: object) -> object:
    if isinstance(value, Reduction):
        return operator_to_dict(value)
    return _constants_to_dict(value) if isinstance(value, Constants) else value


def _setting_from_json(value: Any, stored: dict[str, Constants]) -> Any:
    if isinstance(value, dict) and value.keys() == {"class", "settings"}:
        return operator_from_dict(value, stored)
    return _constants_from_dict(value, stored) if _is_constants(value) else _with_tuples(value)


def _with_tuples(value: Any) -> Any:
    """Return ``value`` with tuples in place of lists; JSON has lists only."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
