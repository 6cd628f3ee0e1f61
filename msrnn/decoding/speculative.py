"""Speculative decoding: Jacobi and lookahead decoding generate the tokens of plain decoding in fewer forward passes.

``drafters.py`` proposes drafts, from the model's predictions and from an n-gram pool. ``verification.py`` reads many drafts
in one forward pass and accepts the correct tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error, check_int
from ..state.state import State
from .drafters import JacobiDrafter, NgramDrafter
from .endings import Endings
from .generate import GenerationSettings, list_shared_settings
from .ngram_pool import NgramPool
from .prompt import Start, read_prompt
from .sampling import as_python_number, make_sampler
from .speculation_controller import SpeculationController
from .speculation_result import SpeculativelyGenerated, collect
from .verification import Accepted, Drafter, draft_and_verify

if TYPE_CHECKING:
    import tokenizers
    from typing_extensions import Unpack

DEFAULT_WINDOW, DEFAULT_NGRAM = 0, 13
"""Fast on a CPU, where a forward pass of 12 tokens takes little longer than one of a single token."""


@list_shared_settings
def jacobi(
    cell: Cell,
    tokens: Tensor | None = None,
    state: State | None = None,
    *,
    max_new_tokens: int,
    block: int = 8,
    **settings: "Unpack[GenerationSettings]",
) -> SpeculativelyGenerated:
    """Generate by fixed-point iteration on a block of drafted tokens (Jacobi decoding, arXiv:2305.10427).

    The result is that of :func:`msrnn.generate` in float32 and float64; in 16 bits rounding can change a token.

    Each forward pass replaces every token of the block by the model's prediction after the tokens before it. After j forward
    passes at least the first j tokens are those of greedy decoding, for any initial block. Correct tokens are accepted, and the
    block moves to their end.

    Args:
        cell, tokens, state, max_new_tokens: see :func:`msrnn.generate`.
        block: number of tokens read per forward pass.
        settings: the other arguments of :func:`msrnn.generate`.

    Returns:
        The new tokens ``(B, N)`` int64, the state and the logits ``(B, V)``, as :func:`msrnn.generate` returns them, and the
        :class:`SpeculationStats`.

    Raises:
        Error: ``block`` is below 1; also the errors of :func:`msrnn.generate`.
    """
    return collect(*_start(cell, tokens, state, max_new_tokens, _jacobi_drafter(block), in_place=True, **settings))


@list_shared_settings
def stream_jacobi(
    cell: Cell,
    tokens: Tensor | None = None,
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
    tokens: Tensor | None = None,
    state: State | None = None,
    *,
    max_new_tokens: int,
    window: int = DEFAULT_WINDOW,
    ngram: int = DEFAULT_NGRAM,
    guesses: int | Literal["auto"] = "auto",
    pool: NgramPool | None = None,
    **settings: "Unpack[GenerationSettings]",
) -> SpeculativelyGenerated:
    """Generate by lookahead decoding (arXiv:2402.02057): drafts are n-grams of the prompt, the answer and trajectories.

    The result is that of :func:`msrnn.generate` in float32 and float64; in 16 bits rounding can change a token.

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
        The new tokens ``(B, N)`` int64, the state and the logits ``(B, V)``, as :func:`msrnn.generate` returns them, and the
        :class:`SpeculationStats`.

    Raises:
        Error: ``window`` or ``guesses`` is below 0, ``ngram`` is below 2, or the pool holds ids outside the vocabulary; also
            the errors of :func:`msrnn.generate`.
    """
    factory = _ngram_drafter(cell, window, ngram, guesses, pool)
    return collect(*_start(cell, tokens, state, max_new_tokens, factory, in_place=True, **settings))


@list_shared_settings
def stream_lookahead(
    cell: Cell,
    tokens: Tensor | None = None,
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
    tokens: Tensor | None,
    state: State | None,
    max_new_tokens: int,
    factory: DrafterFactory,
    *,
    in_place: bool,
    logits: Tensor | None = None,
    lengths: Tensor | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    stop: str | Sequence[str] | None = None,
    tokenizer: "tokenizers.Tokenizer | None" = None,
    **sampling: Any,
) -> tuple[Start, Iterator[Accepted]]:
    """Read the prompt; return the start of decoding and the iterator over forward passes."""
    sampler, endings = make_sampler(**sampling, synchronize=cell.of_rank_0), Endings(cell, eos_token_id, stop, tokenizer)
    with torch.no_grad():
        start = read_prompt(cell, tokens, state, logits, lengths, max_new_tokens)
    make_drafter, controller = factory
    drafters = [make_drafter(list(text)) for text in start.context]
    return start, draft_and_verify(cell, start, drafters, sampler, endings, max_new_tokens, controller, in_place)
