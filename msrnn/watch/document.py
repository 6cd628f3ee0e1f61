"""The JSON document behind the page (docs/watch.md): encoding of observed runs, and a reader."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..errors import Error
from ..reductions.head_budgets import HeadSizes
from .codes import PRECISIONS, Precision, encode_scores, encode_weights, pack, rounded
from .record import RecordedLayer
from .run import ObservedRun, predictions_differ, texts_differ
from .texts import token_texts

if TYPE_CHECKING:
    import tokenizers

FORMAT, VERSION = "msrnn-watch", 1
MAX_TOKENS = 2**15 - 1
"""Positions are stored in 16 bits."""


def build_document(
    runs: Sequence[ObservedRun],
    tokenizer: "tokenizers.Tokenizer",
    model: str,
    n_prompt: int,
    n_heads: int,
    precision: Precision = PRECISIONS[0],
) -> dict[str, Any]:
    """Return the document of runs of one prompt, made of lists, dicts, strings and numbers.

    Args:
        runs: one per operator.
        tokenizer: of the model.
        model: name of the model.
        n_prompt: number of prompt tokens.
        n_heads: number of query heads of a layer.
        precision: of weights and scores.

    Raises:
        Error: a text is longer than ``MAX_TOKENS``.
    """
    longest = max(len(run.ids) for run in runs)
    if longest > MAX_TOKENS:
        raise Error(f"the text has {longest} tokens; expected at most {MAX_TOKENS}")
    ids = {i for run in runs for i in (*run.ids, *run.top_ids.unique().tolist())}
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": model,
        "prompt_tokens": n_prompt,
        "query_heads": n_heads,
        "precision": {"steps": precision.steps, "threshold": precision.threshold},
        "texts": {str(i): text for i, text in sorted(token_texts(tokenizer, ids).items())},
        "runs": [_encode_run(run, precision) for run in runs],
        "predictions_differ": [[predictions_differ(one, other) for other in runs] for one in runs],
        "texts_differ": [[texts_differ(one, other) for other in runs] for one in runs],
    }


def _encode_run(run: ObservedRun, precision: Precision) -> dict[str, Any]:
    planes = [_encode_plane(layer, h, precision) for layer in run.layers for h in range(len(layer.weights))]
    own, others, tied = (np.concatenate([_numpy(layer.decisions[i]) for layer in run.layers]) for i in range(3))
    return {
        "operator": str(run.operator),
        "ids": run.ids,
        "layers": [
            {"operator": str(layer.operator), "size": layer.operator.size, "heads": len(layer.weights)} for layer in run.layers
        ],
        "planes": [fields for _, _, fields in planes],
        "evicted": pack(np.concatenate([_numpy(layer.evicted) for layer in run.layers]).astype(np.int16)),
        "evicted_score": pack(rounded(own)),
        "next_score": pack(rounded(others)),
        "tied": pack(tied.astype(np.uint8)),
        "weights": pack(np.concatenate([weights for weights, _, _ in planes])),
        "scores": pack(np.concatenate([scores for _, scores, _ in planes]), delta=True),
        "top_ids": pack(_numpy(run.top_ids).astype(np.int32)),
        "top_probabilities": pack(rounded(_numpy(run.top_probabilities))),
        "next_probability": pack(rounded(_numpy(run.next_probability))),
    }


def _encode_plane(layer: RecordedLayer, head: int, precision: Precision) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Return the codes of weights and scores, row after row and token after token, and how to read the scores."""
    weights = _numpy(layer.weights[head])
    codes, no_scores = encode_weights(weights, precision), np.zeros(0, np.uint8)
    operator = layer.operator
    size = operator.sizes[head] if isinstance(operator, HeadSizes) else operator.size
    if size is None:
        return codes, no_scores, {"kind": "none"}
    scores = _numpy(layer.scores[head])
    if np.isfinite(scores).all() and np.allclose(scores, weights, rtol=1e-4, atol=1e-7):
        return codes, no_scores, {"kind": "attention"}
    score_codes, fields = encode_scores(scores, precision)
    return codes, score_codes, fields


def _numpy(x: Tensor) -> np.ndarray:
    return (x.double() if x.is_floating_point() else x).cpu().numpy()
