"""Spec strings such as ``tova:512``."""

import re
from collections.abc import Iterator

from ..errors import Error, did_you_mean
from .all_layers import PREFIX, AllLayers
from .contract import Reduction
from .shared_budget import PREFIX as SHARED_PREFIX
from .shared_budget import parse_shared
from .spec_strings import SPEC_NAMES, parse_spec, qualified_name

PREFIXES_ALONE = re.compile(rf"({PREFIX}\s*|{SHARED_PREFIX}\s*(floor=[^:]*:?\s*)?)+")
"""Spec strings without an operator, such as ``shared:``."""


def defined_reductions() -> list[type[Reduction]]:
    """Return every operator class that is defined, those of this library last."""

    def subclasses(kind: type[Reduction]) -> Iterator[type[Reduction]]:
        for child in kind.__subclasses__():
            yield child
            yield from subclasses(child)

    return sorted(subclasses(Reduction), key=lambda kind: kind.__module__.split(".")[0] == "msrnn")


def is_name_only(text: str) -> bool:
    """Return True for a spec string without settings, such as ``tova`` or ``shared:floor=0.5:tova-head``."""
    wrapped = rf"({PREFIX})?({SHARED_PREFIX}(floor=[^:]*:)?)?"
    return ":" not in re.sub(f"^{wrapped}", "", text.strip())


def parse_reduction(text: str) -> Reduction:
    """Return the operator of a spec string, such as ``full``, ``window:512``, ``sinks:512:4`` or ``decayed:64:0.9``.

    ``spec_strings.py`` describes the form. The names are those of the library and those of user-defined classes, once they are
    defined; ``module.Class`` names a class in every case. ``all-layers:`` before a spec string gives :class:`AllLayers`,
    ``shared:`` gives :class:`SharedBudget`.

    Raises:
        Error: the name is unknown; a value is not of the type of its field; too many, too few or unknown fields.
    """
    if not isinstance(text, str):
        raise Error(f"reduction is {text!r:.60}; expected an operator or a spec string, such as 'tova:512'")
    if re.fullmatch(PREFIXES_ALONE, text.strip()):
        example = f"{text.strip().rstrip(':')}:tova-head:512"
        raise Error(f"reduction {text!r:.200} has no operator; expected one after the colon, such as {example!r:.200}")
    if text.strip().startswith(PREFIX):
        return AllLayers(parse_reduction(text.strip().removeprefix(PREFIX)))
    if text.strip().startswith(SHARED_PREFIX):
        return parse_shared(text.strip(), parse_reduction)
    name, *values = text.strip().split(":")
    qualified = {qualified_name(kind): kind for kind in defined_reductions()} if "." in name else {}
    if name in qualified:
        return parse_spec(text, qualified[name], {}, values)
    if name.lower() not in SPEC_NAMES:
        found = f"reduction {text!r:.200}: no operator is called {name!r:.60}{did_you_mean(name, SPEC_NAMES)}"
        own = "a class of your own after its definition (in a command: --operators-from FILE)"
        raise Error(f"{found}; expected one of {', '.join(sorted(SPEC_NAMES))}, or {own}")
    return parse_spec(text, *SPEC_NAMES[name.lower()], values)
