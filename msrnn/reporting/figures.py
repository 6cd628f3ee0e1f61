"""Figures, drawn with matplotlib (extra ``plot``), which is imported only when a figure is drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import Error, missing_package
from ..storage.atomic import atomic_file
from ..storage.output_paths import check_output_file, check_output_folder
from .line_styles import line_styles
from .report import Curves, HeatMaps

MANY = 12
"""Number of panels from which heat maps are drawn smaller."""


def check_figure_file(path: str | Path) -> None:
    """Refuse, before any work, a figure that cannot be written.

    Raises:
        Error: matplotlib is missing, the file ending is unknown, or the file cannot be written.
    """
    endings = _file_endings()
    if Path(path).suffix.lower().removeprefix(".") not in endings:
        raise Error(f"cannot draw {path}; expected a name that ends in one of {', '.join('.' + name for name in endings)}")
    check_output_file(path)


def check_figure_folder(folder: str | Path) -> None:
    """Refuse, before any work, a folder that figures cannot be written into. The folder is not created.

    Raises:
        Error: matplotlib is missing, or the folder cannot be created or written into.
    """
    _file_endings()
    check_output_folder(folder)


def _file_endings() -> Mapping[str, str]:
    """Return the descriptions of the file formats of matplotlib by their endings."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise missing_package("matplotlib", "plot") from None
    return FigureCanvasBase.get_supported_filetypes()


def new_figure(path: str | Path, width: float, height: float) -> Any:
    """Return an empty ``matplotlib.figure.Figure`` of ``width`` x ``height`` inches that will be saved to ``path``.

    Raises:
        Error: as :func:`check_figure_file`.
    """
    check_figure_file(path)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path, title: str = "") -> None:
    """Write the figure to ``path``; the file ending selects the format (png, svg, pdf)."""
    figure.suptitle(title)
    with atomic_file(path) as staged:
        figure.savefig(staged, dpi=130)


def draw(plot: Curves | HeatMaps, path: str | Path) -> None:
    """Draw one figure of a report.

    Raises:
        Error: as :func:`check_figure_file`.
    """
    if isinstance(plot, Curves):
        _draw_curves(plot, path)
    else:
        _draw_heat_maps(plot, path)


def draw_retention(panels: Mapping[str, Tensor], path: str | Path, *, prompt: int = 0, title: str = "") -> None:
    """Draw one panel per operator: steps from top to bottom, positions from left to right, dark if the position is retained.

    Args:
        panels: by operator, ``(T, T)`` values from 0 to 1; row t contains the retained fraction of each position after step t.
        path: output file; its ending selects the format (png, svg, pdf).
        prompt: number of prompt tokens; a line marks the end of the prompt.
        title: title of the figure.

    Raises:
        Error: as :func:`check_figure_file`.
    """
    label = "retained fraction of layers and heads"
    draw(HeatMaps(title, "position", "step", panels, label, prompt=prompt), path)


def draw_attention(panels: Mapping[str, Tensor], path: str | Path, *, title: str = "") -> None:
    """Draw one panel per head, layer or mask: queries from top to bottom, rows from left to right, dark if the weight is high.

    Args:
        panels: by name, ``(T, S)`` attention weights or a boolean mask.
        path: output file; its ending selects the format (png, svg, pdf).
        title: title of the figure.

    Raises:
        Error: as :func:`check_figure_file`.
    """
    draw(HeatMaps(title, "row", "query", panels, "weight"), path)


def _draw_curves(plot: Curves, path: str | Path) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = new_figure(path, 7.5, 5)
    axes = figure.add_subplot()
    for i, (name, style) in enumerate(line_styles(plot.lines).items()):
        xs, ys, errors = zip(*plot.lines[name], strict=True)
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
    save_figure(figure, path, plot.title)


def _draw_heat_maps(plot: HeatMaps, path: str | Path) -> None:
    count = len(plot.panels)
    few = count < MANY
    columns = min(count, 4 if few else 6)
    rows, side = -(-count // columns), 3.3 if few else 2.0
    figure, image = new_figure(path, side * columns + 0.8, side * rows + 0.4), None
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
        axes.set_title(name, fontfamily="monospace", fontsize=10 if few else 8)
        axes.tick_params(labelsize=8 if few else 6)
        if i >= count - columns:
            axes.set_xlabel(plot.x_label)
        if i % columns == 0:
            axes.set_ylabel(plot.y_label)
        if 0 < plot.prompt < len(values):
            axes.axhline(plot.prompt - 0.5, color="tab:red", linewidth=1)
            axes.text(values.shape[1] - 1, plot.prompt - 2, "prompt", color="tab:red", fontsize=8, ha="right", va="bottom")
        if plot.ticks:
            axes.set_xticks(range(len(plot.ticks[0])), plot.ticks[0])
            axes.set_yticks(range(len(plot.ticks[1])), plot.ticks[1])
            for y, line in enumerate(values.tolist()):
                for x, value in enumerate(line):
                    colour = "white" if value > 0.6 * plot.maximum else "black"
                    axes.text(x, y, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour)
    if image is not None:
        figure.colorbar(image, ax=figure.axes, label=plot.colour_label, shrink=0.8)
    save_figure(figure, path, plot.title)
