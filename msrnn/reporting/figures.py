"""Figures, drawn with matplotlib (extra ``plot``), which is imported only when a figure is drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import Error, missing_package
from ..storage.atomic import atomic_file
from ..storage.output_paths import check_output_file, check_output_folder
from .plots import draw_curves, draw_dots, draw_heat_maps, heat_map_grid
from .report import Curves, Dots, HeatMaps, SideBySide


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


def draw(plot: Curves | Dots | HeatMaps | SideBySide, path: str | Path) -> None:
    """Draw one figure of a report.

    Raises:
        Error: as :func:`check_figure_file`.
    """
    if isinstance(plot, Curves):
        figure = new_figure(path, 7.5, 5)
        draw_curves(plot, figure.add_subplot())
    elif isinstance(plot, Dots):
        figure = new_figure(path, 7.5, 1.4 + 0.2 * sum(map(len, plot.series.values())))
        draw_dots(plot, figure.add_subplot())
    elif isinstance(plot, HeatMaps):
        rows, columns, side = heat_map_grid(len(plot.panels))
        figure = new_figure(path, side * columns + 0.8, side * rows + 0.4)
        draw_heat_maps(plot, figure, rows, columns)
    else:
        figure = new_figure(path, 3 * len(plot.maps.panels) + 5, 3.6)
        maps, curves = figure.subfigures(1, 2, width_ratios=(3 * len(plot.maps.panels) + 1, 4))
        draw_heat_maps(plot.maps, maps, 1, len(plot.maps.panels))
        draw_curves(plot.curves, curves.add_subplot())
        maps.suptitle(plot.maps.title, fontsize=10)
        curves.suptitle(plot.curves.title, fontsize=10)
    save_figure(figure, path, plot.title)


def draw_retention(
    panels: Mapping[str, Tensor],
    path: str | Path,
    *,
    prompt: int = 0,
    title: str = "",
    label: str = "share of layers and heads that hold the position",
) -> None:
    """Draw one panel per operator: steps from top to bottom, positions from left to right, dark if the position is retained.

    Args:
        panels: by operator, ``(T, T)`` values from 0 to 1; row t contains the retained share of each position after step t. The
            first position is drawn once more as a strip to the left.
        path: output file; its ending selects the format (png, svg, pdf).
        prompt: number of prompt tokens; a line marks the end of the prompt.
        title: title of the figure.
        label: label of the colour bar (:func:`~msrnn.diagnostics.retention.share_label`).

    Raises:
        Error: as :func:`check_figure_file`.
    """
    with_strip = {name: torch.cat((values[:, :1], values), dim=1) for name, values in panels.items()}
    draw(HeatMaps(title, "position", "step", with_strip, label, prompt=prompt, first_token=True), path)


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
