"""Spec strings: an operator and its settings as text, such as ``sinks:512:4``, ``decayed:64:0.9`` or ``h2o:64:recent=8``.

A spec string is a name and the settings of the fields in order, separated by colons. Settings at the end that have their
default value are omitted. A field can also be given as ``field=value``; keyword-only fields are always written like this.

Values are written by the type of the field: ``true``, ``false``, ``none``, numbers as Python prints them, tuples with commas,
strings percent-encoded, sizes per head with slashes (``tova-head:64/32/32`` for all layers, ``tova-head:64/32/32,8/8/16`` for
two, ``tova-head:full/32/32`` with an unbounded head). Two different operators have different spec strings. A setting of any
other value is written as ``!``, its type and a digest, as in ``mine:64:!Color-1f0c7a2e93b85d46``, and such a spec string cannot
be read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType
from typing import Any, get_type_hints

from ..errors import Error
from .spec_values import SIMPLE_TYPES, UNBOUNDED, format_value, parse_value, simple_types

SpecNames = Mapping[str, Mapping[str, Any]]
"""Names of an operator in spec strings, each with the fields that the name fixes."""

SPEC_NAMES: dict[str, tuple[type, Mapping[str, Any]]] = {}
"""The class of each spec name, and the fields that the name fixes. Classes register when they are defined."""


def register_spec_names(kind: type) -> None:
    """Make an operator class known by its ``spec_names``, or by its class name in kebab case if it states none.

    Of two classes with one name the later one is found by the name, unless the name is the library's or only the earlier class
    states it. The spec string of the other class begins with ``module.Class``.

    Raises:
        Error: a stated name is one of the library's, or cannot be a name.
    """
    stated = vars(kind).get("spec_names") or {}
    for name, fixed in stated.items():
        if not re.fullmatch(r"[^\sA-Z:=]+", name):
            raise Error(f"{kind.__name__}: spec name is {name!r:.60}; expected lower-case letters without spaces, ':' and '='")
        if is_internal(other := SPEC_NAMES.get(name, (kind,))[0]) and not _is_same_class(other, kind):
            raise Error(f"{kind.__name__}: spec name {name!r} is that of msrnn.{other.__name__}; expected another name")
        SPEC_NAMES[name] = kind, fixed
    name = default_spec_name(kind)
    holder = SPEC_NAMES.get(name, (kind,))[0]
    free = _is_same_class(holder, kind) or not (is_internal(holder) or vars(holder).get("spec_names"))
    if free and not stated and not is_internal(kind):
        SPEC_NAMES[name] = kind, {}


def is_internal(kind: type) -> bool:
    """Return True for a class of this library."""
    return kind.__module__.split(".")[0] == "msrnn"


def default_spec_name(kind: type) -> str:
    """Return the class name in kebab case: ``my-tova`` for ``MyTOVA``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "-", kind.__name__).lower()


def qualified_name(kind: type) -> str:
    """Return ``module.Class``."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_same_class(one: type, other: type) -> bool:
    """Return True for one class, or for two definitions of one class, as in a notebook."""
    return qualified_name(one) == qualified_name(other)


def format_spec(operator: Any) -> str:
    """Return the spec string of an operator."""
    kind = type(operator)
    name, fixed = _name_of(operator)
    types, values = _field_types(kind), {f.name: getattr(operator, f.name) for f in fields(kind) if f.init}
    listed = positional_fields(kind, fixed)
    while listed and listed[-1].name != "size" and _is_default(listed[-1], values[listed[-1].name]):
        listed.pop()
    parts = [format_value(values[f.name], types[f.name]) for f in listed]
    for f in fields(kind):
        given = f.name in fixed and _is_equal(values.get(f.name), fixed[f.name])
        if f.init and (f.kw_only or f.name in fixed) and not given and not (f.kw_only and _is_default(f, values[f.name])):
            parts.append(f"{f.name}={format_value(values[f.name], types[f.name])}")
    return ":".join([name, *parts])


def parse_spec(text: str, kind: type, fixed: Mapping[str, Any], values: Iterable[str]) -> Any:
    """Return the operator of class ``kind`` with the settings ``values``.

    Args:
        text: the spec string, for messages.
        kind: the class.
        fixed: the fields that the spec name fixes.
        values: the parts of the spec string after its name.

    Raises:
        Error: a value is not of the type of its field; too many, too few or unknown fields; a value that cannot be read.
    """
    if not is_complete(text):
        example = "expected none, true, false, numbers, text or flat tuples of these, with '%21' for the character '!'"
        raise Error(f"reduction {text!r:.200}: '!' stands for a setting that a spec string cannot contain; {example}")
    positional, by_name = positional_fields(kind, fixed), {f.name: f for f in fields(kind) if f.init}
    types, given, values = _field_types(kind), dict[str, Any](), list(values)
    try:
        for i, value in enumerate(values):
            name, equals, keyword_value = value.partition("=")
            name, value = (name, keyword_value) if equals else (positional[i].name, value)
            if name in given or (not equals and len(given) != i):
                raise ValueError
            given[name] = parse_value(value, types[by_name[name].name])
        if any(_is_required(f) and f.name not in {**fixed, **given} for f in by_name.values()):
            raise ValueError
    except (ValueError, LookupError, OverflowError):
        form = _form(text.partition(":")[0], positional, types) + _form_of_sizes(values, types.get("size", set()))
        raise Error(f"reduction {text!r:.200}: expected the form {form}") from None
    try:
        return kind(**{**fixed, **given})
    except TypeError as error:  # a class with an __init__ of its own
        raise Error(f"reduction {text!r:.200}: {kind.__name__} cannot be made from its fields ({error})") from None


def is_complete(text: str) -> bool:
    """Return True if a spec string contains all settings; False if it has a digest in place of one."""
    return not re.search("[:=]!", text)


def is_writable(operator: Any) -> bool:
    """Return True if a spec string can contain all settings of an operator."""

    def simple(x: object) -> bool:
        if isinstance(x, tuple):  # sizes per head
            return all(size is None or type(size) is int for size in x)
        return (type(x) in SIMPLE_TYPES and x == x) or bool(getattr(x, "spec_text", None))  # NaN is not equal to itself

    values = [getattr(operator, f.name) for f in fields(operator) if f.init]
    return all(all(map(simple, x)) if isinstance(x, tuple) else simple(x) for x in values)


def positional_fields(kind: type, fixed: Mapping[str, object]) -> list[Field]:
    """Return the fields that a spec string lists in order: those of ``__init__`` without ``fixed`` and keyword-only fields."""
    types = _field_types(kind)
    return [f for f in fields(kind) if f.init and not f.kw_only and f.name not in fixed and types[f.name] != {NoneType}]


def _name_of(operator: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the spec name of an operator and the fields that it fixes; ``module.Class`` if it has no name of its own."""
    kind = type(operator)
    stated: SpecNames = vars(kind).get("spec_names") or {default_spec_name(kind): {}}
    own = [(name, fixed) for name, fixed in stated.items() if name in SPEC_NAMES and _is_same_class(SPEC_NAMES[name][0], kind)]
    if not own:
        return qualified_name(kind), {}
    return next((x for x in own if all(_is_equal(getattr(operator, k), v) for k, v in x[1].items())), own[0])


def _is_required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _is_default(field: Field, value: object) -> bool:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return _is_equal(value, default)


def _is_equal(one: object, other: object) -> bool:
    """Return True for equal values of one type, so that True and 1 differ."""
    return type(one) is type(other) and one == other


def _field_types(kind: type) -> dict[str, set[Any]]:
    """Return the simple types that each field may hold, with ``tuple`` for a tuple; all of them if they are not known."""
    hints = dict[str, Any]()
    for base in filter(is_dataclass, reversed(kind.__mro__)):
        try:
            hints |= get_type_hints(base)
        except Exception:  # an annotation may be any expression, and names of a local scope cannot be found
            inherited = {f.name: f.type for parent in filter(is_dataclass, base.__mro__[1:]) for f in fields(parent)}
            hints |= {f.name: None for f in fields(base) if inherited.get(f.name) is not f.type}
    return {f.name: simple_types(hints.get(f.name)) for f in fields(kind)}


def _form_of_sizes(values: Iterable[str], types: set[Any]) -> str:
    """Return the form of several sizes, if a size was given as several or as that of an unbounded head; otherwise nothing."""
    sizes = [x.removeprefix("size=") for i, x in enumerate(values) if x.startswith("size=") or (i == 0 and "=" not in x)]
    if tuple not in types or not any("," in x or "/" in x or UNBOUNDED in x for x in sizes):
        return ""
    return f"; sizes per layer are 64,32, sizes per head 64/32, or {UNBOUNDED}/32 with an unbounded head"


def _form(name: str, positional: list[Field], types: Mapping[str, set[Any]]) -> str:
    parts = [name]
    for f in positional:
        kinds = [t.__name__ for t in (int, float, bool, str) if t in types[f.name]]
        part = f":<{f.name}: {' or '.join(kinds)}>"
        parts.append(part if _is_required(f) else f"[{part}]")
    return "".join(parts)
