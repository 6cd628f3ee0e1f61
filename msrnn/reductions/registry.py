"""Operators by their text forms, and one for each layer."""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING

from ..errors import Error
from .contract import Reduction


def kinds() -> list[type[Reduction]]:
    """Every operator defined so far, the library's own last."""

    def below(kind: type[Reduction]) -> Iterator[type[Reduction]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return sorted(below(Reduction), key=lambda kind: kind.__module__.split(".")[0] == "msrnn")


def parse_reduction(text: str) -> Reduction:
    """An operator from its text form: ``full``, ``window:512``, ``sinks:512:4``, ``h2o:512``, ``h2o-layer:512``, ``tova:512``,
    ``tova-head:512``; those of ``operators.py``, and any of one's own that has ``forms``, once its class is defined.

    Raises:
        Error: an unknown name, a size that is no whole number, too many or too few numbers.
    """
    if not isinstance(text, str):
        raise Error(f"a reduction is {text!r}; expected an operator or its text form, such as 'tova:512'")
    name, *numbers = text.strip().lower().split(":")
    forms = {form: (kind, fixed) for kind in kinds() for form, fixed in kind.__dict__.get("spec_names", {}).items()}
    if name not in forms:
        raise Error(f"reduction {text!r}: no operator is called {name!r}; expected one of {', '.join(forms)}")
    kind, fixed = forms[name]
    said = kind.spec_fields(fixed)
    least = sum(f.default is MISSING for f in said)
    if not all(n.isascii() and n.isdigit() and len(n) <= 18 for n in numbers) or not least <= len(numbers) <= len(said):
        expected = ":".join([name, *(f"<{f.name}>" for f in said)])
        raise Error(f"reduction {text!r}: expected the form {expected}, in whole numbers")
    return kind(**fixed, **{f.name: int(n) for f, n in zip(said, numbers, strict=False)})


def per_layer(reduction: Reduction | str | Sequence[Reduction | str], n_layers: int) -> list[Reduction]:
    """One operator with an int size per layer, from an operator, its text form, or a sequence of either."""
    if isinstance(reduction, Sequence) and not isinstance(reduction, str):
        if len(reduction) != n_layers:
            raise Error(f"{len(reduction)} reductions for a cell of {n_layers} layers; expected one per layer")
        return [per_layer(r, n_layers)[layer] for layer, r in enumerate(reduction)]
    operator = reduction if isinstance(reduction, Reduction) else parse_reduction(reduction)
    if isinstance(operator.size, tuple) and len(operator.size) != n_layers:
        raise Error(
            f"{type(operator).__name__}: {len(operator.size)} sizes for a cell of {n_layers} layers; expected one per layer"
        )
    operators = [operator.for_layer(layer) for layer in range(n_layers)]
    for operator in operators:
        operator.check_contract()
    return operators
