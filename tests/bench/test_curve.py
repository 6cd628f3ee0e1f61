"""Points of the plot: positions and bytes."""

from support.benchmarks import DIM, HEADS, LAYERS, SIZE, TOKENS

from msrnn.bench.curve import curve


def test_points_have_the_positions_and_bytes_of_each_implementation(bench):
    points = list(curve(bench))
    positions = [TOKENS * 2**n // 8 for n in range(6)]
    for name in ("tova:8", "full", "transformers"):
        own = [point for point in points if point.name == name]
        assert [point.position for point in own] == positions
        assert all(point.ms > 0 for point in own)
    memory = {(point.name, point.position): point.nbytes for point in points}
    assert len({memory["tova:8", p] for p in positions if p > SIZE}) == 1
    assert [memory["transformers", p] for p in positions] == [p * 2 * LAYERS * HEADS * DIM * 4 for p in positions]
    assert [memory["full", p] for p in positions] == [LAYERS * (p * HEADS * (2 * DIM * 4 + 8) + 8) for p in positions]
