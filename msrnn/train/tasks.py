"""Copy and reverse: tasks that need the state carried from one chunk to the next.

These are small versions of the tasks of the Recurrent Memory Transformer (arXiv:2207.06881). The first chunk is n random
symbols. The second chunk starts with a marker, and its targets are the same symbols in order or in reverse. H must therefore
contain all symbols at the end of the first chunk.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..cell.cell import Cell
from ..models.learned_rows import LearnedRowsNetwork
from ..reductions.contract import Reduction

SYMBOLS = 10
MARKER = SYMBOLS
"""Token id of the marker; ids below it are symbols."""
TASKS = ("copy", "reverse")


def episodes(task: str, length: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return both chunks and the targets of the second, ``(batch_size, length)`` int64 each, with ``SYMBOLS`` + 1 token ids."""
    symbols = torch.randint(SYMBOLS, (batch_size, length), generator=generator)
    targets = symbols.flip(1) if task == "reverse" else symbols
    return symbols, torch.cat((torch.full((batch_size, 1), MARKER), targets[:, :-1]), dim=1), targets


def second_logits(cell: Cell, first: Tensor, second: Tensor, reduction: Reduction | str) -> Tensor:
    """Read both chunks and return the logits ``(B, T, V)`` of the second; gradients flow through both chunks.

    A recurrent memory is written between the chunks, and only this memory is carried. Other cells carry H.
    """
    state = cell.initial_state(len(first), reduction)
    _, layers = cell.unroll(first, state, None)
    state = state.with_layers(layers)
    if isinstance(cell, LearnedRowsNetwork) and cell.config.recurrent:
        state = cell.next_segment(state)
    x, _ = cell.unroll(second, state, None)
    return cell.compute_logits(x)


def episode_loss(cell: Cell, first: Tensor, second: Tensor, targets: Tensor, reduction: Reduction | str) -> Tensor:
    """Return the mean loss over the targets."""
    return cross_entropy(second_logits(cell, first, second, reduction).flatten(0, 1), targets.flatten())


@torch.no_grad()
def accuracy(cell: Cell, task: str, length: int, reduction: Reduction | str, batch_size: int = 256) -> float:
    """Return the fraction of symbols predicted correctly under teacher forcing, on episodes of a separate seed."""
    training = cell.training
    first, second, targets = episodes(task, length, batch_size, torch.Generator().manual_seed(2**31))
    correct = second_logits(cell.eval(), first, second, reduction).argmax(-1) == targets
    cell.train(training)
    return correct.cpu().double().mean().item()
