"""Decoding methods by name, for one sequence. All methods generate the same tokens in different numbers of forward passes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error, did_you_mean
from ..state.state import State
from .generate import GenerationSettings, stream
from .ngram_pool import NgramPool
from .speculative import stream_jacobi, stream_lookahead

if TYPE_CHECKING:
    from typing_extensions import Unpack

DECODING_METHODS = ("plain", "jacobi", "lookahead")


class StreamedTokens(NamedTuple):
    """Tokens of one forward pass, the state that has read them, and the logits ``(1, V)`` of the next token."""

    tokens: list[int]
    state: State
    logits: Tensor


def stream_by_method(
    cell: Cell,
    tokens: Tensor | None,
    state: State,
    method: str,
    pool: NgramPool | None = None,
    *,
    max_new_tokens: int,
    **settings: "Unpack[GenerationSettings]",
) -> Iterator[StreamedTokens]:
    """Generate a continuation of ``tokens (1, T)``, or from ``logits (1, V)``, one forward pass at a time.

    Args:
        cell, tokens, state, max_new_tokens: see :func:`msrnn.stream`.
        method: ``plain``, ``jacobi`` or ``lookahead``.
        pool: the n-gram pool of :func:`msrnn.lookahead`; the other methods do not use it.
        settings: the other arguments of :func:`msrnn.stream`.

    Raises:
        Error: the method is unknown; also the errors of :func:`msrnn.stream`.
    """
    if method not in DECODING_METHODS:
        hint = did_you_mean(str(method), DECODING_METHODS)
        raise Error(f"decode is {method!r:.60}{hint}; expected one of {', '.join(DECODING_METHODS)}")
    if method == "plain":
        plain = stream(cell, tokens, state, max_new_tokens=max_new_tokens, **settings)
        return (StreamedTokens([int(step.token)], step.state, step.logits) for step in plain)
    if method == "jacobi":
        passes = stream_jacobi(cell, tokens, state, max_new_tokens=max_new_tokens, **settings)
    else:
        passes = stream_lookahead(cell, tokens, state, max_new_tokens=max_new_tokens, pool=pool, **settings)
    return (StreamedTokens(accepted.tokens[0], accepted.state, accepted.logits) for accepted in passes)
