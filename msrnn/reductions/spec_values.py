"""Values of settings in spec strings: their text, by the types that a field may hold."""

import hashlib
import re
from types import NoneType
from typing import Any, get_args, get_origin
from urllib.parse import quote, unquote

SIMPLE_TYPES: frozenset[type] = frozenset((NoneType, bool, int, float, str))
"""Types of a setting that a spec string can contain. A field may also hold a tuple of such values."""

INT = re.compile(r"-?[0-9]{1,400}")
FLOAT = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|-?inf|nan", re.IGNORECASE)
UNBOUNDED = "full"
"""The size of a head that retains all rows."""
HEADS = re.compile(r"(SIZE/)+SIZE|SIZE/".replace("SIZE", f"([0-9]{{1,18}}|{UNBOUNDED})"))
"""Sizes per head, such as ``64/32/32`` or ``full/64/64``; ``64/`` for one head."""
WORDS: dict[str, Any] = {"none": None, "true": True, "false": False}


def simple_types(hint: Any) -> set[Any]:
    """Return the simple types of an annotation, with ``tuple`` for a tuple; all of them if it is of another type."""
    if isinstance(hint, type) and (hint in SIMPLE_TYPES or hasattr(hint, "spec_text")):
        return {hint if hint in SIMPLE_TYPES else str}  # a value with a spec_text is written as this text
    if hint is tuple or get_origin(hint) is tuple:
        elements = [simple_types(x) for x in get_args(hint) if x is not Ellipsis]
        return {tuple}.union(*elements) if elements else {tuple, *SIMPLE_TYPES}
    args = [x for x in get_args(hint) if isinstance(x, type) or get_args(x)]
    return set().union(*map(simple_types, args)) if args else {tuple, *SIMPLE_TYPES}


def format_value(value: object, types: set[Any]) -> str:
    """Return the text of a value; ``!`` and a digest if the text would not give an equal value back."""
    if text := getattr(value, "spec_text", None):  # the class of the operator makes the value from the text
        return quote(text, safe="/@", errors="surrogatepass")
    if isinstance(value, (tuple, *SIMPLE_TYPES)):
        try:
            text = _format_simple(value, types)
            again = parse_value(text, types)
            if again == value or repr(again) == repr(value):  # NaN is not equal to itself
                return text
        except (ValueError, OverflowError):  # not of the type of the field
            pass
    found = hashlib.sha256(repr(value).encode(errors="surrogatepass")).hexdigest()[:16]
    return f"!{type(value).__name__}-{found}"


def _format_simple(value: object, types: set[Any]) -> str:
    if isinstance(value, tuple):
        items = [_format_heads(x) if isinstance(x, tuple) else _format_simple(x, types) for x in value]
        one = len(items) == 1 and not isinstance(value[0], tuple)
        return ",".join(items) + "," * (one or items[-1] == "") if items else "()"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int) and bool in types and types.isdisjoint((int, float)) and value in (0, 1):
        return str(bool(value)).lower()
    if isinstance(value, int):
        return float.__repr__(float(value)) if float in types and int not in types else int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value + 0.0)  # 0.0 and -0.0 are equal, so they have one text
    text = value if isinstance(value, str) else repr(value)
    quoted = quote(text, safe="", errors="surrogatepass")
    if quoted == text and text and not isinstance(parse_value(text, {*types, str}), str):  # such as the string "none"
        quoted = f"%{ord(text[0]):02X}{text[1:]}"
    return quoted


def is_heads(text: str, types: set[Any]) -> bool:
    """Return True for sizes per head, such as ``64/32/32``, in a field that may hold ints."""
    return int in types and HEADS.fullmatch(text) is not None


def _format_heads(sizes: tuple[object, ...]) -> str:
    return "/".join(UNBOUNDED if size is None else str(size) for size in sizes) + "/" * (len(sizes) == 1)


def _parse_heads(text: str) -> tuple[int | None, ...]:
    return tuple(None if size == UNBOUNDED else int(size) for size in text.removesuffix("/").split("/"))


def parse_value(text: str, types: set[Any]) -> Any:
    """Return a value of one of ``types``, the first of these that fits:

    - tuple: ``()``, or elements separated by commas; sizes per head, such as ``64/32``, are an element, also without a comma
    - None and bool: ``none``, ``true`` and ``false`` in any case; a field of ints accepts a bool
    - int, then float: a number
    - str: any text, unquoted

    Raises:
        ValueError: ``text`` is of no such type.
    """
    if tuple in types and text == "()":
        return ()
    if tuple in types and "," in text:
        parts = text.removesuffix(",").split(",")
        return tuple(_parse_heads(x) if is_heads(x, types) else parse_value(x, types - {tuple}) for x in parts)
    if tuple in types and is_heads(text, types):
        return (_parse_heads(text),)
    if text.lower() in WORDS:
        value = WORDS[text.lower()]
        if type(value) in types or (isinstance(value, bool) and int in types):  # a bool is an int
            return value
    if int in types and INT.fullmatch(text):
        return int(text)
    if float in types and FLOAT.fullmatch(text):
        return float(text)
    if str in types:
        return unquote(text, errors="surrogatepass")
    raise ValueError(text)
