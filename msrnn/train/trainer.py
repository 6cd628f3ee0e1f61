"""One optimizer step of truncated backpropagation through time, and the state of a run between two steps."""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from ..cell.cell import Cell
from ..distributed.gradient_norm import clip_split_gradients_
from ..distributed.whole import whole_tensor
from ..errors import Error
from ..models.learned_rows import LearnedRowsNetwork
from ..reductions.contract import Reduction
from ..state.state import State
from ..storage.lazy_tensors import LazyTensor
from .data import IGNORED, Streams, TrainBatch
from .run_config import RunConfig

FINAL_LR = 0.1
"""Learning rate at the end of the cosine, as a fraction of the maximum."""
BETAS = (0.9, 0.95)


class Diverged(Error):
    """The loss is not finite."""


class Trainer:
    """A training run between two steps.

    Attributes:
        cell: the cell, in training mode.
        config: the configuration of the run.
        parameters: the trained parameters by name: those that require gradients, or all if none does. In a split model they
            are the slices of this rank.
        optimizer: AdamW.
        state: H after the last step, detached from the graph; None before the first step.
        losses: training loss of each step, nats per token.
        validation: loss of the validation split by number of steps, in bits per byte (``train``) or nats per token
            (``finetune``).
    """

    def __init__(self, cell: Cell, config: RunConfig):
        if not any(x.requires_grad for x in cell.parameters()):
            cell.requires_grad_()
        self.cell, self.config = cell.train(), config
        self.parameters = {name: x for name, x in cell.named_parameters() if x.requires_grad}
        matrices = [x for x in self.parameters.values() if x.ndim > 1]
        vectors = [x for x in self.parameters.values() if x.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=BETAS)
        self.state: State | None = None
        self.losses: list[float] = []
        self.validation: dict[int, float] = {}

    @property
    def whole_parameters(self) -> dict[str, LazyTensor]:
        """The trained parameters of the whole model by name. In a split model all ranks have to read them."""
        return {name: whole_tensor(self.cell.rank_part, name, x) for name, x in self.parameters.items()}

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters of the whole model."""
        return sum(math.prod(x.shape) for x in self.whole_parameters.values())

    def train_step(self, batch: TrainBatch) -> float:
        """Read one chunk, backpropagate, update the parameters and keep H. Return the loss.

        Raises:
            Diverged: as :meth:`optimizer_step`.
        """
        loss, state = chunk_loss(self.cell, batch, None if batch.reset_state else self.state, self.config.reduction)
        value = self.optimizer_step(loss)
        self.state = state.detach()
        return value

    def optimizer_step(self, loss: Tensor) -> float:
        """Update the parameters by the gradient of ``loss``, and return the value of ``loss``.

        Raises:
            Diverged: the loss is not finite; nothing was changed.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(f"step {len(self.losses) + 1}: the loss is {value}; a lower lr or more warmup_steps may help")
        self.optimizer.zero_grad()
        loss.backward()
        if self.cell.rank_part is None:
            clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        else:
            clip_split_gradients_(self.cell.rank_part, self.parameters.items(), self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, len(self.losses))
        self.optimizer.step()
        self.losses.append(value)
        return value


def learning_rate(config: RunConfig, step: int) -> float:
    """Return the learning rate of a step, counted from 0: a linear rise, then a cosine."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * (FINAL_LR + (1 - FINAL_LR) * (1 + math.cos(math.pi * progress)) / 2)


def chunk_loss(cell: Cell, batch: TrainBatch, state: State | None, reduction: Reduction | str | None) -> tuple[Tensor, State]:
    """Return the mean loss over the targets of one chunk, and H after the chunk, which carries the graph."""
    logits, state = _read(cell, batch.tokens, state, reduction)
    return _cross_entropy(logits, batch.targets, "mean"), state


def bits_per_byte(cell: Cell, streams: Streams, n_bytes: Tensor, reduction: Reduction | str | None) -> float:
    """Return the bits per byte of one epoch of ``streams``, computed in eval mode.

    Args:
        cell: the cell; its training mode is restored.
        streams: the token ids.
        n_bytes: ``(V,)`` int64, length of each token in bytes.
        reduction: operator under which the text is read.
    """
    nats, total = 0.0, 0
    for losses, targets in _read_epoch(cell, streams, reduction):
        nats += losses
        total += int(n_bytes[targets].sum())
    return nats / math.log(2) / total


def nats_per_token(cell: Cell, streams: Streams, reduction: Reduction | str | None) -> float:
    """Return the mean loss over the tokens of one epoch of ``streams``, as :func:`bits_per_byte`."""
    parts = [(losses, int((targets != IGNORED).sum())) for losses, targets in _read_epoch(cell, streams, reduction)]
    return sum(losses for losses, _ in parts) / sum(n for _, n in parts)


@torch.no_grad()
def _read_epoch(cell: Cell, streams: Streams, reduction: Reduction | str | None) -> list[tuple[float, Tensor]]:
    """Return the sum of the losses, and the targets, of each chunk of one epoch."""
    training, state, parts = cell.training, None, []
    cell.eval()
    for index in range(streams.n_chunks):
        batch = streams[index]
        logits, state = _read(cell, batch.tokens, None if batch.reset_state else state, reduction)
        losses = _cross_entropy(logits, batch.targets, "none")
        parts.append((losses.cpu().double().sum().item(), batch.targets))  # some devices have no float64
    cell.train(training)
    return parts


def _cross_entropy(logits: Tensor, targets: Tensor, how: str) -> Tensor:
    """Return the loss of ``logits (B, T, V)`` in at least float32."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=how)


def _read(cell: Cell, tokens: Tensor, state: State | None, reduction: Reduction | str | None) -> tuple[Tensor, State]:
    """Read one chunk by the many-token path, ``(B, T) -> (B, T, V)``. Learned rows of a carried state are recomputed, so that
    they receive gradients."""
    if state is None:
        state = cell.initial_state(len(tokens), reduction)
    elif isinstance(cell, LearnedRowsNetwork):
        state = cell.next_segment(state) if cell.config.recurrent else cell.refresh_learned_rows(state)
    x, layers = cell.unroll(tokens, state, None)
    return cell.compute_logits(x), state.with_layers(layers)
