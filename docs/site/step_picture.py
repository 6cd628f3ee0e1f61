"""The picture of one step of one layer: append, attend, reduce."""

from pathlib import Path
from typing import Any

from msrnn.reporting.figures import new_figure, save_figure
from msrnn.reporting.line_styles import COLOURS

BLUE, ORANGE, GREY = COLOURS["h2o"], COLOURS["tova"], COLOURS["truncated"]


def draw_step(path: Path) -> None:
    """Draw a layer of LLaMA as a recurrent cell."""
    figure = new_figure(path, 8.4, 4.2)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 12), ylim=(0.6, 6.6))
    axes.axis("off")
    _table(axes, 0.2, 3.2, 5, "$H_{t-1}^l$", "S rows: keys, values, positions")
    draw_box(axes, 3.0, 0.9, "norm; q, k, v\nrotate q and k")
    draw_box(axes, 3.0, 3.9, "append\nthe row (k, v)")
    draw_box(axes, 5.6, 3.9, "attend\nq to S + 1 rows")
    draw_box(axes, 8.2, 3.9, "reduce\nevict one row", ORANGE)
    draw_box(axes, 5.6, 0.9, "output projection\n+ residual")
    draw_box(axes, 8.2, 0.9, "norm; MLP\n+ residual")
    _table(axes, 10.9, 3.2, 5, "$H_t^l$", "at most size rows", evicted=2)
    arrows = [((1.1, 4.4), (3.0, 4.4)), ((5.0, 4.4), (5.6, 4.4)), ((7.6, 4.4), (8.2, 4.4)), ((10.2, 4.4), (10.8, 4.4))]
    arrows += [((1.6, 1.4), (3.0, 1.4)), ((4.0, 1.9), (4.0, 3.9)), ((6.6, 3.9), (6.6, 1.9)), ((7.6, 1.4), (8.2, 1.4))]
    for start, end in [*arrows, ((10.2, 1.4), (11.0, 1.4))]:
        draw_arrow(axes, start, end)
    axes.text(0.9, 1.4, "$x_t^l$", fontsize=14, ha="center", va="center")
    axes.text(11.4, 1.4, "$x_t^{l+1}$", fontsize=14, ha="center", va="center")
    axes.text(6.75, 2.9, "weighted sum\nof the values", fontsize=8, va="center")
    axes.text(4.15, 2.9, "q, k, v", fontsize=8, va="center")
    save_figure(figure, path, "one step of one layer: $x_t^l, H_{t-1}^l \\rightarrow x_t^{l+1}, H_t^l$")


def draw_box(
    axes: Any, x: float, y: float, text: str, colour: str = BLUE, width: float = 2, height: float = 1, size: float = 9
) -> None:
    """Draw a box with a text in its middle; x and y are its left and lower side."""
    from matplotlib.patches import FancyBboxPatch

    look = {"facecolor": "white", "edgecolor": colour, "linewidth": 1.8}
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.15", **look))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size)


def draw_arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str = "black") -> None:
    """Draw a straight arrow."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0})


def _table(axes: Any, x: float, y: float, rows: int, name: str, note: str, evicted: int | None = None) -> None:
    from matplotlib.patches import Rectangle

    for i in range(rows):
        gone = i == evicted
        axes.add_patch(
            Rectangle(
                (x, y + 0.48 * i),
                0.8,
                0.42,
                facecolor="white" if gone else "#D6E6F2",
                edgecolor=ORANGE if gone else GREY,
                linestyle=":" if gone else "-",
            )
        )
    axes.text(x + 0.4, y + 0.48 * rows + 0.35, name, ha="center", va="center", fontsize=14)
    axes.text(x + 0.4, y - 0.35, note, ha="left" if x < 1 else "right", va="center", fontsize=8)
