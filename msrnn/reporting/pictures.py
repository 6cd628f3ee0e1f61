"""Reports as pictures, in the manner of ``plot.py``: only the command line imports this file."""

from pathlib import Path

from ..storage.files import atomic_file
from .figures import check_picture
from .report import Curves, Maps


def draw(picture: Curves | Maps, path: Path) -> None:
    """One picture, into the file ``path``.

    Raises:
        Error: as :func:`~msrnn.reporting.figures.check_picture`.
    """
    check_picture(path)
    figure = _curves(picture) if isinstance(picture, Curves) else _maps(picture)
    with atomic_file(path) as beside:
        figure.savefig(beside, dpi=130)


def _curves(picture: Curves):
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(picture.lines.items()):
        sizes, y, spread = zip(*points, strict=True)
        aside = 0.02 * (i - len(picture.lines) / 2)  # so that no bar covers another
        x = [size * 2**aside if picture.log_x else size + aside for size in sizes]
        axes.errorbar(
            x, y, yerr=[0 if s != s else s for s in spread], label=name, marker="osD^vPX*"[i % 8], markersize=5, capsize=3
        )
    for i, (name, level) in enumerate(picture.levels.items()):
        axes.axhline(level, color="black", linestyle=("--", ":", "-.")[i % 3], linewidth=1, label=name)
    for name, stop in picture.stops.items():
        axes.axvline(stop, color="black", linestyle=":", linewidth=1, label=name)
    ticks = sorted({x for points in picture.lines.values() for x, _, _ in points})
    if picture.log_x:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    if picture.log_y:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel(picture.across)
    axes.set_ylabel(picture.up)
    axes.grid(alpha=0.3)
    axes.legend(prop={"family": "monospace", "size": 8})
    figure.suptitle(picture.title)
    return figure


def _maps(picture: Maps):
    from matplotlib.figure import Figure

    many = len(picture.panels)
    columns = min(many, 4 if many < 12 else 6)
    rows = -(-many // columns)
    side = 3.3 if many < 12 else 2.0
    figure = Figure(figsize=(side * columns + 0.8, side * rows + 0.5), layout="constrained")
    image = None
    for i, (name, numbers) in enumerate(picture.panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        extent = None if picture.span is None else (0, picture.span, picture.span, 0)
        image = axes.imshow(numbers.cpu().numpy(), cmap="Blues", vmin=0, vmax=picture.high, extent=extent, aspect="auto")
        axes.set_title(name, fontfamily="monospace", fontsize=10 if many < 12 else 8)
        axes.tick_params(labelsize=8 if many < 12 else 6)
        if picture.ticks:
            axes.set_xticks(range(len(picture.ticks[0])), picture.ticks[0])
            axes.set_yticks(range(len(picture.ticks[1])), picture.ticks[1])
            for y, line in enumerate(numbers.tolist()):
                for x, value in enumerate(line):
                    colour = "white" if value > 0.6 * picture.high else "black"
                    axes.text(x, y, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour)
        if i >= many - columns:
            axes.set_xlabel(picture.across)
        if i % columns == 0:
            axes.set_ylabel(picture.down)
    if image is not None:
        figure.colorbar(image, ax=figure.axes, label=picture.label, shrink=0.8)
    figure.suptitle(picture.title)
    return figure
