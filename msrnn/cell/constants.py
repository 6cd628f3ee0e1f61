"""Check that the constants of operators belong to a cell."""

import json
from collections.abc import Iterable, Sequence

from ..errors import Error
from ..reductions.calibrated import CalibratedReduction, ModelSizes
from ..reductions.constants import Constants
from ..reductions.contract import Reduction
from ..state.fingerprint import Fingerprint


def check_constants(
    operators: Iterable[Reduction], sizes: ModelSizes, fingerprints: Sequence[Fingerprint], remapped: bool
) -> None:
    """Refuse operators with constants of another model, or for other positions.

    Args:
        operators: one per layer.
        sizes: of the cell.
        fingerprints: of the models that the constants may belong to.
        remapped: True if keys are rotated at other positions than those in the text.

    Raises:
        Error: the constants have other shapes than the cell needs, or were calibrated on another model; an operator needs
            positions in the text.
    """
    checked = set()
    for operator in operators:
        if not isinstance(operator, CalibratedReduction) or (type(operator), operator.constants.digest) in checked:
            continue
        constants, kind = operator.constants, type(operator).__name__
        if remapped and operator.needs_text_positions:
            raise Error(f"{kind} rotates keys by their positions in the text; expected places='absolute', or another operator")
        constants.check_shapes(kind, operator.constant_shapes(sizes))
        if constants.model and not any(map(_model(constants, kind).matches, fingerprints)):
            raise Error(
                f"{kind}: {constants.name} ({constants.digest[:8]}) belong to another model; expected those of this cell"
            )
        checked.add((type(operator), constants.digest))


def _model(constants: Constants, kind: str) -> Fingerprint:
    try:
        return Fingerprint.from_dict(json.loads(constants.model))
    except (ValueError, TypeError, KeyError, RecursionError):
        found = f"{constants.name} have a damaged model {constants.model!r:.60}"
        raise Error(f"{kind}: {found}; expected a fingerprint") from None
