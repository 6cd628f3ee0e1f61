"""The picture of an encoder-decoder: its layers, and where the rows of H are."""

from pathlib import Path
from typing import Any

from step_picture import BLUE, GREY, ORANGE, draw_arrow, draw_box

from msrnn.reporting.figures import new_figure, save_figure
from msrnn.reporting.line_styles import COLOURS

WIDTH, HEIGHT = 3.2, 0.7
NORM, PITCH = 1.0, 2.3
"""Heights of a sublayer above the lower end of its part, and of the whole part: norm, sublayer, sum."""
PLUS = {"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": ORANGE}
GREEN = COLOURS["sinks"]
Sublayer = tuple[str, str]
"""Text and colour of a box."""


def draw_transformer(path: Path) -> None:
    """Draw the encoder on the left and the decoder on the right, bottom-up as in arXiv:1706.03762, fig. 1.

    The norms are before the sublayers, as in the code of docs/encoder.md; the figure of the paper has them after the sums.
    """
    figure = new_figure(path, 9.6, 7.6)
    axes = figure.add_subplot()
    axes.set(xlim=(-1.2, 12.4), ylim=(-0.1, 11.0))
    axes.axis("off")
    top = _stack(axes, 0.4, "source", "encoder", [("self-attention\nall tokens", BLUE), ("feed-forward", GREY)])
    decoder = [("self-attention\ncausal mask", BLUE), ("cross-attention\nto the source", GREEN), ("feed-forward", GREY)]
    end = _stack(axes, 5.9, "answer so far", "decoder", decoder)
    draw_box(axes, 5.9, end + 0.35, "linear map to V logits, softmax", "black", WIDTH, HEIGHT)
    draw_arrow(axes, (7.5, end), (7.5, end + 0.35))
    axes.text(7.5, end + 1.45, "next token", ha="center", fontsize=11)
    draw_arrow(axes, (7.5, end + 1.05), (7.5, end + 1.38))
    cross, self_attention = (1.35 + i * PITCH + NORM + 0.5 * HEIGHT for i in (1, 0))
    axes.plot([2, 2, 4.65, 4.65], [top, top + 0.55, top + 0.55, cross], color=GREEN, linewidth=1.8)
    draw_arrow(axes, (4.65, cross), (5.9, cross), GREEN)
    axes.text(2, top + 0.7, "output of the encoder", ha="center", fontsize=9, color=GREEN)
    _note(axes, self_attention, "H, a row per token\nof the answer:\ngrows, or an\noperator evicts", BLUE)
    _note(axes, cross, "H, a row per token\nof the source:\nmade once,\nnever evicted", GREEN)
    save_figure(figure, path, "an encoder-decoder: only the decoder has a step, and both kinds of rows are its state")


def _stack(axes: Any, x: float, source: str, name: str, sublayers: list[Sublayer]) -> float:
    """Draw a stack of layers from the embedding upwards, and return the height of its upper end."""
    middle = x + WIDTH / 2
    axes.text(middle, 0.05, source, ha="center", fontsize=11)
    draw_arrow(axes, (middle, 0.35), (middle, 0.65))
    draw_box(axes, x, 0.65, "embedding + positions", "black", WIDTH, HEIGHT)
    y = 1.35
    bottom = y + 0.12
    for text, colour in sublayers:
        draw_arrow(axes, (middle, y), (middle, y + 0.55))
        draw_box(axes, x, y + 0.55, "norm", ORANGE, WIDTH, 0.4, size=8)
        draw_box(axes, x, y + NORM, text, colour, WIDTH, HEIGHT)
        left, sum_at = x - 0.25, y + NORM + HEIGHT + 0.35
        draw_arrow(axes, (middle, y + NORM + HEIGHT), (middle, sum_at - 0.13))
        axes.plot([middle, left, left], [y + 0.3, y + 0.3, sum_at], color=ORANGE, linewidth=1)
        draw_arrow(axes, (left, sum_at), (middle - 0.16, sum_at), ORANGE)
        axes.text(middle, sum_at, "+", ha="center", va="center", fontsize=12, color=ORANGE, bbox=PLUS)
        axes.plot([middle, middle], [sum_at + 0.13, y + PITCH], color="black", linewidth=1)
        y += PITCH
    top = y
    draw_arrow(axes, (middle, y), (middle, y + 0.35))
    draw_box(axes, x, y + 0.35, "norm", ORANGE, WIDTH, 0.4, size=8)
    frame = [(x - 0.5, bottom), (x + WIDTH + 0.2, bottom), (x + WIDTH + 0.2, top), (x - 0.5, top), (x - 0.5, bottom)]
    axes.plot(*zip(*frame, strict=True), color=GREY, linestyle=":", linewidth=1.2)
    axes.text(x - 0.6, bottom, f"{name}, L layers", rotation=90, ha="right", va="bottom", fontsize=9, color="0.3")
    return top + 0.75


def _note(axes: Any, y: float, text: str, colour: str) -> None:
    axes.plot([9.1, 9.9], [y, y], color=colour, linestyle="--", linewidth=1.2)
    axes.text(10.0, y, text, va="center", fontsize=9, color=colour)
