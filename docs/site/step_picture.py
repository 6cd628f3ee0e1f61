"""The picture of one step of one layer: append, attend, reduce."""

from pathlib import Path
from typing import Any

from msrnn.reporting.figures import new_figure, save_figure
from msrnn.reporting.line_styles import COLOURS

BLUE, ORANGE, GREY = COLOURS["h2o"], COLOURS["tova"], COLOURS["truncated"]
PALE = "#D6E6F2"
HEIGHT, PITCH = 0.42, 0.48
"""Height of a row, and the distance of two rows."""
WEIGHTS = (0.30, 0.14, 0.03, 0.21, 0.08, 0.24)
"""Attention weights of the drawn step. The third row has the lowest one."""


def draw_step(path: Path) -> None:
    """Draw a layer of LLaMA under an operator of size 5: five rows before the step, six during it, five after it."""
    figure = new_figure(path, 9.6, 5.2)
    axes = figure.add_subplot()
    axes.set(xlim=(-0.2, 13.6), ylim=(0.4, 7.4))
    axes.axis("off")
    y, lowest = 3.3, WEIGHTS.index(min(WEIGHTS))
    before, after = 0.5, 12.2
    for x, name, note in ((before, "$H_{t-1}^l$", "S = 5 rows"), (after, "$H_t^l$", "size = 5 rows")):
        axes.text(x + 0.45, y + 6 * PITCH + 0.45, name, ha="center", va="center", fontsize=14)
        axes.text(x + 0.45, y - 0.4, note, ha="center", va="center", fontsize=9)
    for i in range(5):
        _row(axes, before, y + PITCH * (5 - i), str(i))
    draw_box(axes, 2.3, 4.2, "append\nthe row (k, v)")
    axes.text(5.95, y + 6 * PITCH + 0.45, "attend to S + 1 = 6 rows", ha="center", va="center", fontsize=10)
    for i, weight in enumerate(WEIGHTS):
        height = y + PITCH * (5 - i)
        _row(axes, 5.0, height, "new" if i == 5 else str(i), dotted=i == 5)
        axes.barh(height + HEIGHT / 2, 3 * weight, 0.26, left=6.05, color=ORANGE if i == lowest else BLUE)
    axes.text(6.05, y - 0.4, "weights of q", va="center", fontsize=9)
    axes.text(6.25, y + PITCH * (5 - lowest) + HEIGHT / 2, "lowest", va="center", fontsize=8, color=ORANGE)
    draw_box(axes, 8.4, 4.2, "reduce\nevict one row", ORANGE)
    for i in (0, 1, 3, 4, 5):
        _row(axes, after, y + PITCH * (5 - i), "new" if i == 5 else str(i))
    height = y + PITCH * (5 - lowest)
    axes.plot((after, after + 0.9), (height, height + HEIGHT), color=ORANGE, linewidth=1)
    _row(axes, after, height, "", dotted=True, colour=ORANGE)
    axes.text(after - 0.12, height + HEIGHT / 2, "evicted", ha="right", va="center", fontsize=8, color=ORANGE)
    draw_box(axes, 2.3, 0.8, "norm; q, k, v\nrotate q and k")
    draw_box(axes, 5.0, 0.8, "output projection\n+ residual")
    draw_box(axes, 8.4, 0.8, "norm; MLP\n+ residual")
    axes.text(0.95, 1.3, "$x_t^l$", fontsize=14, ha="center", va="center")
    axes.text(after + 0.45, 1.3, "$x_t^{l+1}$", fontsize=14, ha="center", va="center")
    arrows = [((1.5, 4.7), (2.3, 4.7)), ((4.3, 4.7), (4.9, 4.7)), ((7.6, 4.7), (8.4, 4.7)), ((10.4, 4.7), (11.1, 4.7))]
    arrows += [((1.4, 1.3), (2.3, 1.3)), ((3.3, 1.8), (3.3, 4.2)), ((5.45, 3.2), (5.45, 1.8)), ((7.0, 1.3), (8.4, 1.3))]
    for start, end in [*arrows, ((10.4, 1.3), (12.0, 1.3))]:
        draw_arrow(axes, start, end)
    axes.text(3.4, 2.9, "q, k, v", fontsize=9, va="center")
    axes.text(5.55, 2.3, "weighted sum\nof the values", fontsize=9, va="center")
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


def _row(axes: Any, x: float, y: float, text: str, *, dotted: bool = False, colour: str = GREY) -> None:
    """Draw a row of H with the position of its token."""
    from matplotlib.patches import Rectangle

    look = {
        "facecolor": "white" if dotted else PALE,
        "edgecolor": colour,
        "linestyle": ":" if dotted else "-",
        "linewidth": 1.4,
    }
    axes.add_patch(Rectangle((x, y), 0.9, HEIGHT, **look))
    axes.text(x + 0.45, y + HEIGHT / 2, text, ha="center", va="center", fontsize=8)
