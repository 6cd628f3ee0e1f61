"""Constants of an operator from a cell and texts, with the fingerprint of the model."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error, check_int, describe, did_you_mean
from ..reductions.constants import Constants
from .queries import expected_attention, q_filters
from .scorer import learned_score

KINDS = ("q-filters", "expected-attention", "learned-score")
"""The spec names of the operators with constants."""


class Calibration(NamedTuple):
    """Constants, and the share of the variance that a trained score explains on the last text; None for the others."""

    constants: Constants
    explained: float | None


def calibrate(
    cell: Cell,
    texts: Sequence[Tensor],
    kind: str,
    *,
    hidden: int = 0,
    epochs: int = 10,
    seed: int = 0,
    after_text: Callable[[], object] = lambda: None,
    after_layer: Callable[[], object] = lambda: None,
) -> Calibration:
    """Calibrate or train the constants of an operator.

    Args:
        cell: the cell, which reads the texts as the published model.
        texts: ids ``(T,)`` int64 each, at least one; for ``learned-score`` at least two, the last of which is held out.
        kind: one of ``KINDS``.
        hidden, epochs, seed: as of :func:`~msrnn.calibration.scorer.learned_score`.
        after_text, after_layer: called when a text is read, and when a layer of ``learned-score`` is trained.

    Raises:
        Error: an unknown kind, no texts, or a cell or texts that the kind does not allow.
    """
    if kind not in KINDS:
        found = f"calibrate: {kind!r:.60} has no constants{did_you_mean(str(kind), KINDS)}"
        raise Error(f"{found}; expected one of {', '.join(KINDS)}")
    check_int("calibrate: hidden", hidden, at_least=0)
    check_int("calibrate: epochs", epochs)
    if not texts:
        raise Error("calibrate: no texts; expected at least one")
    if cell.rank_part is not None:
        raise Error(f"calibrate: the cell is split over {cell.rank_part.ranks.size} ranks; expected a whole cell (no group=)")
    for tokens in texts:
        if not isinstance(tokens, Tensor) or tokens.ndim != 1 or tokens.dtype != torch.int64 or not len(tokens):
            raise Error(f"calibrate: a text is {describe(tokens)}; expected ids (T,) int64, at least one")

    def read() -> Iterator[Tensor]:
        for tokens in texts:
            yield tokens
            after_text()

    explained = None
    if kind == "learned-score":
        trained = learned_score(cell, read(), hidden=hidden, epochs=epochs, seed=seed, after_layer=after_layer)
        tensors, explained = trained
    else:
        with torch.no_grad():
            tensors = (q_filters if kind == "q-filters" else expected_attention)(cell, read())
    return Calibration(Constants(tensors, json.dumps(asdict(cell.fingerprint(recompute=True)))), explained)
