"""The ways to write, by name: one sequence, pass by pass. They all write the same tokens; what differs is how many a pass."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error
from ..state.state import State
from .generate import stream
from .ngram_pool import Pool
from .speculative import stream_jacobi, stream_lookahead

WAYS = ("plain", "jacobi", "lookahead")


class Written(NamedTuple):
    """Tokens that one pass added, and the state that has read them."""

    tokens: list[int]
    state: State


def write(cell: Cell, tokens: Tensor, state: State, way: str, pool: Pool | None = None, **settings: Any) -> Iterator[Written]:
    """Continue ``tokens (1, T)``.

    Args:
        cell, tokens, state: as of :func:`msrnn.stream`.
        way: ``plain``, ``jacobi`` or ``lookahead``.
        pool: of :func:`msrnn.lookahead`; plain decoding and Jacobi's need none.
        settings: the others of :func:`msrnn.stream`.

    Raises:
        Error: as :func:`msrnn.stream`; no such way.
    """
    if way not in WAYS:
        raise Error(f"decode is {way!r:.60}; expected one of {', '.join(WAYS)}")
    if way == "plain":
        return (Written([int(token)], now) for token, now in stream(cell, tokens, state, **settings))
    if way == "jacobi":
        passes = stream_jacobi(cell, tokens, state, **settings)
    else:
        passes = stream_lookahead(cell, tokens, state, pool=pool, **settings)
    return (Written(step.tokens[0], step.state) for step in passes)
