"""A text under one operator: the prompt, its greedy continuation, and what the cell computed at every token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..decoding.generate import stream
from ..errors import Error
from ..reductions.contract import Reduction
from .observe import ObservedLayer, observe

OnStep = Callable[[Sequence[int], Tensor, Sequence[ObservedLayer]], None]
TOP_TOKENS = 8
"""Number of most probable next tokens that are recorded."""


@dataclass(frozen=True)
class ObservedRun:
    """What the cell computed at each of T tokens.

    Attributes:
        operator: the operator.
        ids: the T tokens, prompt and continuation.
        layers: scores, weights and evictions.
        top_ids, top_probabilities: ``(T, n)``, the most probable next tokens after each token.
        next_probability: ``(T,)``, of the token that follows in the text; NaN after the last one.
    """

    operator: Reduction
    ids: list[int]
    layers: list[ObservedLayer]
    top_ids: Tensor
    top_probabilities: Tensor
    next_probability: Tensor


@torch.no_grad()
def observe_run(
    cell: Cell, prompt: Sequence[int], operator: Reduction, max_new_tokens: int, on_step: OnStep | None = None
) -> ObservedRun:
    """Continue ``prompt`` greedily by at most ``max_new_tokens`` tokens, and read the whole text again with all scores.

    ``on_step`` is called after the prompt and after each new token, with the tokens so far, the logits ``(V,)`` after them,
    and the layers as they have read the last token. This is slower.

    Raises:
        Error: the prompt has no token, or as :meth:`Cell.scan`.
    """
    if not prompt:
        raise Error("the prompt has no tokens; expected at least one")
    ids = list(prompt)
    if on_step is not None:
        ids = _generate_observed(cell, ids, operator, max_new_tokens, on_step)
    elif max_new_tokens:
        start, ends = cell.initial_state(1, operator), cell.config.eos_token_ids
        tokens = torch.tensor([ids], device=start.clock.device)
        ids += [int(step.token) for step in stream(cell, tokens, start, max_new_tokens=max_new_tokens, eos_token_id=ends)]
    state = cell.initial_state(1, operator)
    tokens = torch.tensor([ids], device=state.clock.device)
    logits, layers, _ = observe(cell, tokens, state)
    return ObservedRun(operator, ids, layers, *next_tokens(logits, tokens[0]))


def _generate_observed(cell: Cell, ids: list[int], operator: Reduction, max_new_tokens: int, on_step: OnStep) -> list[int]:
    """Return ``ids`` and their greedy continuation, with ``on_step`` as in :func:`observe_run`."""
    state, ids, stop = cell.initial_state(1, operator), list(ids), len(ids) + max_new_tokens
    new = ids
    while True:
        logits, layers, state = observe(cell, torch.tensor([new], device=state.clock.device), state)
        on_step(ids, logits[-1], layers)
        if len(ids) == stop or (ids[-1] in cell.config.eos_token_ids and new is not ids):
            return ids
        new = [int(logits[-1].argmax())]
        ids.extend(new)


def next_tokens(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the most probable next tokens after each token, their probabilities, and that of the actual next token.

    Args:
        logits: ``(T, V)``.
        ids: ``(T,)``.
    """
    probabilities = logits.float().softmax(-1)
    top = probabilities.topk(min(TOP_TOKENS, logits.shape[-1]))
    actual = probabilities[:-1].gather(1, ids[1:, None])[:, 0]
    return top.indices, top.values, torch.cat((actual, actual.new_full((1,), torch.nan)))


def predictions_differ(one: ObservedRun, other: ObservedRun) -> int | None:
    """Return the first token after which the most probable next tokens differ, while the texts are the same; None if none."""
    for t, (a, b) in enumerate(zip(one.ids, other.ids, strict=False)):
        if a != b:
            return None
        if int(one.top_ids[t, 0]) != int(other.top_ids[t, 0]):
            return t
    return None


def texts_differ(one: ObservedRun, other: ObservedRun) -> int | None:
    """Return the first position at which two texts differ, because of another token or an end; None if they are equal."""
    if one.ids == other.ids:
        return None
    pairs = zip(one.ids, other.ids, strict=False)
    return next((p for p, (a, b) in enumerate(pairs) if a != b), min(len(one.ids), len(other.ids)))
