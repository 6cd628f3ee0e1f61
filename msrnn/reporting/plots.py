"""Curves and heat maps on the axes of a matplotlib figure."""

from math import ceil, floor, log2, log10
from typing import Any

from torch import Tensor

from .line_styles import ORANGE, line_styles
from .report import Curves, Dots, HeatMaps

MANY = 12
"""Number of panels from which heat maps are drawn smaller."""
OUTSIDE = "0.93"
"""Grey of the part of a panel that has no values, because its text ended before those of other panels."""
STRIP = 0.04
"""Width of the strip of the first token as a share of the width of a map; the gap next to it is half as wide."""
LOG_DIGITS = ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), range(1, 10))
"""Digits that the labels of a logarithmic axis begin with, from few labels to many."""


def draw_curves(plot: Curves, axes: Any) -> None:
    """Draw lines with error bars and reference lines, in the style and order of ``line_styles``."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for i, (name, style) in enumerate(line_styles(plot.lines).items()):
        xs, ys, errors = zip(*sorted(plot.lines[name]), strict=True)
        look = {"color": style.colour, "linestyle": style.dashes, "label": name}
        if plot.steps:
            marked = [j for j, x in enumerate(xs) if log2(x).is_integer()] if plot.log_x else None
            axes.plot(xs, ys, drawstyle="steps-post", marker=style.marker, markevery=marked, markersize=5, **look)
            continue
        offset = 0.02 * (i - (len(plot.lines) - 1) / 2)  # small shift, so that error bars do not overlap
        shifted = [x * 2**offset if plot.log_x else x + offset for x in xs]
        bars = [0 if error != error else error for error in errors]  # no bar for NaN
        axes.errorbar(shifted, ys, yerr=bars, marker=style.marker, markersize=5, capsize=3, **look)
    for i, (name, level) in enumerate(plot.horizontal_lines.items()):
        axes.axhline(level, color="black", linestyle=("--", ":", "-.")[i % 3], linewidth=1, label=name)
    for name, x in plot.vertical_lines.items():
        axes.axvline(x, color="black", linestyle=":", linewidth=1, label=name)
    if plot.log_x:
        ticks = sorted({x for points in plot.lines.values() for x, _, _ in points})
        if plot.steps:
            ticks = [2.0**i for i in range(ceil(log2(ticks[0])), floor(log2(ticks[-1])) + 1)]
        ticks = [x for x, before in zip(ticks, [0.0, *ticks], strict=False) if x > 1.05 * before]  # labels must not overlap
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{x:g}" if x == int(x) else f"{x:.3g}" for x in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        if len(ticks) == 1 and not (plot.steps or plot.vertical_lines):  # the shifts alone would look like different sizes
            axes.set_xlim(ticks[0] / 2, 2 * ticks[0])
    if plot.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(log_ticks(*axes.get_ylim())))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(alpha=0.3)
    axes.legend(prop={"family": "monospace", "size": 8})


def draw_dots(plot: Dots, axes: Any) -> None:
    """Draw one line per name, and on it one dot with its error bar per series, in the style and order of ``line_styles``."""
    lines = list(dict.fromkeys(line for values in plot.series.values() for line in values))
    for i, (name, style) in enumerate(line_styles(plot.series).items()):
        found = [(value, lines.index(line), error) for line, (value, error) in plot.series[name].items()]
        xs, ys, errors = zip(*found, strict=True)
        shifted = [y + 0.12 * (i - (len(plot.series) - 1) / 2) for y in ys]
        bars = [0 if error != error else error for error in errors]
        axes.errorbar(xs, shifted, xerr=bars, fmt=style.marker, color=style.colour, label=name, markersize=5, capsize=2)
    axes.set_yticks(range(len(lines)), lines, fontsize=9)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel(plot.x_label)
    axes.grid(alpha=0.3, axis="x")
    for y in range(1, len(lines)):
        axes.axhline(y - 0.5, color="0.85", linewidth=0.8)
    axes.legend(prop={"family": "monospace", "size": 8}, loc="upper left", bbox_to_anchor=(1.01, 1))


def log_ticks(low: float, high: float) -> list[float]:
    """Return at least three short numbers from ``low`` to ``high`` for a logarithmic axis, fewer only if there are none."""
    ticks: list[float] = []
    for digits in LOG_DIGITS:
        decades = range(floor(log10(low)), ceil(log10(high)) + 1)
        ticks = [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
        if len(ticks) >= 3:
            return ticks
    from matplotlib.ticker import MaxNLocator

    return [float(y) for y in MaxNLocator(5).tick_values(low, high) if low <= y <= high]


def heat_map_grid(count: int) -> tuple[int, int, float]:
    """Return the rows and columns of ``count`` panels, and the side of a panel in inches."""
    columns = min(count, 4 if count < MANY else 6)
    return -(-count // columns), columns, 3.3 if count < MANY else 2.0


def draw_heat_maps(plot: HeatMaps, figure: Any, rows: int, columns: int) -> None:
    """Draw one panel per map, operators in the order of legends, with common axes and a colour bar.

    ``figure`` may be a part of a figure.
    """
    count, few = len(plot.panels), len(plot.panels) < MANY
    panels = {name: plot.panels[name].detach().float().cpu() for name in line_styles(plot.panels)}
    strips = {name: values[:, :1] for name, values in panels.items()} if plot.first_token else {}
    if plot.first_token:
        panels = {name: values[:, 1:] for name, values in panels.items()}
    height, width = (max(values.shape[i] for values in panels.values()) for i in (0, 1))
    image = None
    for i, (name, values) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        look = {"cmap": "Blues", "vmin": 0, "vmax": plot.maximum, "interpolation": "nearest"}
        extent = None if plot.extent is None else (0, plot.extent, plot.extent, 0)
        image = axes.imshow(values.numpy(), extent=extent, aspect="auto" if plot.ticks else "equal", **look)
        if plot.extent is None:
            axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), facecolor=OUTSIDE)
        if strips:
            _draw_strip(axes, strips[name], look)
        axes.set_title(name, fontfamily="monospace", fontsize=10 if few else 8)
        axes.tick_params(labelsize=8 if few else 6)
        if i >= count - columns:
            axes.set_xlabel(plot.x_label)
        if i % columns == 0:
            axes.set_ylabel(plot.y_label)
        if 0 < plot.prompt < (len(values) if plot.extent is None else plot.extent):
            y = plot.prompt - (0.5 if plot.extent is None else 0)
            axes.axhline(y, color=ORANGE, linewidth=1)
            right = (width - 1) if plot.extent is None else plot.extent
            axes.annotate("prompt", (right, y), (-2, 2), textcoords="offset points", color=ORANGE, fontsize=8, ha="right")
        if plot.ticks:
            axes.set_xticks(range(len(plot.ticks[0])), plot.ticks[0])
            axes.set_yticks(range(len(plot.ticks[1])), plot.ticks[1])
            for y, line in enumerate(values.tolist()):
                for x, value in enumerate(line):
                    colour = "white" if value > 0.6 * plot.maximum else "black"
                    axes.text(x, y, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour)
    if image is not None:
        figure.colorbar(image, ax=figure.axes, label=plot.colour_label, shrink=0.8)


def _draw_strip(axes: Any, values: Tensor, look: dict[str, Any]) -> None:
    """Draw the column ``values (height, 1)`` left of a map, wide enough to be seen, with the tick "first"."""
    left, right = axes.get_xlim()
    bottom, top = axes.images[0].get_extent()[2:]
    width = STRIP * (right - left)
    axes.axvspan(left - 0.5 * width, left, facecolor="white", edgecolor="black", linewidth=0.8)
    axes.imshow(values.numpy(), extent=(left - 1.5 * width, left - 0.5 * width, bottom, top), aspect=axes.get_aspect(), **look)
    axes.set_xlim(left - 1.5 * width, right)
    ticks = [x for x in axes.get_xticks() if left + 2 * width < x <= right]
    axes.set_xticks([left - width, *ticks], ["first", *(f"{x:g}" for x in ticks)])
