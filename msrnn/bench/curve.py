"""Time and bytes against position, for the plot: a bounded H, an unbounded H, and transformers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..reporting.figures import new_figure, save_figure
from ..reporting.line_styles import line_styles
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


def draw_bench(points: Sequence[Point], path: str | Path, *, title: str = "") -> None:
    """Draw two panels against the position: milliseconds per step and megabytes of KV cache, one line per implementation.

    Args:
        points: at least one; the points of each implementation in order of position.
        path: output file; its ending selects the format (png, svg, pdf).
        title: title of the figure.

    Raises:
        Error: as :func:`~msrnn.reporting.figures.check_figure_file`.
    """
    figure = new_figure(path, 10, 4)
    time, memory = figure.subplots(1, 2)
    for name, look in line_styles(dict.fromkeys(point.name for point in points)).items():
        line = [point for point in points if point.name == name]
        style = {"label": name, "color": look.colour, "marker": look.marker, "linestyle": look.dashes, "markersize": 5}
        time.plot([point.position for point in line], [point.ms for point in line], **style)
        memory.plot([point.position for point in line], [point.nbytes / 1e6 for point in line], **style)
    for axes, quantity in ((time, "ms per token"), (memory, "MB of state")):
        axes.set_title(quantity)
        axes.set_xlabel("position")
        axes.set_xlim(0)
        axes.set_ylim(0, 1.1 * max(max(line.get_ydata()) for line in axes.lines))
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path, title)
