"""A given continuation, read by a model: how likely each of its tokens was, and whether the model would have written it."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..cell.cell import Cell
from ..state.state import State

LOGITS = 2**24
"""Numbers of logits that exist at once, about: 64 MB in float32."""


class Forced(NamedTuple):
    """``nll (B, N)`` in at least float32, −ln p of each token; ``likeliest (B, N)`` bool, whether none was likelier."""

    nll: Tensor
    likeliest: Tensor


@torch.no_grad()
def forced(cell: Cell, logits: Tensor, tokens: Tensor, state: State) -> Forced:
    """Read ``tokens (B, N)`` int64, N at least 1, from ``state``, whose last step gave ``logits (B, V)``.

    Memory is that of a few hundred tokens' logits, whatever N. The last token is not read, only predicted.
    """
    (B, V), N = logits.shape, tokens.shape[1]
    found, step = [judged(logits[:, None], tokens[:, :1])], max(1, LOGITS // (B * V))
    for start in range(0, N - 1, step):
        stop = min(start + step, N - 1)
        more, state = cell(tokens[:, start:stop], state)
        found.append(judged(more, tokens[:, start + 1 : stop + 1]))
    return Forced(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))


def judged(logits: Tensor, tokens: Tensor) -> Forced:
    """``logits (B, t, V)``, and the ``tokens (B, t)`` that followed."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))  # (B, t, V)
    return Forced(cross_entropy(wide.transpose(1, 2), tokens, reduction="none"), wide.argmax(-1) == tokens)
