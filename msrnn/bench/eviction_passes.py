"""Number of iterations that the unroll needs to compute the evictions of a block (``msrnn/recurrence/eviction.py``)."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..recurrence import unroll
from ..recurrence.eviction import Block, Look
from .result import Result
from .settings import Bench


def iterations(bench: Bench) -> Iterator[Result]:
    """Measure the mean number of iterations in which the unroll finds the evictions of a block; 1 is the minimum."""
    cell, ids = bench.cell(), bench.text(bench.tokens)
    for spec in (bench.tova, f"h2o:{bench.size}"):
        with counted() as counts:
            cell(ids, cell.initial_state(1, spec), last_only=True)
        yield Result(f"iterations per block, {ids.shape[1]:,} tokens, {spec}", "", sum(counts) / max(len(counts), 1))


@contextmanager
def counted() -> Iterator[list[int]]:
    """Record the number of iterations of each block with evictions, for unrolls inside the ``with`` statement."""
    decide, counts = unroll.decide, list[int]()

    def counting(block: Block, want_scores: bool = False) -> tuple[Block, list[Look]]:
        settled, looks = decide(block, want_scores)
        if not settled.frame.still:
            counts.append(len(looks))
        return settled, looks

    unroll.decide = counting
    try:
        yield counts
    finally:
        unroll.decide = decide
