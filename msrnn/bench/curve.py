"""Time and bytes against position, for the picture: a bounded H, an unbounded one, and transformers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from .baselines.transformers import NAME, nbytes
from .settings import BLOCK, Bench, block_of, moving

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
        ways = {form: block_of(moving(cell, state.clone()), ids) for form, state in states.items()}
        held = {form: state.nbytes for form, state in states.items()}
        if peer:
            cache = peer.read(more, cache)
            ways[NAME], held[NAME] = block_of(partial(peer.step, cache=cache), ids), nbytes(cache)
        spent = bench.time(ways, ROUNDS)
        for way, times in spent.items():
            yield Point(way, position, 1e3 * sorted(times)[ROUNDS // 2] / BLOCK, held[way])
