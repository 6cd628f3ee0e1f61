"""One colour per operator in all figures, and one order of the legend.

The colours are those of Okabe and Ito, which people with any kind of colour blindness can tell apart (jfly.uni-koeln.de/color).
"""

from collections.abc import Iterable
from typing import NamedTuple

COLOURS = {
    "full": "#000000",
    "truncated": "#999999",
    "window": "#E69F00",
    "sinks": "#009E73",
    "h2o": "#0072B2",
    "h2o-layer": "#56B4E9",
    "tova": "#D55E00",
    "tova-head": "#CC79A7",
}
"""By the name of an operator, in the order of the legend."""
OTHER_COLOURS = ("#7F5539", "#7A7A00", "#5E4FA2", "#66A61E", "#A6761D", "#4D4D4D")
"""Of lines that are no operator of the TOVA paper, in their order."""
BLUE, ORANGE, GREEN, PURPLE = (COLOURS[name] for name in ("h2o", "tova", "sinks", "tova-head"))
"""Colours of curves that belong to no operator."""
MARKERS, DASHES = "osD^vPX*", ("-", "--", ":", "-.")


class LineStyle(NamedTuple):
    """Colour, marker and dashes of one line, as matplotlib names them."""

    colour: str
    marker: str
    dashes: str


def line_styles(names: Iterable[str]) -> dict[str, LineStyle]:
    """Return the style of each line, in the order of the legend.

    Args:
        names: of the lines. Lines of one operator (``sinks:SIZE:1``, ``sinks:SIZE:4``) share its colour and differ in dashes.
    """
    names = list(names)
    operators = list(COLOURS)
    ordered = sorted(names, key=lambda name: operators.index(x) if (x := _operator(name)) in operators else len(operators))
    colours, used = dict(COLOURS), dict[str, int]()
    styles = {}
    for i, name in enumerate(ordered):
        operator = _operator(name)
        if operator not in colours:
            colours[operator] = OTHER_COLOURS[(len(colours) - len(COLOURS)) % len(OTHER_COLOURS)]
        n = used[operator] = used.get(operator, -1) + 1
        styles[name] = LineStyle(colours[operator], MARKERS[i % len(MARKERS)], DASHES[n % len(DASHES)])
    return styles


def _operator(name: str) -> str:
    """Return the name of the operator of a spec string, ``sinks`` of ``all-layers:sinks:SIZE:4``."""
    return name.removeprefix("all-layers:").partition(":")[0]
