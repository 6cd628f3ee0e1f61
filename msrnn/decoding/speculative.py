"""Speculative decoding: Jacobi and lookahead decoding generate the tokens of plain decoding in fewer forward passes.

``drafters.py`` proposes drafts, from the model's predictions and from an n-gram pool. ``verification.py`` reads many drafts
in one forward pass and accepts the correct tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error, check_int
from ..state.state import State
from .drafters import JacobiDrafter, NgramDrafter
from .generate import GenerationSettings, eos_ids, list_shared_settings, read_prompt
from .ngram_pool import NgramPool
from .sampling import as_python_number, make_sampler
from .speculation_controller import SpeculationController
from .verification import Accepted, Drafter, draft_and_verify

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_WINDOW, DEFAULT_NGRAM = 0, 13
"""Fast on a CPU, where a forward pass of 12 tokens takes little longer than one of a single token."""


@dataclass(frozen=True)
class SpeculationStats:
    """Counts per forward pass after the prompt, called a step here.

    Attributes:
        accepted: new tokens, ``(steps, B)`` int64; 0 once a row is finished.
        tokens_read: tokens read, drafts included, ``(steps, B)`` int64.
        accepted_from_pool: new tokens that were drafted from the pool, ``(steps, B)`` int64.
    """

    accepted: Tensor
    tokens_read: Tensor
    accepted_from_pool: Tensor

    @property
    def steps(self) -> int:
        """Number of forward passes."""
        return len(self.accepted)

    @property
    def tokens_per_step(self) -> float:
        """Mean number of new tokens per forward pass of an unfinished row; 1 for plain decoding."""
        return float(self.accepted.sum()) / max(1, int((self.accepted > 0).sum()))

    @property
    def hits(self) -> int:
        """Number of forward passes, summed over the rows, that accepted a draft from the pool."""
        return int((self.accepted_from_pool > 0).sum())


@list_shared_settings
def jacobi(
    cell: Cell,
    tokens: Tensor,
    state: State | None = None,
    *,
    max_new_tokens: int,
    block: int = 8,
    **settings: "Unpack[GenerationSettings]",
) -> tuple[Tensor, State, SpeculationStats]:
    """Generate by fixed-point iteration on a block of drafted tokens (Jacobi decoding, arXiv:2305.10427).

    Each forward pass replaces every token of the block by the model's prediction after the tokens before it. After j forward
    passes at least the first j tokens are those of greedy decoding, for any initial block. Correct tokens are accepted, and the
    block moves to their end.

    Args:
        cell, tokens, state, max_new_tokens: see :func:`msrnn.generate`.
        block: number of tokens read per forward pass.
        settings: the other arguments of :func:`msrnn.generate`.

    Returns:
        The new tokens ``(B, N)`` int64 and the state, as :func:`msrnn.generate` returns them, and the
        :class:`SpeculationStats`.

    Raises:
        Error: ``block`` is below 1; also the errors of :func:`msrnn.generate`.
    """
    return _collect(tokens, *_start(cell, tokens, state, max_new_tokens, _jacobi_drafter(block), in_place=True, **settings))


@list_shared_settings
def stream_jacobi(
    cell: Cell,
    tokens: Tensor,
    state: State | None = None,
    *,
    max_new_tokens: int,
    block: int = 8,
    **settings: "Unpack[GenerationSettings]",
) -> Iterator[Accepted]:
    """Yield the result of each forward pass of :func:`jacobi` (:class:`~msrnn.decoding.verification.Accepted`).

    The arguments and errors are those of :func:`jacobi`. Every state is a separate value, as in :func:`msrnn.stream`.
    """
    return _start(cell, tokens, state, max_new_tokens, _jacobi_drafter(block), in_place=False, **settings)[1]


@list_shared_settings
def lookahead(
    cell: Cell,
    tokens: Tensor,
    state: State | None = None,
    *,
    max_new_tokens: int,
    window: int = DEFAULT_WINDOW,
    ngram: int = DEFAULT_NGRAM,
    guesses: int | Literal["auto"] = "auto",
    pool: NgramPool | None = None,
    **settings: "Unpack[GenerationSettings]",
) -> tuple[Tensor, State, SpeculationStats]:
    """Generate by lookahead decoding (arXiv:2402.02057): drafts are n-grams of the prompt, the answer and trajectories.

    Each forward pass verifies up to ``guesses`` n-grams that match the end of the text. It also extends ``window`` trajectories
    (``drafters.py``) by one token each. ``window=0`` is prompt lookup. ``window=15, ngram=5, guesses=15`` (W, N and G) is the
    paper's setting for 7B parameters on a GPU.

    With ``do_sample`` tokens are sampled one after the other, and a drafted token is accepted if it equals the sampled token.
    The output has the distribution of :func:`msrnn.generate`. For one sequence (B = 1) and equal generators the tokens are
    identical.

    Args:
        cell, tokens, state, max_new_tokens: see :func:`msrnn.generate`.
        window: number of trajectories; 0 is none.
        ngram: number of tokens of an n-gram. The last matching token is included, so a draft has ``ngram - 1`` tokens.
        guesses: maximum number of n-grams that a forward pass verifies for each row; 0 is none. "auto" is 1, and only while
            drafts save time (``speculation_controller.py``).
        pool: the n-gram pool, which is extended; None is a new pool. A pool can be passed from call to call.
        settings: the other arguments of :func:`msrnn.generate`.

    Returns:
        The new tokens ``(B, N)`` int64 and the state, as :func:`msrnn.generate` returns them, and the
        :class:`SpeculationStats`.

    Raises:
        Error: ``window`` or ``guesses`` is below 0, ``ngram`` is below 2, or the pool holds ids outside the vocabulary; also
            the errors of :func:`msrnn.generate`.
    """
    factory = _ngram_drafter(cell, window, ngram, guesses, pool)
    return _collect(tokens, *_start(cell, tokens, state, max_new_tokens, factory, in_place=True, **settings))


@list_shared_settings
def stream_lookahead(
    cell: Cell,
    tokens: Tensor,
    state: State | None = None,
    *,
    max_new_tokens: int,
    window: int = DEFAULT_WINDOW,
    ngram: int = DEFAULT_NGRAM,
    guesses: int | Literal["auto"] = "auto",
    pool: NgramPool | None = None,
    **settings: "Unpack[GenerationSettings]",
) -> Iterator[Accepted]:
    """Yield the result of each forward pass of :func:`lookahead` (:class:`~msrnn.decoding.verification.Accepted`).

    The arguments and errors are those of :func:`lookahead`. Every state is a separate value, as in :func:`msrnn.stream`.
    """
    factory = _ngram_drafter(cell, window, ngram, guesses, pool)
    return _start(cell, tokens, state, max_new_tokens, factory, in_place=False, **settings)[1]


DrafterFactory = tuple[Callable[[list[int]], Drafter], SpeculationController | None]
"""A function from prompt ids to a drafter, and the controller; None: drafts are read in every forward pass."""


def _jacobi_drafter(block: int) -> DrafterFactory:
    block = as_python_number(block)
    check_int("block", block)
    return lambda _: JacobiDrafter(block - 1), None


def _ngram_drafter(cell: Cell, window: int, ngram: int, guesses: int | str, pool: NgramPool | None) -> DrafterFactory:
    window, ngram = as_python_number(window), as_python_number(ngram)
    check_int("window", window, at_least=0)
    check_int("ngram", ngram, at_least=2)
    controller = SpeculationController() if guesses == "auto" else None
    max_drafts: Any = 1 if guesses == "auto" else as_python_number(guesses)
    if isinstance(max_drafts, str):
        raise Error(f'guesses is {guesses!r:.60}; expected an int of at least 0 or "auto"')
    check_int("guesses", max_drafts, at_least=0)
    if pool is not None and not isinstance(pool, NgramPool):
        raise Error(f"pool is {pool!r:.60}; expected an NgramPool")
    if pool is not None and pool.max_token_id >= cell.config.vocab_size:
        raise Error(
            f"pool holds token id {pool.max_token_id}; expected ids below {cell.config.vocab_size}, the vocabulary size"
        )
    ngrams = NgramPool() if pool is None else pool
    return lambda text: NgramDrafter(text, window, ngram - 1, max_drafts, ngrams), controller


def _start(
    cell: Cell,
    tokens: Tensor,
    state: State | None,
    max_new_tokens: int,
    factory: DrafterFactory,
    *,
    in_place: bool,
    lengths: Tensor | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    **sampling: Any,
) -> tuple[State, Iterator[Accepted]]:
    """Read the prompt; return the state after it and the iterator over forward passes."""
    sampler, eos = make_sampler(**sampling), frozenset(eos_ids(cell, eos_token_id).tolist())
    with torch.no_grad():
        logits, state = read_prompt(cell, tokens, state, lengths, max_new_tokens)
    real = [tokens.shape[1]] * len(tokens) if lengths is None else lengths.tolist()
    make_drafter, controller = factory
    drafters = [make_drafter(text[:n]) for text, n in zip(tokens.tolist(), real, strict=True)]
    return state, draft_and_verify(cell, logits, state, drafters, sampler, eos, max_new_tokens, controller, in_place)


def _collect(prompt: Tensor, state: State, passes: Iterator[Accepted]) -> tuple[Tensor, State, SpeculationStats]:
    """Run all forward passes; return the new tokens ``(B, N)``, the last state and the counts."""
    B, new, counts = len(prompt), [list[int]() for _ in prompt], list[list[list[int]]]()
    for accepted in passes:
        state = accepted.state
        for row, added in zip(new, accepted.tokens, strict=True):
            row += added
        counts.append([[len(tokens) for tokens in accepted.tokens], accepted.tokens_read, accepted.accepted_from_pool])
    N = max(map(len, new))
    tokens = prompt.new_tensor([row + row[-1:] * (N - len(row)) for row in new]).view(B, N)  # a finished row repeats its eos
    return tokens, state, SpeculationStats(*prompt.new_tensor(counts).view(-1, 3, B).unbind(1))
