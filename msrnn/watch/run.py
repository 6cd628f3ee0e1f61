"""A text under one operator: the prompt, its greedy continuation, and what the cell computed at every token."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..decoding.generate import stream
from ..errors import Error
from ..reductions.contract import Reduction
from ..reductions.shared_budget import SharedBudget
from ..state.state import State
from .observe import ObservedLayer, observe
from .record import RecordedLayer, RecordedPart

OnStep = Callable[[Sequence[int], Tensor, Sequence[ObservedLayer]], None]
TOP_TOKENS = 8
"""Number of most probable next tokens that are recorded."""
PART_TOKENS = 256
"""Number of tokens that are read at once, because logits, and scores and weights of all rows, take much memory."""


@dataclass(frozen=True)
class ObservedRun:
    """What the cell computed at each of T tokens.

    Attributes:
        operator: the operator.
        ids: the T tokens, prompt and continuation.
        layers: scores, weights and evictions of each layer.
        top_ids, top_probabilities: ``(T, n)``, the most probable next tokens after each token.
        next_probability: ``(T,)``, of the token that follows in the text; NaN after the last one.
    """

    operator: Reduction
    ids: list[int]
    layers: list[RecordedLayer]
    top_ids: Tensor
    top_probabilities: Tensor
    next_probability: Tensor


def check_observable(cell: Cell, operator: Reduction) -> None:
    """Refuse an operator that cannot be observed.

    Raises:
        Error: it does not fit the cell, or heads share a budget.
    """
    if shared := [x for x in cell.operators_per_layer(operator) if isinstance(x, SharedBudget)]:
        raise Error(f"{shared[0]} evicts several rows of a head at one token; expected an operator that evicts one, to show it")


@torch.no_grad()
def observe_run(
    cell: Cell, prompt: Sequence[int], operator: Reduction, max_new_tokens: int, on_step: OnStep | None = None
) -> ObservedRun:
    """Continue ``prompt`` greedily by at most ``max_new_tokens`` tokens, and read the whole text again with all scores.

    ``on_step`` is called after the prompt and after each new token, with the tokens so far, the logits ``(V,)`` after them,
    and the layers as they have read the last token. This is slower.

    Raises:
        Error: the prompt has no token, heads share a budget, or as :meth:`Cell.scan`.
    """
    if not prompt:
        raise Error("the prompt has no tokens; expected at least one")
    check_observable(cell, operator)
    ids = list(prompt)
    if on_step is not None:
        ids = _generate_observed(cell, ids, operator, max_new_tokens, on_step)
    elif max_new_tokens:
        start, ends = cell.initial_state(1, operator), cell.config.eos_token_ids
        tokens = torch.tensor([ids], device=start.clock.device)
        ids += [int(step.token) for step in stream(cell, tokens, start, max_new_tokens=max_new_tokens, eos_token_id=ends)]
    start, n = cell.initial_state(1, operator), 0
    parts, predictions = list[list[RecordedPart]](), list[tuple[Tensor, Tensor, Tensor]]()
    for logits, layers, _ in observe_in_parts(cell, ids, start):
        parts.append([RecordedPart.of(layer) for layer in layers])
        predictions.append(next_tokens(logits, ids[n + 1 :]))
        n += len(logits)
    recorded = [RecordedLayer.of(H.reduction, of_layer) for H, *of_layer in zip(start, *parts, strict=True)]
    return ObservedRun(operator, ids, recorded, *(torch.cat(x) for x in zip(*predictions, strict=True)))


def observe_in_parts(cell: Cell, ids: Sequence[int], state: State) -> Iterator[tuple[Tensor, list[ObservedLayer], State]]:
    """Read ``ids`` after ``state``, ``PART_TOKENS`` at once, and yield what :func:`~msrnn.watch.observe.observe` returns."""
    for first in range(0, len(ids), PART_TOKENS):
        tokens = torch.tensor([ids[first : first + PART_TOKENS]], device=state.clock.device)
        logits, layers, state = observe(cell, tokens, state)
        yield logits, layers, state


def _generate_observed(cell: Cell, ids: list[int], operator: Reduction, max_new_tokens: int, on_step: OnStep) -> list[int]:
    """Return ``ids`` and their greedy continuation, with ``on_step`` as in :func:`observe_run`."""
    state, ids, stop = cell.initial_state(1, operator), list(ids), len(ids) + max_new_tokens
    new = ids
    while True:
        ((logits, layers, state),) = deque(observe_in_parts(cell, new, state), maxlen=1)  # earlier parts are freed
        on_step(ids, logits[-1], layers)
        if len(ids) == stop or (ids[-1] in cell.config.eos_token_ids and new is not ids):
            return ids
        new = [int(logits[-1].argmax())]
        ids.extend(new)


def next_tokens(logits: Tensor, following: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the most probable next tokens after each token, their probabilities, and that of the actual next token.

    Args:
        logits: ``(T, V)``.
        following: the tokens after each of the T tokens; NaN is returned where there is none.
    """
    probabilities = logits.float().softmax(-1)
    top = probabilities.topk(min(TOP_TOKENS, logits.shape[-1]))
    ids = torch.tensor(following[: len(logits)], dtype=torch.int64, device=logits.device)
    actual = probabilities.new_full((len(logits),), torch.nan)
    actual[: len(ids)] = probabilities[: len(ids)].gather(1, ids[:, None])[:, 0]
    return top.indices, top.values, actual


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
