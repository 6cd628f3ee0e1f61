"""Training of :class:`~msrnn.reductions.learned_score.LearnedScore` on the attention of the cell itself."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from ..cell.cell import Cell
from ..errors import Error, counted
from ..layers.attention import attention_logits
from ..reductions.learned_score import divide_by_rms, predict
from .reading import LayerReading, read_layers

GAP = 32
"""Attention of queries at a smaller distance is no target, because the newest rows are protected."""
FLOOR = 1e-6
"""Attention weights below it count as equal."""
RIDGE = 1e-3
"""Regularisation of the linear map, relative to the mean square of an input, which is 1."""
BATCH, RATE = 256, 1e-3
"""Tokens per step and learning rate of the network with a hidden layer."""


class Trained(NamedTuple):
    """Constants of the operator, and how well they predict the last text, which is not trained on."""

    tensors: dict[str, Tensor]
    """``(L, …)`` float32 each."""
    explained: float
    """Share of the variance of the targets that is explained, the mean over layers and heads."""


def learned_score(
    cell: Cell,
    texts: Iterable[Tensor],
    *,
    hidden: int = 0,
    epochs: int = 10,
    seed: int = 0,
    after_layer: Callable[[], object] = lambda: None,
) -> Trained:
    """Train one scorer per layer. The inputs of all texts are held in memory in bfloat16.

    Args:
        cell: the cell.
        texts: ids ``(T,)`` int64 each; the last one is held out.
        hidden: number of hidden units; 0: a linear map, which is solved in closed form.
        epochs: number of passes over the tokens, for a network with hidden units.
        seed: of the initial values and the order of the tokens.
        after_layer: called when a layer is trained.

    Raises:
        Error: fewer than two texts, or a text of at most ``2 * GAP`` tokens.
    """
    inputs: list[list[Tensor]] = [[] for _ in cell.layers]
    targets: list[list[Tensor]] = [[] for _ in cell.layers]
    n_texts = 0
    for tokens in texts:
        n_texts += 1
        if len(tokens) <= 2 * GAP:
            raise Error(f"learned score: a text has {counted(len(tokens), 'token')}; expected more than {2 * GAP}")
        for layer in read_layers(cell, tokens):
            target = attention_targets(layer)
            inputs[layer.layer].append(layer.x[: len(target)].bfloat16().cpu())
            targets[layer.layer].append(target.float().cpu())
    if n_texts < 2:
        raise Error(f"learned score: {counted(n_texts, 'text')}; expected at least 2, because the last one is held out")
    generator, trained, explained = torch.Generator().manual_seed(seed), [], []
    for xs, ys in zip(inputs, targets, strict=True):
        x, y = torch.cat(xs[:-1]).float(), torch.cat(ys[:-1])
        tensors = _solve(x, y) if hidden == 0 else _train(x, y, hidden, epochs, generator)
        error = (predict(xs[-1].float(), tensors) - ys[-1]).square().mean(0)
        explained.append((1 - error / ys[-1].var(0, correction=0).clamp(min=1e-12)).mean())
        trained.append(tensors)
        after_layer()
    names = trained[0].keys()
    return Trained({name: torch.stack([t[name] for t in trained]) for name in names}, float(torch.stack(explained).mean()))


@torch.no_grad()
def attention_targets(layer: LayerReading) -> Tensor:
    """Return the logarithm of the largest weight that each token receives from queries at least ``GAP`` tokens later.

    Returns:
        ``(T − 2 GAP, K)``; the last tokens have few later queries.
    """
    K, G, T, _ = layer.queries.shape
    position, largest = torch.arange(T, device=layer.keys.device), layer.keys.new_zeros(K, T, dtype=torch.float32)
    for rows in position.split(256):
        logits = attention_logits(layer.queries[:, :, rows].flatten(1, 2), layer.keys, rule=layer.rule)  # (K, G t, T)
        distance = rows[:, None] - position  # (t, T)
        hidden = (distance < 0) | (distance > (T if layer.window is None else layer.window))
        weights = logits.unflatten(1, (G, -1)).masked_fill(hidden, -torch.inf).softmax(-1)
        largest = torch.maximum(largest, weights.masked_fill(distance < GAP, 0).amax((1, 2)).float())
    return largest[:, : T - 2 * GAP].clamp(min=FLOOR).log().T


def _solve(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the linear map of ridge regression from inputs ``x (n, E)`` to targets ``y (n, K)``."""
    scaled = divide_by_rms(x).double()
    centre, mean = scaled.mean(0), y.double().mean(0)
    scaled = scaled - centre
    gram = scaled.T @ scaled / len(x) + RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, scaled.T @ (y.double() - mean) / len(x)).T  # (K, E)
    return {"weight": weight.float(), "bias": (mean - weight @ centre).float()}


def _train(x: Tensor, y: Tensor, hidden: int, epochs: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return a network with one hidden layer, trained by AdamW on inputs ``x (n, E)`` and targets ``y (n, K)``."""
    E, K = x.shape[1], y.shape[1]
    tensors = {
        "hidden": torch.randn(hidden, E, generator=generator) * E**-0.5,
        "hidden_bias": torch.zeros(hidden),
        "weight": torch.randn(K, hidden, generator=generator) * hidden**-0.5,
        "bias": y.mean(0),
    }
    parameters = {name: value.clone().requires_grad_() for name, value in tensors.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE)
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=generator).split(BATCH):
                loss = mse_loss(predict(x[rows], parameters), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return {name: value.detach() for name, value in parameters.items()}
