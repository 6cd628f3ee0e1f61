r"""Log-probabilities of given tokens, with gradients: the same at rollout and in training.

The many-token path gives the result of the step loop, evictions included. So the log-probability with which
:func:`msrnn.generate` has sampled a token under a bounded H is the one that is computed here, up to rounding, and not that of
a model with another KV cache.
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..cell.validation import check_device_of_ids, check_text
from ..errors import Error, check_number, describe
from ..reductions.contract import Reduction
from ..state.state import State
from .sampling import apply_temperature, as_python_number

MAX_LOGITS = 2**24
"""Approximate maximum number of logits that one call of the cell computes: 64 MB in float32."""


def log_probs(
    cell: Cell,
    tokens: Tensor,
    state: State | None = None,
    *,
    reduction: Reduction | str | Sequence[Reduction | str] | None = None,
    logits: Tensor | None = None,
    lengths: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return the log-probability of each token given the tokens before it, read by the many-token path.

    Gradients flow to trainable parameters, to ``logits`` and to ``state``, through the attention outputs and not through the
    choice of evicted rows. Use ``torch.no_grad()`` for a reference model.

    Args:
        cell: the cell.
        tokens: ``(B, T)`` int64, right-padded if ragged.
        state: H before the tokens. None: an empty state.
        reduction: the operator of the empty state; None: that of the model family.
        logits: ``(B, V)``, those of the first token, which belong to ``state``: ``cell(prompt, state, last_only=True)``.
        lengths: ``(B,)`` int64, number of tokens of each row. None: T.
        temperature: the logits are divided by it, as in sampling.

    Returns:
        ``(B, T)``, in at least float32; NaN past the end of a row, and at the first token if ``logits`` is None. Select before
        a sum: ``x[mask].sum()``.

    Raises:
        Error: as a call of the cell; both ``state`` and ``reduction``; ``logits`` of another shape; a temperature that is not
            above 0.
    """
    temperature = as_python_number(temperature)
    check_number("temperature", temperature, above=0, at_most=sys.float_info.max)
    if state is not None and reduction is not None:
        raise Error("state and reduction are both given; expected one, because a state has its operator")
    tokens, lengths = check_text(tokens, lengths, cell.config.vocab_size)
    check_device_of_ids("tokens are", tokens, cell.device)
    B, T = tokens.shape
    state = cell.initial_state(B, reduction) if state is None else state
    cell.check_state(state, B)
    if logits is not None and (not isinstance(logits, Tensor) or logits.shape != (B, cell.config.vocab_size)):
        raise Error(f"logits are {describe(logits)}; expected the logits of the first token, {(B, cell.config.vocab_size)}")
    if logits is not None:
        check_device_of_ids("logits are", logits, cell.device)
    wide = torch.promote_types(cell.dtype, torch.float32)
    first = torch.full((B, min(T, 1)), torch.nan, dtype=wide, device=tokens.device)
    parts, length = [first if logits is None or not T else _chosen(logits[:, None], tokens[:, :1], temperature)], T - 1
    step = max(1, MAX_LOGITS // max(1, B * cell.config.vocab_size))
    for begin in range(0, length, step):
        end = min(begin + step, length)
        now = (lengths - 1 - begin).clamp(0, end - begin)  # the last token is predicted and not read
        read, state = cell(tokens[:, begin:end], state, lengths=now)
        parts.append(_chosen(read, tokens[:, begin + 1 : end + 1], temperature))
    padding = torch.arange(T, device=tokens.device) >= lengths[:, None]  # (B, T)
    return torch.cat(parts, dim=1).masked_fill(padding, torch.nan)


def _chosen(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Return ln p of ``tokens (B, t)`` under ``logits (B, t, V)``. Rows of NaN, which are padding, give NaN."""
    return apply_temperature(logits, temperature).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
