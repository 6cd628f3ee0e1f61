"""Check that the constants of operators belong to a cell."""

import json
from collections.abc import Iterable

from ..errors import Error
from ..reductions.calibrated import CalibratedReduction, ModelSizes
from ..reductions.contract import Reduction
from ..state.fingerprint import Fingerprint


def check_constants(operators: Iterable[Reduction], sizes: ModelSizes, fingerprint: Fingerprint) -> None:
    """Refuse operators with constants of another model.

    Args:
        operators: one per layer.
        sizes, fingerprint: of the cell.

    Raises:
        Error: the constants have other shapes than the cell needs, or were calibrated on another model.
    """
    checked = set()
    for operator in operators:
        if not isinstance(operator, CalibratedReduction) or operator.constants.digest in checked:
            continue
        constants, kind = operator.constants, type(operator).__name__
        constants.check_shapes(kind, operator.constant_shapes(sizes))
        if constants.model and not _model(constants.model, kind).matches(fingerprint):
            raise Error(f"{kind}: the constants {constants.digest[:8]} belong to another model; expected those of this cell")
        checked.add(constants.digest)


def _model(text: str, kind: str) -> Fingerprint:
    try:
        return Fingerprint.from_dict(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Error(f"{kind}: the constants have a damaged model {text!r:.60}; expected a fingerprint") from None
