"""Points of the plot: positions and bytes, and the labels of the panels."""

from support.benchmarks import DIM, HEADS, LAYERS, SIZE, TOKENS
from support.figures import record_figures

from msrnn.bench.curve import Point, curve, draw_bench
from msrnn.bench.settings import STEPS, Bench


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


def test_time_is_the_median_in_milliseconds_per_step(monkeypatch, bench):
    def time(self, contenders, rounds, **_):
        return {name: [STEPS * seconds * (i + 1) for seconds in (0.3, 0.1, 0.2)] for i, name in enumerate(contenders)}

    monkeypatch.setattr(Bench, "time", time)
    points = list(curve(bench))
    assert {(point.name, round(point.ms, 6)) for point in points} == {("tova:8", 200), ("full", 400), ("transformers", 600)}


def test_panels_show_time_and_bytes_against_position(monkeypatch, tmp_path):
    figures = record_figures(monkeypatch)
    draw_bench([Point("full", 10, 3.0, 2_000_000), Point("full", 20, 4.0, 5_000_000)], tmp_path / "b.png")
    time, memory = figures[0].axes
    for axes, title, values in ((time, "ms per token", [3, 4]), (memory, "MB of state", [2, 5])):
        assert (axes.get_title(), axes.get_xlabel()) == (title, "position")
        assert axes.get_xlim()[0] == axes.get_ylim()[0] == 0
        assert [line.get_label() for line in axes.lines] == ["full"]
        assert [[*map(list, line.get_data())] for line in axes.lines] == [[[10, 20], values]]
