"""Reading of the JSON document: H, weights and scores of any token, for other figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Error
from ..storage.files import read_json
from .codes import Precision, decode_scores, decode_weights, unpack
from .document import FORMAT, VERSION


@dataclass(frozen=True)
class Plane:
    """One layer, or one key/value head if the operator of the layer decides for each head.

    Attributes:
        visible: ``(T, T)`` bool at [t, p]: token t attends to position p.
        weights: ``(T, T)``, attention weights, 0 where not visible.
        scores: ``(T, T)``, scores of the operator, NaN where not visible; None if the operator evicts nothing.
        evicted: ``(T,)``, the position evicted after each token, −1 for none.
    """

    visible: np.ndarray
    weights: np.ndarray
    scores: np.ndarray | None
    evicted: np.ndarray


@dataclass(frozen=True)
class Run:
    """One operator. ``planes[layer][head]``; ``arrays`` are the other arrays of the document by name."""

    operator: str
    ids: list[int]
    planes: list[list[Plane]]
    arrays: dict[str, np.ndarray]


def read_document(path: str | Path) -> tuple[dict[str, Any], list[Run]]:
    """Read a file that ``msrnn watch --json`` wrote: the document, and its runs with their arrays.

    Raises:
        Error: the file is not such a document, or is of another version.
    """
    document = read_json(Path(path))
    if (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        found = f"format {document.get('format')!r:.40}, version {document.get('version')!r:.20}"
        raise Error(f"{path} has {found}; expected {FORMAT!r}, version {VERSION}")
    try:
        precision = Precision(**document["precision"])
        return document, [_decode_run(run, precision) for run in document["runs"]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, Error):
            raise
        raise Error(
            f"{path}: the document cannot be read ({type(error).__name__}: {error}); expected a file of msrnn watch"
        ) from None


def last_tokens(evicted: np.ndarray) -> np.ndarray:
    """Return the last token that attends to each position, ``(T,)``, from the evicted positions ``(T,)``."""
    last = np.full(len(evicted), len(evicted) - 1)
    tokens = np.flatnonzero(evicted >= 0)
    last[evicted[tokens]] = tokens
    return last


def _decode_run(run: Mapping[str, Any], precision: Precision) -> Run:
    arrays = {name: unpack(fields) for name, fields in run.items() if isinstance(fields, dict)}
    T, weight_codes, score_codes = len(run["ids"]), arrays.pop("weights"), arrays.pop("scores")
    tokens, planes, fields = np.arange(T), list[list[Plane]](), iter(zip(run["planes"], arrays["evicted"], strict=True))
    for layer in run["layers"]:
        planes.append([])
        for _ in range(layer["heads"]):
            how, evicted = next(fields)
            visible = (tokens[:, None] <= tokens) & (tokens <= last_tokens(evicted)[:, None])  # rows, then tokens
            n, weights, scores = int(visible.sum()), np.zeros((T, T)), None
            weights[visible], weight_codes = decode_weights(weight_codes[:n], precision), weight_codes[n:]
            if how["kind"] == "attention":
                scores = np.where(visible, weights, np.nan)
            elif how["kind"] != "none":
                scores = np.full((T, T), np.nan)
                scores[visible], score_codes = decode_scores(score_codes[:n], how, precision), score_codes[n:]
            planes[-1].append(Plane(visible.T, weights.T, None if scores is None else scores.T, evicted))
    return Run(run["operator"], run["ids"], planes, arrays)
