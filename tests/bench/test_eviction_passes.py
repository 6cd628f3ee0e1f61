"""Iterations per block of the unroll."""

from support.benchmarks import LAYERS

import msrnn
from msrnn.bench import eviction_passes


def test_iterations_are_counted_per_block(bench):
    before, cell = msrnn.recurrence.unroll.decide, bench.cell()
    with eviction_passes.counted() as counts:
        cell(bench.text(150), cell.initial_state(1, "tova:8"))
    assert len(counts) == LAYERS * 3  # 150 tokens in blocks of 64, in each layer
    assert min(counts) >= 1
    assert max(counts) <= 64
    with eviction_passes.counted() as counts:
        cell(bench.text(5), cell.initial_state(1, "tova:8"))
    assert counts == []  # no block with evictions
    assert msrnn.recurrence.unroll.decide is before
