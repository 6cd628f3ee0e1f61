"""Decoding that breaks the one-token-at-a-time order and gives, token for token, what plain decoding gives.

Guesses are read many at a time (``passes.py``); they come from the model's own trajectories and from texts (``guess.py``).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error
from ..state.state import State
from .drafters import Jacobi, Phrases
from .generate import eos_ids, read_prompt
from .ngram_pool import Pool
from .sampling import chooser, is_whole
from .speculation_controller import Watch
from .verification import Accepted, Choose, Guesser, passes

WINDOW, NGRAM = 0, 13
"""What pays on a CPU, where a pass of some twelve tokens takes little longer than one of a single token."""


@dataclass(frozen=True)
class Record:
    """How a text came about. A step is one pass over the parameters after the prompt.

    Attributes:
        accepted: ``(steps, B)`` int64, the tokens that each step added to each row; 0 once a row has ended.
        read: ``(steps, B)`` int64, the tokens that it read for each row, guesses included.
        pooled: ``(steps, B)`` int64, how many of the tokens added were guessed out of the pool.
    """

    accepted: Tensor
    read: Tensor
    pooled: Tensor

    @property
    def steps(self) -> int:
        return len(self.accepted)

    @property
    def tokens_per_step(self) -> float:
        """The mean over steps and rows, as long as a row goes on; plain decoding has 1."""
        return float(self.accepted.sum()) / max(1, int((self.accepted > 0).sum()))

    @property
    def hits(self) -> int:
        """Steps, counted for each row, in which the pool knew what came next."""
        return int((self.pooled > 0).sum())


def jacobi(
    cell: Cell,
    tokens: Tensor,
    state: State | None = None,
    *,
    max_new_tokens: int,
    block: int = 8,
    lengths: Tensor | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, State, Record]:
    """Decoding by fixed-point iteration on a block of guesses (Jacobi decoding, arXiv:2305.10427).

    Every pass replaces each guess by what the model says after the ones before it. After j passes the first j tokens at least
    are greedy's, whatever the first guesses; those found right are kept, and the block moves on behind them.

    Args:
        cell, tokens, state, max_new_tokens, lengths, eos_token_id: as of :func:`msrnn.generate`.
        block: tokens read at once.
        do_sample, temperature, top_k, top_p, generator: as of :func:`msrnn.generate`.

    Returns:
        The new tokens ``(B, N)`` and the state, both as :func:`msrnn.generate` gives them; and the :class:`Record`.

    Raises:
        Error: as :func:`msrnn.generate`; a block below 1.
    """
    choose = chooser(do_sample, temperature, top_k, top_p, generator)
    guessing = _jacobi(block)
    return _collected(tokens, *_begin(cell, tokens, state, max_new_tokens, guessing, lengths, choose, eos_token_id, True))


def stream_jacobi(
    cell: Cell,
    tokens: Tensor,
    state: State | None = None,
    *,
    max_new_tokens: int,
    block: int = 8,
    lengths: Tensor | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Accepted]:
    """:func:`jacobi`, pass by pass (:class:`~msrnn.decoding.verification.Accepted`); each state is a value of its own, as of
    :func:`msrnn.stream`. Arguments and refusals are those of :func:`jacobi`."""
    choose = chooser(do_sample, temperature, top_k, top_p, generator)
    return _begin(cell, tokens, state, max_new_tokens, _jacobi(block), lengths, choose, eos_token_id, False)[1]


def lookahead(
    cell: Cell,
    tokens: Tensor,
    state: State | None = None,
    *,
    max_new_tokens: int,
    window: int = WINDOW,
    ngram: int = NGRAM,
    guesses: int | Literal["auto"] = "auto",
    pool: Pool | None = None,
    lengths: Tensor | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, State, Record]:
    """Lookahead decoding (arXiv:2402.02057): guesses are n-grams of the prompt, of the answer and of the model's trajectories.

    Every pass reads, side by side, up to ``guesses`` n-grams that begin as the text ends, and the ends of ``window``
    trajectories, which grow by a token each (``guess.py``). ``window=0`` is prompt lookup; ``window=15, ngram=5, guesses=15``
    is what the paper takes for 7B parameters on a GPU.

    Tokens that are drawn (``do_sample``) are drawn one after the other, each from the distribution after those before it, and a
    guess is right where it is what was drawn. So they are distributed as :func:`msrnn.generate` draws them; and of one sequence
    (B = 1) they are those very tokens, if the generator is the same.

    Args:
        cell, tokens, state, max_new_tokens, lengths, eos_token_id: as of :func:`msrnn.generate`.
        window: how many trajectories grow at a time; 0 is none.
        ngram: tokens of an n-gram, the one before the guess included.
        guesses: how many n-grams a pass reads for each row, 0 is none; "auto": one, and only where it pays (``watch.py``).
        pool: where n-grams are found and kept; None is a new one. It may be handed on from call to call.
        do_sample, temperature, top_k, top_p, generator: as of :func:`msrnn.generate`.

    Returns:
        The new tokens ``(B, N)`` and the state, both as :func:`msrnn.generate` gives them; and the :class:`Record`.

    Raises:
        Error: as :func:`msrnn.generate`; a window or guesses below 0, an n-gram below 2, a pool of another vocabulary.
    """
    choose = chooser(do_sample, temperature, top_k, top_p, generator)
    guessing = _phrases(cell, window, ngram, guesses, pool)
    return _collected(tokens, *_begin(cell, tokens, state, max_new_tokens, guessing, lengths, choose, eos_token_id, True))


def stream_lookahead(
    cell: Cell,
    tokens: Tensor,
    state: State | None = None,
    *,
    max_new_tokens: int,
    window: int = WINDOW,
    ngram: int = NGRAM,
    guesses: int | Literal["auto"] = "auto",
    pool: Pool | None = None,
    lengths: Tensor | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Accepted]:
    """:func:`lookahead`, pass by pass (:class:`~msrnn.decoding.verification.Accepted`); each state is a value of its own, as of
    :func:`msrnn.stream`. Arguments and refusals are those of :func:`lookahead`."""
    choose = chooser(do_sample, temperature, top_k, top_p, generator)
    guessing = _phrases(cell, window, ngram, guesses, pool)
    return _begin(cell, tokens, state, max_new_tokens, guessing, lengths, choose, eos_token_id, False)[1]


Guessing = tuple[Callable[[list[int]], Guesser], Watch | None]
"""What guesses at a prompt's continuation, and who says when to."""


def _jacobi(block: int) -> Guessing:
    if not is_whole(block) or block < 1:
        raise Error(f"block is {block!r:.60}; expected a whole number of at least 1")
    return lambda _: Jacobi(block - 1), None


def _phrases(cell: Cell, window: int, ngram: int, guesses: int | str, pool: Pool | None) -> Guessing:
    for name, value, least in (("window", window, 0), ("ngram", ngram, 2), ("guesses", guesses, 0)):
        if not ((is_whole(value) and value >= least) or (name, value) == ("guesses", "auto")):
            also = ' or "auto"' if name == "guesses" else ""
            raise Error(f"{name} is {value!r:.60}; expected a whole number of at least {least}{also}")
    if pool is not None and not isinstance(pool, Pool):
        raise Error(f"pool is {pool!r:.60}; expected a Pool")
    if pool is not None and pool.largest >= cell.config.vocab_size:
        raise Error(f"the pool holds token id {pool.largest}; the vocabulary has {cell.config.vocab_size}")
    known = Pool() if pool is None else pool
    most = guesses if is_whole(guesses) else 1
    return lambda text: Phrases(text, window, ngram - 1, most, known), None if is_whole(guesses) else Watch()


def _begin(
    cell: Cell,
    tokens: Tensor,
    state: State | None,
    count: int,
    guessing: Guessing,
    lengths: Tensor | None,
    choose: Choose,
    eos: int | Sequence[int] | None,
    in_place: bool,
) -> tuple[State, Iterator[Accepted]]:
    """Read the prompt: the state after it, and the passes to come."""
    ends, (guesser, watch) = frozenset(eos_ids(cell, eos).tolist()), guessing
    with torch.no_grad():
        logits, state = read_prompt(cell, tokens, state, lengths, count)
    real = [tokens.shape[1]] * len(tokens) if lengths is None else lengths.tolist()
    guessers = [guesser(text[:n]) for text, n in zip(tokens.tolist(), real, strict=True)]
    return state, passes(cell, logits, state, guessers, choose, ends, count, watch, in_place)


def _collected(prompt: Tensor, state: State, steps: Iterator[Accepted]) -> tuple[Tensor, State, Record]:
    B = len(prompt)
    new, accepted, read, pooled = [list[int]() for _ in range(B)], list[list[int]](), list[list[int]](), list[list[int]]()
    for step in steps:
        state = step.state
        for row, tokens in zip(new, step.tokens, strict=True):
            row += tokens
        accepted.append([len(tokens) for tokens in step.tokens])
        read.append(step.read)
        pooled.append(step.pooled)
    N = max(map(len, new))
    whole = prompt.new_tensor([row + row[-1:] * (N - len(row)) for row in new]).view(B, N)  # a row that ended repeats its end
    return whole, state, Record(*(prompt.new_tensor(x).view(-1, B) for x in (accepted, read, pooled)))
