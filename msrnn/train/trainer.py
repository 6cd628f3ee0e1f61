"""One run between two steps: the cell, the optimizer, the state that is carried, and what was measured so far."""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from ..cell.cell import Cell
from ..errors import Error
from ..models.learned_rows import Learned
from ..reductions.contract import Reduction
from ..state.state import State
from .config import Recipe
from .data import IGNORED, Piece, Streams

LAST_LR = 0.1
"""Where the cosine ends, of the highest rate."""
BETAS = (0.9, 0.95)


class Diverged(Error):
    """The loss is no number any more."""


class Run:
    """A run between two steps.

    Attributes:
        cell: what learns, in training mode.
        recipe: how.
        optimizer: AdamW.
        state: H after the last step, without its graph; None before the first.
        losses: nats a token, of each step.
        validation: bits a byte of the held-out text, by the number of steps.
    """

    def __init__(self, cell: Cell, recipe: Recipe):
        self.cell, self.recipe = cell.requires_grad_().train(), recipe
        matrices = [x for x in cell.parameters() if x.ndim > 1]
        others = [x for x in cell.parameters() if x.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=BETAS)
        self.state: State | None = None
        self.losses: list[float] = []
        self.validation: dict[int, float] = {}

    def step(self, piece: Piece) -> float:
        """One step of truncated backpropagation through time: read, go back through this chunk, learn, keep H.

        Raises:
            Diverged: as :meth:`learn`.
        """
        loss, state = chunk_loss(self.cell, piece, None if piece.fresh else self.state, self.recipe.reduction)
        value = self.learn(loss)
        self.state = state.detach()
        return value

    def learn(self, loss: Tensor) -> float:
        """One step of the optimizer down the gradient of ``loss``, whose value is given back.

        Raises:
            Diverged: it is no number any more; nothing was changed.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(f"step {len(self.losses) + 1}: the loss is {value}; a lower lr or a longer warm-up may help")
        self.optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self.cell.parameters(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, len(self.losses))
        self.optimizer.step()
        self.losses.append(value)
        return value


def learning_rate(recipe: Recipe, step: int) -> float:
    """Of one step, counted from 0: up in a line, down along a cosine."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    part = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * (LAST_LR + (1 - LAST_LR) * (1 + math.cos(math.pi * part)) / 2)


def chunk_loss(cell: Cell, piece: Piece, state: State | None, reduction: Reduction | str) -> tuple[Tensor, State]:
    """The mean of the losses at one chunk's targets, and H after it, which carries the graph."""
    logits, state = _read(cell, piece.tokens, state, reduction)
    return cross_entropy(logits.flatten(0, 1), piece.targets.flatten(), ignore_index=IGNORED), state


@torch.no_grad()
def bits_per_byte(cell: Cell, streams: Streams, n_bytes: Tensor, reduction: Reduction | str) -> float:
    """Of one epoch of ``streams``, tokens standing for ``n_bytes (V,)``; the cell is read as it is when it does not learn."""
    learns, state, nats, many = cell.training, None, 0.0, 0
    cell.eval()
    for index in range(streams.n_chunks):
        tokens, targets, fresh = streams[index]
        logits, state = _read(cell, tokens, None if fresh else state, reduction)
        nats += cross_entropy(logits.flatten(0, 1).double(), targets.flatten(), reduction="sum").item()
        many += int(n_bytes[targets].sum())
    cell.train(learns)
    return nats / math.log(2) / many


def _read(cell: Cell, tokens: Tensor, state: State | None, reduction: Reduction | str) -> tuple[Tensor, State]:
    """One chunk by one fold: ``(B, T) -> (B, T, V)``. Learned rows of a state carried on are made anew."""
    if state is None:
        state = cell.initial_state(len(tokens), reduction)
    elif isinstance(cell, Learned):
        state = cell.carry(state) if cell.config.recurrent else cell.renew(state)
    x, layers = cell.fold(tokens, state, None)
    return cell.read_out(x), state.with_layers(layers)
