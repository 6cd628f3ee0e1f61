"""Verification of the drafts of lookahead and Jacobi decoding.

One forward pass reads all drafts, and the correct tokens are kept. Each draft is one row of the batch and starts from the same
state, so no attention mask is needed. A drafted token is accepted if it equals the token that the sampler chooses after the
tokens before it. ``cell.scan`` supplies the state after the accepted tokens for bounded and unbounded states, so no token is
read twice and no eviction has to be undone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..state.state import State
from .endings import Endings
from .ngram_pool import Draft
from .prompt import Start
from .sampling import Sampler
from .speculation_controller import SpeculationController


class Drafter(Protocol):
    """A source of drafts for one sequence (``drafters.py``). Drafts that are not from a pool come first."""

    def propose(self, token: int, room: int) -> list[Draft]:
        """Return drafts of at most ``room`` tokens that may follow ``token``, the newest token of the sequence."""

    def update(self, accepted: list[int], predictions: list[list[int]]) -> None:
        """Record the accepted draft tokens, and the most likely tokens after each token of each draft not from a pool."""


class Accepted(NamedTuple):
    """Result of one forward pass.

    Attributes:
        tokens: for each sequence the new tokens; empty if the sequence is finished.
        state: H after the new tokens.
        logits: ``(B, V)``, of the token after those that the state has read.
        tokens_read: for each sequence the number of tokens read, drafts included.
        accepted_from_pool: for each sequence the number of new tokens that were drafted from the pool.
    """

    tokens: list[list[int]]
    state: State
    logits: Tensor
    tokens_read: list[int]
    accepted_from_pool: list[int]


@torch.no_grad()
def draft_and_verify(
    cell: Cell,
    start: Start,
    drafters: Sequence[Drafter],
    sampler: Sampler,
    endings: Endings,
    max_new_tokens: int,
    controller: SpeculationController | None,
    in_place: bool,
) -> Iterator[Accepted]:
    """Yield the accepted tokens of each forward pass until every sequence has ``max_new_tokens`` new tokens or has ended.

    Args:
        start: the logits and H after the prompts.
        drafters: one per sequence.
        endings: what ends a sequence.
        controller: decides whether drafts are read; None: always.
        in_place: update ``state`` in place; otherwise every yielded state is a separate value.
    """
    B, state, last = len(drafters), start.state, start.logits
    generated = [0] * B
    unfinished = [b for b, token in enumerate(endings.start(start)) if token is None]
    first = sampler.choose(last) if max_new_tokens and unfinished else []
    chosen = {b: first[b] for b in unfinished if first}  # the next token of each unfinished sequence
    while chosen:
        began = time.perf_counter()
        room = {b: max_new_tokens - generated[b] for b in chosen}  # tokens that each unfinished sequence may still get
        drafts = {b: drafters[b].propose(i, 0 if endings.is_eos(i) else room[b] - 1) for b, i in chosen.items()}
        match_lengths = [max((draft.match_length for draft in found), default=None) for found in drafts.values()]
        speculate = any(drafts.values()) and (controller is None or controller.should_speculate(match_lengths))
        if not speculate:
            drafts = {b: [] for b in chosen}
        candidates, batch_index = _list_candidates(chosen, drafts, B)
        logits, state_after = _read(cell, state, candidates, batch_index, in_place)
        best, counts, chosen = _verify(logits, candidates, batch_index, room, sampler, endings.ends)
        state = state_after(best, counts)
        state.recent_tokens = endings.recent_tokens(None, last.device)
        has_read = torch.tensor([n > 0 for n in counts], device=last.device)
        last = torch.where(has_read[:, None], logits[best, [max(n - 1, 0) for n in counts]], last)
        predictions = _argmax_after(logits, candidates, batch_index, drafts) if speculate else {}
        tokens = [candidates[row][:n] for row, n in zip(best, counts, strict=True)]
        for b in room:
            drafters[b].update(tokens[b][1:], predictions.get(b, []))
            generated[b] += counts[b]
        if controller is not None:
            seconds = _seconds_on_all_ranks(cell, time.perf_counter() - began)
            if speculate:
                controller.record_speculative(seconds, match_lengths, [counts[b] - 1 for b in room])
            else:
                controller.record_plain(seconds)
        tokens_read = [0] * B
        for b, row in zip(batch_index, candidates, strict=True):
            tokens_read[b] += len(row)
        from_pool = [_from_pool(tokens[b], drafts.get(b, [])) for b in range(B)]
        yield Accepted(tokens, state, last, tokens_read, from_pool)


def _list_candidates(chosen: dict[int, int], drafts: dict[int, list[Draft]], B: int) -> tuple[list[list[int]], list[int]]:
    """Return the token sequences that the forward pass reads, and for each the index of its sequence in the batch.

    A candidate is the chosen token followed by a draft, or the chosen token alone if there are no drafts. A finished sequence
    has one empty candidate.
    """
    candidates, batch_index = list[list[int]](), list[int]()
    for b in range(B):
        rows = [[chosen[b], *draft.tokens] for draft in drafts.get(b, [])]
        rows = rows or ([[chosen[b]]] if b in chosen else [[]])
        candidates += rows
        batch_index += [b] * len(rows)
    return candidates, batch_index


def _seconds_on_all_ranks(cell: Cell, seconds: float) -> float:
    """Return the time that rank 0 has measured, because all ranks of a split cell have to make the same decisions."""
    if cell.rank_part is None:
        return seconds
    return float(cell.rank_part.ranks.broadcast_(torch.tensor([seconds], dtype=torch.float64, device=cell.device), "seconds"))


def _read(
    cell: Cell, state: State, candidates: list[list[int]], batch_index: list[int], in_place: bool
) -> tuple[Tensor, Callable[[list[int], list[int]], State]]:
    """Read every candidate from the state of its sequence.

    Returns:
        The logits ``(B', T, V)``, and a function that returns the state after the first ``counts[b]`` tokens of the candidate
        ``best[b]`` of each sequence.
    """
    B, device = state.clock.shape[0], state.clock.device
    lengths = torch.tensor([len(row) for row in candidates], device=device)
    T = int(lengths.amax())
    tokens = torch.tensor([row + [0] * (T - len(row)) for row in candidates], device=device)
    if T == 1 and len(candidates) == B:
        active = None if all(candidates) else lengths > 0
        logits, state = (cell.step_ if in_place else cell.step)(tokens[:, 0], state, active=active)
        return logits[:, None], lambda best, counts: state
    logits, trace = cell.scan(tokens, state if len(candidates) == B else state.select(batch_index), lengths=lengths)

    def state_after(best: list[int], counts: list[int]) -> State:
        return trace.at(torch.tensor(counts, device=device), torch.tensor(best, device=device))

    return logits, state_after


def _verify(
    logits: Tensor,
    candidates: list[list[int]],
    batch_index: list[int],
    room: dict[int, int],
    sampler: Sampler,
    ends: Callable[[int, int], bool],
) -> tuple[list[int], list[int], dict[int, int]]:
    """Accept the longest correct prefix among the candidates of each sequence.

    ``ends(b, token)`` is called once for each accepted token, in order, and returns True if the token ends sequence b.

    The sampler is called once per accepted token, in the order of plain decoding. The random generator is therefore left in the
    same state as after plain decoding.

    Returns:
        For each sequence the index of the best candidate and the number of its accepted tokens; and for each unfinished
        sequence the next token.
    """
    B = max(batch_index) + 1
    matching = [[row for row, i in enumerate(batch_index) if i == b] for b in range(B)]
    counts, chosen = [int(b in room) for b in range(B)], dict[int, int]()
    open_ = list(room)
    while open_ := [b for b in open_ if not ends(b, candidates[matching[b][0]][counts[b] - 1]) and counts[b] < room[b]]:
        last = logits[[matching[b][0] for b in open_], [counts[b] - 1 for b in open_]]  # (B', V)
        for b, token in zip(open_, sampler.choose(last), strict=True):
            agreeing = [row for row in matching[b] if candidates[row][counts[b] : counts[b] + 1] == [token]]
            if agreeing:
                matching[b], counts[b] = agreeing, counts[b] + 1
            else:
                chosen[b] = token
        open_ = [b for b in open_ if b not in chosen]
    return [rows[0] for rows in matching], counts, chosen


def _argmax_after(
    logits: Tensor, candidates: list[list[int]], batch_index: list[int], drafts: dict[int, list[Draft]]
) -> dict[int, list[list[int]]]:
    """Return the model's most likely token after each token of each candidate; candidates from a pool are omitted."""
    predictions: dict[int, list[list[int]]] = {}
    for b, found in drafts.items():
        first = batch_index.index(b)
        rows = slice(first, first + sum(draft.match_length == 0 for draft in found))  # these come first
        tokens = logits[rows].argmax(-1).tolist()
        predictions[b] = [after[: len(row)] for after, row in zip(tokens, candidates[rows], strict=True)]
    return predictions


def _from_pool(tokens: list[int], drafts: list[Draft]) -> int:
    """Return the number of tokens after the first if a draft from the pool contains all of them, otherwise 0."""
    found = any(draft.match_length and draft.tokens[: len(tokens) - 1] == tokens[1:] for draft in drafts)
    return len(tokens) - 1 if found else 0
