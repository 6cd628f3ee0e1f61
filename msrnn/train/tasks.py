"""Copy and reverse: what can only be done by what is carried from one chunk to the next.

The tasks of the Recurrent Memory Transformer (arXiv:2207.06881), in small. n random symbols are the first chunk; the second
begins with a mark, and what is to be predicted there is the same symbols, in order or from the last to the first. All that is
known of them has to be in H when the first chunk ends.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..cell.cell import Cell
from ..models.learned_rows import Learned
from ..reductions.contract import Reduction

SYMBOLS = 10
MARK = SYMBOLS
TASKS = ("copy", "reverse")


def episodes(task: str, length: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The two chunks and the second's targets, ``(batch, length)`` int64 each, of a vocabulary of ``SYMBOLS`` + 1."""
    symbols = torch.randint(SYMBOLS, (batch, length), generator=generator)
    answer = symbols.flip(1) if task == "reverse" else symbols
    return symbols, torch.cat((torch.full((batch, 1), MARK), answer[:, :-1]), dim=1), answer


def answers(cell: Cell, first: Tensor, second: Tensor, reduction: Reduction | str) -> Tensor:
    """Both chunks read, a gradient going back through all of it -> the second's logits ``(B, T, V)``. A recurrent memory is
    written between the two, and nothing else is carried; otherwise H is, as the reduction has left it."""
    state = cell.initial_state(len(first), reduction)
    _, layers = cell.fold(first, state, None)
    state = state.with_layers(layers)
    if isinstance(cell, Learned) and cell.config.recurrent:
        state = cell.carry(state)
    x, _ = cell.fold(second, state, None)
    return cell.read_out(x)


def episode_loss(cell: Cell, first: Tensor, second: Tensor, targets: Tensor, reduction: Reduction | str) -> Tensor:
    """The mean over the answers."""
    return cross_entropy(answers(cell, first, second, reduction).flatten(0, 1), targets.flatten())


@torch.no_grad()
def accuracy(cell: Cell, task: str, length: int, reduction: Reduction | str, batch: int = 256) -> float:
    """The share of symbols that are answered rightly, given the right ones before; of episodes that were never learnt from but
    by chance."""
    learns = cell.training
    first, second, targets = episodes(task, length, batch, torch.Generator().manual_seed(2**31))
    right = answers(cell.eval(), first, second, reduction).argmax(-1) == targets
    cell.train(learns)
    return right.double().mean().item()
