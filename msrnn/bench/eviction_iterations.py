"""Number of iterations in which the unroll computes the evictions of a block (``msrnn/recurrence/block_evictions.py``)."""

from collections.abc import Iterator

from torch import Tensor

from ..cell.cell import Cell
from ..recurrence.records import LayerRecorder
from .result import Result
from .settings import Bench


def iterations(bench: Bench) -> Iterator[Result]:
    """Measure the mean number of iterations in which the unroll computes the evictions of a block; 1 is the minimum."""
    cell, ids = bench.cell(), bench.text(bench.tokens)
    for spec in (bench.tova, f"h2o:{bench.size}"):
        counts = block_iterations(cell, ids, spec)
        yield Result(f"iterations per block, {ids.shape[1]:,} tokens, {spec}", "", sum(counts) / max(len(counts), 1))


def block_iterations(cell: Cell, ids: Tensor, spec: str) -> list[int]:
    """Return the number of iterations of each block with evictions, in all layers."""
    recorders = [LayerRecorder() for _ in cell.layers]
    cell.unroll(ids, cell.initial_state(len(ids), spec), None, recorders)
    return [block.iterations for recorder in recorders for block in recorder.blocks if block.iterations]
