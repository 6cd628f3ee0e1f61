"""The picture of an encoder-decoder: its layers, and where the rows of H are."""

from pathlib import Path
from typing import Any

from step_picture import BLUE, GREY, ORANGE, draw_arrow, draw_box

from msrnn.reporting.figures import new_figure, save_figure
from msrnn.reporting.line_styles import COLOURS

WIDTH, HEIGHT = 3.2, 0.7
GREEN = COLOURS["sinks"]
Sublayer = tuple[str, str]
"""Text and colour of a box."""


def draw_transformer(path: Path) -> None:
    """Draw the encoder on the left and the decoder on the right, bottom-up as in arXiv:1706.03762, fig. 1."""
    figure = new_figure(path, 9.6, 6.7)
    axes = figure.add_subplot()
    axes.set(xlim=(-1.2, 12.4), ylim=(-0.1, 9.6))
    axes.axis("off")
    top = _stack(axes, 0.4, "source", "encoder", [("self-attention\nall tokens", BLUE), ("feed-forward", GREY)])
    decoder = [("self-attention\ncausal mask", BLUE), ("cross-attention\nto the source", GREEN), ("feed-forward", GREY)]
    end = _stack(axes, 5.9, "answer so far", "decoder", decoder)
    draw_box(axes, 5.9, end + 0.35, "linear, softmax", "black", WIDTH, HEIGHT)
    draw_arrow(axes, (7.5, end), (7.5, end + 0.35))
    axes.text(7.5, end + 1.45, "next token", ha="center", fontsize=11)
    draw_arrow(axes, (7.5, end + 1.05), (7.5, end + 1.38))
    axes.plot([2, 2, 4.65, 4.65], [top, top + 0.55, top + 0.55, 4.45], color=GREEN, linewidth=1.8)
    draw_arrow(axes, (4.65, 4.45), (5.9, 4.45), GREEN)
    axes.text(2, top + 0.7, "output of the encoder", ha="center", fontsize=9, color=GREEN)
    _note(axes, 2.5, "H, a row per token\nof the answer:\ngrows, or an\noperator evicts", BLUE)
    _note(axes, 4.45, "H, a row per token\nof the source:\nmade once,\nnever evicted", GREEN)
    save_figure(figure, path, "an encoder-decoder: only the decoder has a step, and both kinds of rows are its state")


def _stack(axes: Any, x: float, source: str, name: str, sublayers: list[Sublayer]) -> float:
    """Draw a stack of layers from the embedding upwards, and return the height of its upper end."""
    middle = x + WIDTH / 2
    axes.text(middle, 0.05, source, ha="center", fontsize=11)
    draw_arrow(axes, (middle, 0.35), (middle, 0.65))
    draw_box(axes, x, 0.65, "embedding + positions", "black", WIDTH, HEIGHT)
    y = 1.35
    bottom = y + 0.3
    for text, colour in sublayers:
        draw_arrow(axes, (middle, y), (middle, y + 0.8))
        draw_box(axes, x, y + 0.8, text, colour, WIDTH, HEIGHT)
        draw_box(axes, x, y + 1.55, "add, norm", ORANGE, WIDTH, 0.4, size=8)
        left = x - 0.25
        axes.plot([middle, left, left], [y + 0.55, y + 0.55, y + 1.75], color=ORANGE, linewidth=1)
        draw_arrow(axes, (left, y + 1.75), (x, y + 1.75), ORANGE)
        y += 1.95
    top = y + 0.2
    axes.plot([middle, middle], [y, top + 0.2], color="black", linewidth=1)
    frame = [(x - 0.5, bottom), (x + WIDTH + 0.2, bottom), (x + WIDTH + 0.2, top), (x - 0.5, top), (x - 0.5, bottom)]
    axes.plot(*zip(*frame, strict=True), color=GREY, linestyle=":", linewidth=1.2)
    axes.text(x - 0.6, bottom, f"{name}, L layers", rotation=90, ha="right", va="bottom", fontsize=9, color="0.3")
    return top + 0.2


def _note(axes: Any, y: float, text: str, colour: str) -> None:
    axes.plot([9.1, 9.9], [y, y], color=colour, linestyle="--", linewidth=1.2)
    axes.text(10.0, y, text, va="center", fontsize=9, color=colour)
