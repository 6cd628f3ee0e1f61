"""Curves and heat maps on the axes of a matplotlib figure."""

from typing import Any

from .line_styles import line_styles
from .report import Curves, HeatMaps

MANY = 12
"""Number of panels from which heat maps are drawn smaller."""
OUTSIDE = "0.93"
"""Grey of the part of a panel that has no values, because its text ended before those of other panels."""


def draw_curves(plot: Curves, axes: Any) -> None:
    """Draw lines with error bars and reference lines, in the style and order of ``line_styles``."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    for i, (name, style) in enumerate(line_styles(plot.lines).items()):
        xs, ys, errors = zip(*sorted(plot.lines[name]), strict=True)
        offset = 0.02 * (i - len(plot.lines) / 2)  # small shift, so that error bars do not overlap
        shifted = [x * 2**offset if plot.log_x else x + offset for x in xs]
        bars = [0 if error != error else error for error in errors]  # no bar for NaN
        look = {"color": style.colour, "marker": style.marker, "linestyle": style.dashes}
        axes.errorbar(shifted, ys, yerr=bars, label=name, markersize=5, capsize=3, **look)
    for i, (name, level) in enumerate(plot.horizontal_lines.items()):
        axes.axhline(level, color="black", linestyle=("--", ":", "-.")[i % 3], linewidth=1, label=name)
    for name, x in plot.vertical_lines.items():
        axes.axvline(x, color="black", linestyle=":", linewidth=1, label=name)
    ticks = sorted({x for points in plot.lines.values() for x, _, _ in points})
    if plot.log_x:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    if plot.log_y:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(alpha=0.3)
    axes.legend(prop={"family": "monospace", "size": 8})


def heat_map_grid(count: int) -> tuple[int, int, float]:
    """Return the rows and columns of ``count`` panels, and the side of a panel in inches."""
    columns = min(count, 4 if count < MANY else 6)
    return -(-count // columns), columns, 3.3 if count < MANY else 2.0


def draw_heat_maps(plot: HeatMaps, figure: Any, rows: int, columns: int) -> None:
    """Draw one panel per map, with common axes, and a colour bar. ``figure`` may be a part of a figure."""
    count, few = len(plot.panels), len(plot.panels) < MANY
    height, width = (max(values.shape[i] for values in plot.panels.values()) for i in (0, 1))
    image = None
    for i, (name, values) in enumerate(plot.panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        image = axes.imshow(
            values.detach().float().cpu().numpy(),
            cmap="Blues",
            vmin=0,
            vmax=plot.maximum,
            extent=None if plot.extent is None else (0, plot.extent, plot.extent, 0),
            interpolation="nearest",
            aspect="auto" if plot.ticks else "equal",
        )
        if plot.extent is None:
            axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), facecolor=OUTSIDE)
        axes.set_title(name, fontfamily="monospace", fontsize=10 if few else 8)
        axes.tick_params(labelsize=8 if few else 6)
        if i >= count - columns:
            axes.set_xlabel(plot.x_label)
        if i % columns == 0:
            axes.set_ylabel(plot.y_label)
        if 0 < plot.prompt < (len(values) if plot.extent is None else plot.extent):
            y = plot.prompt - (0.5 if plot.extent is None else 0)
            axes.axhline(y, color="tab:red", linewidth=1)
            right = (width - 1) if plot.extent is None else plot.extent
            axes.annotate("prompt", (right, y), (-2, 2), textcoords="offset points", color="tab:red", fontsize=8, ha="right")
        if plot.ticks:
            axes.set_xticks(range(len(plot.ticks[0])), plot.ticks[0])
            axes.set_yticks(range(len(plot.ticks[1])), plot.ticks[1])
            for y, line in enumerate(values.tolist()):
                for x, value in enumerate(line):
                    colour = "white" if value > 0.6 * plot.maximum else "black"
                    axes.text(x, y, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour)
    if image is not None:
        figure.colorbar(image, ax=figure.axes, label=plot.colour_label, shrink=0.8)
