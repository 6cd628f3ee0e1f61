"""Time and bytes against position, for the plot: a bounded H, an unbounded H, and transformers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from .baselines.transformers import NAME, nbytes
from .settings import STEPS, Bench, in_place_step, repeated

ROUNDS = 3


@dataclass(frozen=True)
class Point:
    """One implementation at one position: median milliseconds per step, and bytes of its KV cache."""

    name: str
    position: int
    ms: float
    nbytes: int


def curve(bench: Bench) -> Iterator[Point]:
    """Yield points at tokens / 8, tokens / 4, …, 4 · tokens."""
    cell, baseline = bench.cell(), bench.transformers()
    ids = bench.text(4 * bench.tokens)
    states = {spec: cell.initial_state(1, spec) for spec in (bench.tova, "full")}
    cache, read = baseline and baseline.cache(), 0
    for n in range(-3, 3):
        position = int(bench.tokens * 2.0**n)
        new, read = ids[:, read:position], position
        states = {spec: cell(new, state, last_only=True)[1] for spec, state in states.items()}
        contenders = {spec: repeated(in_place_step(cell, state.clone()), ids) for spec, state in states.items()}
        memory = {spec: state.nbytes for spec, state in states.items()}
        if baseline:
            cache = baseline.read(new, cache)
            contenders[NAME], memory[NAME] = repeated(partial(baseline.step, cache=cache), ids), nbytes(cache)
        for name, times in bench.time(contenders, ROUNDS).items():
            yield Point(name, position, 1e3 * sorted(times)[ROUNDS // 2] / STEPS, memory[name])
