"""Iterations per block of the unroll."""

from support.benchmarks import LAYERS

from msrnn.bench import eviction_iterations


def test_iterations_are_counted_per_block(bench):
    cell = bench.cell()
    counts = eviction_iterations.block_iterations(cell, bench.text(150), "tova:8")
    assert len(counts) == LAYERS * 3  # 150 tokens in blocks of 64, in each layer
    assert min(counts) >= 1
    assert max(counts) <= 64
    assert eviction_iterations.block_iterations(cell, bench.text(5), "tova:8") == []  # no block with evictions
    counts = eviction_iterations.block_iterations(cell, bench.text(150), "tova:100")
    assert len(counts) == LAYERS * 2  # the first block of 64 tokens evicts nothing


def test_the_mean_over_the_blocks_is_reported(monkeypatch, bench):
    monkeypatch.setattr(eviction_iterations, "block_iterations", lambda cell, ids, spec: [1, 2, 6])
    assert [row.value for row in eviction_iterations.iterations(bench)] == [3, 3]
