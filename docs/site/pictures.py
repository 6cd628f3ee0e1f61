"""Draw the pictures of the chapters that no experiment draws: `make pictures` writes them to docs/pictures.

    python docs/site/pictures.py MODEL

MODEL is a model folder or a .gguf file; the pictures of the docs are those of SmolLM2-135M-Instruct.
"""

import sys
from pathlib import Path

import torch
from by_hand_picture import draw_by_hand
from heads_pictures import draw_head_over_rows, draw_heads, head_weights
from step_picture import draw_step
from torch import Tensor
from transformer_picture import draw_transformer

import converters
import msrnn
from msrnn.diagnostics.retention import eviction_steps
from msrnn.layers.masks import padding_mask, subsequent_mask, window_mask
from msrnn.reporting.figures import new_figure, save_figure
from msrnn.reporting.line_styles import COLOURS

FOLDER = Path(__file__).parents[1] / "pictures"
SENTENCE = "The old man gave the girl a red apple"
LAYER, SIZE = 20, 4
REPEATED = "The old man gave the girl a red apple. The old man gave the boy a red apple, and the girl a pear."
HEAD, OF_LAYER, ROWS = 0, 20, 8
"""The head that is drawn over the rows that TOVA retains, and the number of these rows."""


def main(model: str) -> None:
    """Draw all pictures."""
    cell, tokenizer = converters.load(model), converters.tokenizer(model)
    ids = tokenizer.encode(SENTENCE).ids
    draw_step(FOLDER / "step.png")
    draw_by_hand(FOLDER)
    draw_transformer(FOLDER / "transformer.png")
    draw_masks(operator_masks(cell, ids), [tokenizer.decode([i]).strip() for i in ids], FOLDER / "masks.png")

    ids = tokenizer.encode(REPEATED).ids
    words, unbounded = [tokenizer.decode([i]).strip() for i in ids], head_weights(cell, ids, "full")
    print(*draw_heads(unbounded, ids, words, FOLDER / "heads.png"), sep="\n")
    panels = {"full": unbounded, f"tova:{ROWS}": head_weights(cell, ids, f"tova:{ROWS}")}
    title = f"layer {OF_LAYER}, head {HEAD}, without and with eviction (grey: evicted)"
    one = {name: weights[OF_LAYER, HEAD] for name, weights in panels.items()}
    draw_head_over_rows(one, words, FOLDER / "head.png", title)


def operator_masks(cell: msrnn.Cell, ids: list[int]) -> dict[str, Tensor]:
    """Return the masks ``(T, T)`` bool by name: those of textbooks, and those that operators make in one layer."""
    T, causal = len(ids), subsequent_mask(len(ids))
    masks = {
        "causal": causal,
        f"causal and window of {SIZE + 1}": causal & window_mask(T, SIZE + 1),
        "causal and padding": causal & padding_mask(torch.tensor([T - 3]), T)[0],
    }
    now = torch.arange(T)[:, None]
    for reduction in (f"window:{SIZE}", f"sinks:{SIZE}:2", f"tova:{SIZE}"):
        last = eviction_steps(cell, torch.tensor([ids]), reduction)[0, LAYER, 0]  # (T,)
        masks[f"{reduction}, layer {LAYER}"] = causal & (now <= last)
    return masks


def draw_masks(masks: dict[str, Tensor], words: list[str], path: Path) -> None:
    """Draw one panel per mask: one line per query, one column per key, filled where the query attends to the key."""
    from matplotlib.colors import ListedColormap

    columns, T = 3, len(words)
    rows = -(-len(masks) // columns)
    figure = new_figure(path, 3.2 * columns, 3.5 * rows)
    for i, (name, mask) in enumerate(masks.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        colour = COLOURS.get(name.partition(":")[0], COLOURS["full"])
        axes.imshow(mask.numpy(), cmap=ListedColormap(["white", colour]), vmin=0, vmax=1)
        axes.set_title(name, fontsize=10, fontfamily="monospace" if ":" in name else None)
        axes.set_xticks(range(T), words, rotation=90, fontsize=8)
        axes.set_yticks(range(T), words if i % columns == 0 else [], fontsize=8)
        axes.set_xticks([x - 0.5 for x in range(1, T)], minor=True)
        axes.set_yticks([x - 0.5 for x in range(1, T)], minor=True)
        axes.grid(which="minor", color="lightgrey", linewidth=0.5)
        axes.tick_params(which="both", length=0)
        if i % columns == 0:
            axes.set_ylabel("query")
        if i >= len(masks) - columns:
            axes.set_xlabel("key")
    save_figure(figure, path, "the keys that each query attends to")


if __name__ == "__main__":
    main(sys.argv[1])
