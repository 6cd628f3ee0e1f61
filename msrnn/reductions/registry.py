"""Spec strings such as ``tova:512``, and one operator per layer."""

from collections.abc import Iterator, Sequence

from ..errors import Error
from .contract import Reduction
from .spec_strings import SPEC_NAMES, parse_spec, qualified_name


def defined_reductions() -> list[type[Reduction]]:
    """Return every operator class that is defined, those of this library last."""

    def subclasses(kind: type[Reduction]) -> Iterator[type[Reduction]]:
        for child in kind.__subclasses__():
            yield child
            yield from subclasses(child)

    return sorted(subclasses(Reduction), key=lambda kind: kind.__module__.split(".")[0] == "msrnn")


def parse_reduction(text: str) -> Reduction:
    """Return the operator of a spec string, such as ``full``, ``window:512``, ``sinks:512:4`` or ``decayed:64:0.9``.

    ``spec_strings.py`` describes the form. The names are those of the library and those of user-defined classes, once they are
    defined; ``module.Class`` names a class in every case.

    Raises:
        Error: the name is unknown; a value is not of the type of its field; too many, too few or unknown fields.
    """
    if not isinstance(text, str):
        raise Error(f"reduction is {text!r:.60}; expected an operator or a spec string, such as 'tova:512'")
    name, *values = text.strip().split(":")
    qualified = {qualified_name(kind): kind for kind in defined_reductions()} if "." in name else {}
    if name in qualified:
        return parse_spec(text, qualified[name], {}, values)
    if name.lower() not in SPEC_NAMES:
        raise Error(f"reduction {text!r}: no operator is called {name!r}; expected one of {', '.join(SPEC_NAMES)}")
    return parse_spec(text, *SPEC_NAMES[name.lower()], values)


def per_layer(reduction: Reduction | str | Sequence[Reduction | str], n_layers: int) -> list[Reduction]:
    """Return one operator per layer, each with an int size, from an operator, a spec string, or a sequence of either.

    Raises:
        Error: another number of operators or sizes than layers; a class that breaks the contract.
    """
    if isinstance(reduction, Sequence) and not isinstance(reduction, str):
        if len(reduction) != n_layers:
            raise Error(f"{len(reduction)} reductions for a cell of {n_layers} layers; expected one per layer")
        return [per_layer(r, n_layers)[layer] for layer, r in enumerate(reduction)]
    operator = reduction if isinstance(reduction, Reduction) else parse_reduction(reduction)
    if isinstance(operator.size, tuple) and len(operator.size) != n_layers:
        kind = type(operator).__name__
        raise Error(f"{kind}: {len(operator.size)} sizes for a cell of {n_layers} layers; expected one per layer")
    operators = [operator.for_layer(layer) for layer in range(n_layers)]
    for of_layer in operators:
        if not isinstance(of_layer, Reduction):
            raise Error(f"{type(operator).__name__}.for_layer returns {of_layer!r:.60}; expected a Reduction")
        of_layer.check_contract()
    return operators
