"""The loop that reads guesses: of a pass over the parameters as many tokens are kept as are right.

Each guess is a row of the batch that starts from the same state, so no mask says who may see whom. A guessed token is right
where it is what is chosen after the ones before it, and the state after the right ones is at hand (``cell.scan``), bounded or
not: nothing is read twice and nothing has to be undone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..state.state import State
from .ngram_pool import Guess
from .speculation_controller import Watch

Choose = Callable[[Tensor], Tensor]
"""``logits (B, V) -> token (B,)``."""


class Guesser(Protocol):
    """Where guesses at one text come from (``guess.py``). Those not out of a pool come first."""

    def branches(self, token: int, room: int) -> list[Guess]: ...

    def learn(self, right: list[int], said: list[list[int]]) -> None: ...


class Accepted(NamedTuple):
    """What one pass over the parameters added.

    Attributes:
        tokens: for each row of the batch the tokens added; none once it has ended.
        state: H, having read them.
        read: for each row, how many tokens the pass read, guesses included.
        pooled: for each row, how many of the tokens added were guessed out of the pool.
    """

    tokens: list[list[int]]
    state: State
    read: list[int]
    pooled: list[int]


@torch.no_grad()
def passes(
    cell: Cell,
    logits: Tensor,
    state: State,
    guessers: Sequence[Guesser],
    choose: Choose,
    ends: frozenset[int],
    count: int,
    watch: Watch | None,
    in_place: bool,
) -> Iterator[Accepted]:
    """Pass after pass, until every row has ``count`` new tokens or one of ``ends``.

    Args:
        logits: ``(B, V)``, after the prompts.
        state: that has read them.
        guessers: one for each row.
        watch: says when guesses are read; None is always.
        in_place: whether ``state`` may move along; otherwise every state is a value of its own.
    """
    B, written = len(guessers), [0] * len(guessers)
    chosen = dict(enumerate(choose(logits).tolist())) if count else {}
    while chosen:
        begin, going = time.perf_counter(), list(chosen)
        guesses = {b: guessers[b].branches(x, 0 if x in ends else count - written[b] - 1) for b, x in chosen.items()}
        contexts = [max((guess.context for guess in guesses[b]), default=None) for b in going]
        guessing = any(guesses.values()) and (watch is None or watch.pays(contexts))
        lines, owner = list[list[int]](), list[int]()
        for b in range(B):
            branches = guesses.get(b, []) if guessing else []
            lines += [[chosen[b], *guess.tokens] for guess in branches] or [[chosen[b]] if b in chosen else []]
            owner += [b] * max(1, len(branches))
        logits, after = _read(cell, state, lines, owner, in_place)
        room = {b: count - written[b] for b in going}
        best, kept, chosen = _walk(logits, lines, owner, room, choose, ends)
        state = after(best, kept)
        said = _said(logits, lines, owner, {b: guesses[b] for b in going} if guessing else {})
        new = [lines[row][:n] for row, n in zip(best, kept, strict=True)]
        pooled = [_pooled(new[b], guesses.get(b, []) if guessing else []) for b in range(B)]
        for b in going:
            guessers[b].learn(new[b][1:], said.get(b, []))
            written[b] += kept[b]
        if watch is not None:
            seconds, gains = time.perf_counter() - begin, [kept[b] - 1 for b in going]
            watch.guessed(seconds, contexts, gains) if guessing else watch.plain(seconds)
        read = [sum(len(line) for line, o in zip(lines, owner, strict=True) if o == b) for b in range(B)]
        yield Accepted(new, state, read, pooled)


def _read(
    cell: Cell, state: State, lines: list[list[int]], owner: list[int], in_place: bool
) -> tuple[Tensor, Callable[[list[int], list[int]], State]]:
    """Every line, from the state of its owner: logits ``(B', T, V)``, and the states after any beginning of any line."""
    B, device = state.clock.shape[0], state.clock.device
    lengths = torch.tensor([len(line) for line in lines], device=device)
    T = int(lengths.amax())
    tokens = torch.tensor([line + [0] * (T - len(line)) for line in lines], device=device)
    if T == 1 and len(owner) == B:
        active = None if all(lines) else lengths > 0
        logits, state = (cell.step_ if in_place else cell.step)(tokens[:, 0], state, active=active)
        return logits[:, None], lambda best, kept: state
    logits, trace = cell.scan(tokens, state if len(owner) == B else state.select(owner), lengths=lengths)

    def after(best: list[int], kept: list[int]) -> State:
        return trace.at(torch.tensor(kept, device=device), torch.tensor(best, device=device))

    return logits, after


def _walk(
    logits: Tensor, lines: list[list[int]], owner: list[int], room: dict[int, int], choose: Choose, ends: frozenset[int]
) -> tuple[list[int], list[int], dict[int, int]]:
    """For each row of the batch: a line that is right the longest, how many of its tokens are, and what was chosen to follow
    them; of rows that have ended nothing was. Tokens are chosen one by one, as plain decoding does: only what is needed is."""
    B = max(owner) + 1
    alive = [[i for i, o in enumerate(owner) if o == b] for b in range(B)]
    kept, chosen = [int(b in room) for b in range(B)], dict[int, int]()
    walking = list(room)
    while walking := [b for b in walking if lines[alive[b][0]][kept[b] - 1] not in ends and kept[b] < room[b]]:
        here = logits[[alive[b][0] for b in walking], [kept[b] - 1 for b in walking]]  # (B', V)
        for b, token in zip(walking, choose(here).tolist(), strict=True):
            stay = [i for i in alive[b] if lines[i][kept[b] : kept[b] + 1] == [token]]
            if stay:
                alive[b], kept[b] = stay, kept[b] + 1
            else:
                chosen[b] = token
        walking = [b for b in walking if b not in chosen]
    return [rows[0] for rows in alive], kept, chosen


def _said(
    logits: Tensor, lines: list[list[int]], owner: list[int], guesses: dict[int, list[Guess]]
) -> dict[int, list[list[int]]]:
    """What the model says after every token of each line that is not out of a pool; these are the first of their rows."""
    said: dict[int, list[list[int]]] = {}
    for b, found in guesses.items():
        first, count = owner.index(b), sum(guess.context == 0 for guess in found)
        tokens = logits[first : first + count].argmax(-1).tolist()
        said[b] = [after[: len(line)] for after, line in zip(tokens, lines[first : first + count], strict=True)]
    return said


def _pooled(new: list[int], guesses: list[Guess]) -> int:
    """How many of the tokens after the first were guessed out of the pool."""
    right = [g for g in guesses if g.context and g.tokens[: len(new) - 1] == new[1:]]
    return len(new) - 1 if right else 0
