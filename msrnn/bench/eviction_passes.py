"""How many guesses the fold takes to decide a block (``msrnn/decide.py``)."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..recurrence import unroll
from ..recurrence.eviction import Block, Look
from .result import Row
from .settings import Bench


def guesses(bench: Bench) -> Iterator[Row]:
    """Looks at a block until all its evictions are right; 1 is a guess that was right at once."""
    cell, ids = bench.cell(), bench.text(bench.tokens)
    for form in (bench.tova, f"h2o:{bench.size}"):
        with counted() as counts:
            cell(ids, cell.initial_state(1, form), last_only=True)
        yield Row(f"guesses a block, {ids.shape[1]:,} tokens, {form}", "", sum(counts) / max(len(counts), 1))


@contextmanager
def counted() -> Iterator[list[int]]:
    """Folds inside the block add how many looks each block of tokens took in which a row left."""
    decide, counts = unroll.decide, list[int]()

    def counting(block: Block) -> tuple[Block, list[Look]]:
        settled, looks = decide(block)
        if not settled.frame.still:
            counts.append(len(looks))
        return settled, looks

    unroll.decide = counting
    try:
        yield counts
    finally:
        unroll.decide = decide
