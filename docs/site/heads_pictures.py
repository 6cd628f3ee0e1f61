"""Pictures of attention heads of a real model: four heads on one text, and one head over the rows that an operator retains."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import msrnn
from msrnn.reporting.figures import new_figure, save_figure

SCALE = "attention weight (square-root colour scale)"


@torch.no_grad()
def head_weights(cell: msrnn.Cell, ids: list[int], reduction: str) -> Tensor:
    """Return the attention weights of all heads, ``(L, N, T, T)``; NaN where H no longer holds a position.

    The softmax is that of the definition: over the rows that a token attends to, logits divided by the root of D.
    """
    tokens, T = torch.tensor([ids]), len(ids)
    _, trace = cell.scan(tokens, cell.initial_state(1, reduction), weights=True)
    step, layers = torch.arange(T), []
    for layer in trace:
        keys, queries = layer.keys[0], layer.queries[0]  # (K, T, D), (N, T, D)
        keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)  # (N, T, D)
        last = layer.last_visible[0]  # (1 or K, T): the last token that attends to each position
        visible = (step[:, None] >= step) & (step[:, None] <= last[:, None])  # (1 or K, T, T)
        visible = visible.repeat_interleave(len(queries) // len(visible), dim=0)
        logits = (queries @ keys.mT / queries.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
        layers.append(logits.softmax(-1).masked_fill(~visible, torch.nan))
    return torch.stack(layers)


def kinds_of_heads(weights: Tensor, ids: list[int]) -> dict[str, Tensor]:
    """Return by kind how much each head is of that kind, ``(L, N)`` each: a mean attention weight.

    Args:
        weights: ``(L, N, T, T)`` of the unbounded model.
        ids: the text. It contains some words twice.
    """
    T, weights = len(ids), weights.nan_to_num(nan=0.0)
    after = [(t, p + 1) for t in range(T) for p in range(t - 1) if ids[p] == ids[t]]
    spread = -(weights[:, :, 1:] * weights[:, :, 1:].clamp(min=1e-9).log()).sum(-1) / torch.arange(2, T + 1).log()
    return {
        "the first token": weights[:, :, 1:, 0].mean(-1),
        "the previous token": weights.diagonal(-1, dim1=2, dim2=3).mean(-1),
        "the token after an earlier copy": torch.stack([weights[:, :, t, p] for t, p in after]).mean(0),
        "spread over all tokens": spread.mean(-1),
    }


def draw_heads(weights: Tensor, ids: list[int], words: list[str], path: Path) -> list[str]:
    """Draw the clearest head of each kind, and return their names."""
    figure, names = new_figure(path, 10.4, 10.6), []
    for i, (kind, scores) in enumerate(kinds_of_heads(weights, ids).items()):
        layer, head = divmod(int(scores.argmax()), scores.shape[1])
        axes = figure.add_subplot(2, 2, i + 1)
        image = _show(axes, weights[layer, head], words, left=i % 2 == 0)
        axes.set_title(f"{kind}: layer {layer}, head {head}", fontsize=11)
        names.append(f"{kind}: layer {layer}, head {head}, {scores[layer, head]:.2f}")
    figure.colorbar(image, ax=figure.axes, label=SCALE, shrink=0.5)
    save_figure(figure, path, "what four heads of SmolLM2 attend to")
    return names


def draw_head_over_rows(panels: dict[str, Tensor], words: list[str], path: Path, title: str) -> None:
    """Draw the weights ``(T, T)`` of one head under several operators, with evicted positions in grey."""
    figure = new_figure(path, 5.3 * len(panels) + 0.4, 5.9)
    for i, (name, weights) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        image = _show(axes, weights, words, left=i == 0)
        axes.set_title(name, fontsize=11, fontfamily="monospace")
    figure.colorbar(image, ax=figure.axes, label=SCALE, shrink=0.6)
    save_figure(figure, path, title)


def _show(axes: Any, weights: Tensor, words: list[str], left: bool) -> Any:
    from matplotlib.colors import PowerNorm

    T = len(words)
    evicted = (weights.isnan() & torch.ones(T, T).tril().bool()).float()
    axes.imshow(evicted.masked_fill(evicted == 0, torch.nan).numpy(), cmap="Greys", vmin=0, vmax=4)
    image = axes.imshow(weights.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # small weights stay visible
    axes.set_xticks(range(T), words, rotation=90, fontsize=8)
    axes.set_yticks(range(T), words if left else [], fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel("key")
    if left:
        axes.set_ylabel("query")
    return image
