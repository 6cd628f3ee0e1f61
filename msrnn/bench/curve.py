"""Time and bytes against position, for the picture: a bounded H, an unbounded one, and transformers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..cell import Cell
from ..state import State
from .context import BLOCK, Bench, block_of
from .peers import NAME, Transformers, nbytes

ROUNDS = 3


@dataclass(frozen=True)
class Point:
    """One way at one position: the median milliseconds of a step there, and the bytes that it then holds."""

    way: str
    position: int
    ms: float
    nbytes: int


def curve(bench: Bench) -> Iterator[Point]:
    """Points at an eighth of ``tokens``, and at twice that again and again, up to four times ``tokens``."""
    cell, peer = bench.cell(), bench.peer()
    ids = bench.text(4 * bench.tokens)
    states = {form: cell.initial_state(1, form) for form in (bench.tova, "full")}
    cache, read = peer and peer.cache(), 0
    for n in range(-3, 3):
        position = int(bench.tokens * 2.0**n)
        more, read = ids[:, read:position], position
        states = {form: cell(more, state, last_only=True)[1] for form, state in states.items()}
        ways = {form: block_of(partial(_move, cell, state.clone()), ids) for form, state in states.items()}
        held = {form: state.nbytes for form, state in states.items()}
        if peer:
            cache = peer.read(more, cache)
            ways[NAME], held[NAME] = block_of(partial(_step, peer, cache), ids), nbytes(cache)
        spent = bench.time(ways, ROUNDS)
        for way, times in spent.items():
            yield Point(way, position, 1e3 * sorted(times)[ROUNDS // 2] / BLOCK, held[way])


def _move(cell: Cell, state: State, token: Tensor) -> None:
    cell.step_(token, state)


def _step(peer: Transformers, cache: Any, token: Tensor) -> None:
    peer.step(token, cache)
