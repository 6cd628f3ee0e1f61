"""The pictures of docs/by-hand.md: the rows that each of eight tokens attends to under four rules."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from msrnn.reporting.figures import new_figure, save_figure
from msrnn.reporting.line_styles import COLOURS

CHAPTER = Path(__file__).parents[1] / "by-hand.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PANELS = {"window": "window:3", "sinks": "sinks:3:1", "tova": "tova:3", "h2o": "h2o:3"}


def draw_by_hand(folder: Path) -> None:
    """Draw ``by-hand-RULE.png`` for each rule. The numbers and the rules are those of the code blocks of the chapter."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in BLOCK.findall(CHAPTER.read_text())[:6]:  # the numbers, the loop, and the four rules
            exec(block, names)
    for rule, spec in PANELS.items():
        _draw(names["read"](names[rule]), names["words"], names["points"], rule, spec, folder / f"by-hand-{rule}.png")


def _draw(steps: Any, words: list[str], points: list[list[int]], rule: str, spec: str, path: Path) -> None:
    from matplotlib.patches import Rectangle

    figure, T = new_figure(path, 4.6, 4.7), len(words)
    axes = figure.add_subplot()
    for t, (held, _, sums, evicted) in enumerate(steps):
        for p in range(t + 1):
            if p in held:
                axes.add_patch(Rectangle((p, t), 1, 1, facecolor=COLOURS[rule], alpha=0.35, linewidth=0))
            text = f"{sums[p]:.1f}" if rule == "h2o" and p in held else "" if rule == "h2o" else str(points[t][p])
            axes.text(p + 0.5, t + 0.5, text, ha="center", va="center", fontsize=10, color="black" if p in held else "0.65")
        if evicted is not None:
            frame = {"fill": False, "edgecolor": "black", "linewidth": 1.8, "zorder": 3}
            axes.add_patch(Rectangle((evicted + 0.04, t + 0.04), 0.92, 0.92, **frame))
            axes.text(evicted + 0.8, t + 0.22, "×", ha="center", va="center", fontsize=11)
    last, _, _, evicted = steps[-1]
    axes.set(
        xlim=(0, T), ylim=(T, 0), aspect="equal", xlabel="position: bold words are held at the end", ylabel="token that is read"
    )
    axes.set_xticks([p + 0.5 for p in range(T)], words, fontsize=9)
    axes.set_yticks([t + 0.5 for t in range(T)], words, fontsize=9)
    for p, label in enumerate(axes.get_xticklabels()):
        label.set_fontweight("bold" if p in last and p != evicted else "normal")
    for x in range(1, T):
        axes.axvline(x, color="0.85", linewidth=0.6)
        axes.axhline(x, color="0.85", linewidth=0.6)
    axes.tick_params(length=0)
    content = "sums of weights" if rule == "h2o" else "points"
    save_figure(figure, path, f"{spec}: {content}, and what is evicted (×)")
