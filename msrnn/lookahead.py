"""Decoding that breaks the one-token-at-a-time order and gives, token for token, what greedy decoding gives.

A block of guesses is read in one pass; a guess that is what the model itself says after the guesses before it is right. The
state after the right ones is at hand (``cell.scan``), bounded or not, so nothing is read twice and nothing has to be undone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cell import Cell
from .decode import eos_ids, is_whole, read_prompt
from .error import Error
from .state import State


@dataclass(frozen=True)
class Record:
    """How a text came about.

    Attributes:
        accepted: ``(steps, B)`` int64, the tokens that each pass over the parameters added to each row; 0 once a row has ended.
    """

    accepted: Tensor

    @property
    def steps(self) -> int:
        """Passes over the parameters after the prompt."""
        return len(self.accepted)

    @property
    def tokens_per_step(self) -> float:
        """The mean over passes and rows, as long as a row goes on; greedy decoding has 1."""
        going = self.accepted > 0
        return float(self.accepted.sum()) / max(1, int(going.sum()))


@torch.no_grad()
def jacobi(
    cell: Cell,
    tokens: Tensor,
    state: State | None = None,
    *,
    max_new_tokens: int,
    block: int = 8,
    lengths: Tensor | None = None,
    eos_token_id: int | Sequence[int] | None = None,
) -> tuple[Tensor, State, Record]:
    """Greedy decoding by fixed-point iteration on a block of guesses (Jacobi decoding, arXiv:2305.10427).

    Every pass replaces each guess by what the model says after the ones before it. After j passes the first j tokens at least
    are greedy's, whatever the first guesses; those found right are kept, and the block moves on behind them.

    Args:
        cell, tokens, state, max_new_tokens, lengths, eos_token_id: as of :func:`msrnn.generate`.
        block: tokens guessed at once.

    Returns:
        The new tokens ``(B, N)`` and the state, both as greedy :func:`msrnn.generate` gives them; and the :class:`Record`.

    Raises:
        Error: as :func:`msrnn.generate`; a block below 1.
    """
    if not is_whole(block) or block < 1:
        raise Error(f"block is {block!r:.60}; expected a whole number of at least 1")
    ends = eos_ids(cell, eos_token_id)
    logits, state = read_prompt(cell, tokens, state, lengths, max_new_tokens)
    B, device = tokens.shape[0], tokens.device
    guess = logits.argmax(-1)[:, None].repeat(1, block)  # (B, m); the first is right, the others are a guess like any
    new, written = tokens.new_zeros(B, max_new_tokens), tokens.new_zeros(B)
    ended, accepted, place = torch.zeros(B, dtype=torch.bool, device=device), [], torch.arange(block, device=device)
    while bool((going := ~ended & (written < max_new_tokens)).any()):
        m = min(block, max_new_tokens - int(written[going].amin()))
        guess = guess[:, :m]
        logits, trace = cell.scan(guess, state, lengths=torch.where(going, m, 0))
        after = logits.nan_to_num().argmax(-1)  # (B, m), what follows each guess if all up to it are right
        right = torch.cat((going[:, None], guess[:, 1:] == after[:, :-1]), dim=1).cumprod(1).bool()
        right &= place[:m] < (max_new_tokens - written)[:, None]
        stops = torch.isin(guess, ends.to(device)) & right
        right &= stops.cumsum(1) - stops.long() == 0  # nothing comes after an end
        count = right.sum(1)  # (B,)
        rows, columns = right.nonzero(as_tuple=True)
        new[rows, written[rows] + columns] = guess[rows, columns]
        state, written, ended = trace.at(count), written + count, ended | (stops & right).any(1)
        accepted.append(count)
        ahead = (count - 1).clamp(min=0)[:, None] + torch.arange(block, device=device)  # the block moves on; its end is a guess
        guess = after.gather(1, ahead.clamp(max=m - 1))
    length = int(written.amax())
    past = torch.arange(length, device=device) >= written[:, None]
    last = new.gather(1, (written - 1).clamp(min=0)[:, None]) if max_new_tokens else new
    new = torch.where(past, last, new[:, :length])  # a row that ended repeats its end
    return new, state, Record(torch.stack(accepted) if accepted else tokens.new_zeros(0, B))
