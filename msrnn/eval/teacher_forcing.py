"""Teacher forcing: the log-likelihood of given tokens, and whether greedy decoding would choose them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..cell.cell import Cell
from ..state.state import State

MAX_LOGITS = 2**24
"""Approximate maximum number of logits in memory at a time: 64 MB in float32."""


class TokenScores(NamedTuple):
    """Scores of given tokens: ``nll (B, N)`` = −ln p in at least float32, and ``is_argmax (B, N)`` bool."""

    nll: Tensor
    is_argmax: Tensor


@torch.no_grad()
def teacher_force(cell: Cell, logits: Tensor, tokens: Tensor, state: State) -> TokenScores:
    """Score a continuation. Memory is independent of its length.

    Args:
        cell: the cell.
        logits: ``(B, V)``, output of the step that led to ``state``; they predict the first token.
        tokens: ``(B, N)`` int64, N at least 1. The last token is predicted but not read.
        state: state before the first token.
    """
    (B, V), N = logits.shape, tokens.shape[1]
    scores, step = [score_tokens(logits[:, None], tokens[:, :1])], max(1, MAX_LOGITS // (B * V))
    for start in range(0, N - 1, step):
        stop = min(start + step, N - 1)
        more, state = cell(tokens[:, start:stop], state)
        scores.append(score_tokens(more, tokens[:, start + 1 : stop + 1]))
    return TokenScores(*(torch.cat(parts, dim=1) for parts in zip(*scores, strict=True)))


def score_tokens(logits: Tensor, tokens: Tensor) -> TokenScores:
    """Score ``tokens (B, t)`` int64 under the ``logits (B, t, V)`` that predict them."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))  # (B, t, V)
    return TokenScores(cross_entropy(wide.transpose(1, 2), tokens, reduction="none"), wide.argmax(-1) == tokens)


def pad_right(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return ``(B, T)`` int64; shorter rows are padded with zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def padding_mask(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return ``(B, T)`` bool for :func:`pad_right`: True at tokens, False at padding."""
    lengths = torch.tensor([[len(row)] for row in rows])
    return torch.arange(int(lengths.max())) < lengths
