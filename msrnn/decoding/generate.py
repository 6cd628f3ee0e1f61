"""Closing the loop: a token is chosen from the logits and fed back."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error
from ..state.state import State
from .sampling import chooser, is_whole


@torch.no_grad()
def generate(
    cell: Cell,
    tokens: Tensor,
    state: State | None = None,
    *,
    max_new_tokens: int,
    lengths: Tensor | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, State]:
    """Read a prompt and continue it. No graph is built; ``state`` is not edited.

    Args:
        cell: the cell.
        tokens: the prompt, ``(B, T)`` int64, T at least 1, right-padded where ragged.
        state: H before the prompt; None is ``cell.initial_state(B)``.
        max_new_tokens: how many tokens to write at most.
        lengths: ``(B,)`` int64, the prompts' real lengths, each at least 1.
        do_sample: draw from the distribution; otherwise the likeliest token is taken.
        temperature, top_k, top_p: shape the distribution, in this order; they need ``do_sample``.
        eos_token_id: one id or several that end a row; None never ends. A row that ended repeats its eos.
        generator: where randomness comes from.

    Returns:
        The new tokens ``(B, N)``, N below ``max_new_tokens`` only where every row has ended; and the state, which has
        read the prompt and all new tokens (of a row that ended: up to its eos), so that decoding can go on from it.

    Raises:
        Error: an empty prompt, settings out of range or without ``do_sample``, and as the cell's call.
    """
    choose, ids = chooser(do_sample, temperature, top_k, top_p, generator), eos_ids(cell, eos_token_id)
    logits, state = read_prompt(cell, tokens, state, lengths, max_new_tokens)
    written = [token for token, _ in _loop(cell.step_, logits, state, choose, ids, max_new_tokens)]  # state moves along
    return torch.stack(written, dim=1) if written else tokens[:, :0], state


def stream(
    cell: Cell,
    tokens: Tensor,
    state: State | None = None,
    *,
    max_new_tokens: int,
    lengths: Tensor | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, State]]:
    """:func:`generate`, token by token: yields ``(token (B,), state)``, the state having read that token.

    Arguments and refusals are those of :func:`generate`. Each state is a value of its own: it may be kept, and
    decoding can branch from it.
    """
    choose, ids = chooser(do_sample, temperature, top_k, top_p, generator), eos_ids(cell, eos_token_id)
    with torch.no_grad():
        logits, state = read_prompt(cell, tokens, state, lengths, max_new_tokens)
    return _loop(cell.step, logits, state, choose, ids, max_new_tokens)


def _loop(
    step: Callable[..., tuple[Tensor, State]],
    logits: Tensor,
    state: State,
    choose: Callable[[Tensor], Tensor],
    eos: Tensor,
    count: int,
) -> Iterator[tuple[Tensor, State]]:
    """Tokens ``(B,)`` as they are chosen, each with the state that has read it; a row past its eos repeats it unread."""
    last = ended = None
    for _ in range(count):
        token = choose(logits)
        if last is not None and ended is not None:
            token = torch.where(ended, last, token)
        with torch.no_grad():  # not around the yield: the caller's own gradients stay as they are
            logits, state = step(token, state, active=None if ended is None else ~ended)
        yield token, state
        if eos.numel():
            now = torch.isin(token, eos.to(token.device))
            if ended is not None or now.any():  # as long as none has, a step need not tell rows apart
                last, ended = token, now if ended is None else ended | now
                if ended.all():
                    return


def eos_ids(cell: Cell, eos: int | Sequence[int] | None) -> Tensor:
    """``eos_token_id`` as ``(n,)`` int64, checked."""
    if isinstance(eos, Tensor):
        eos = eos.flatten().tolist()
    ids = [] if eos is None else list(eos) if isinstance(eos, Sequence) else [eos]
    for i in ids:
        if not is_whole(i) or not 0 <= i < cell.config.vocab_size:
            raise Error(f"eos_token_id is {i!r}; expected ids below {cell.config.vocab_size}, the size of the vocabulary")
    return torch.tensor([int(i) for i in ids], dtype=torch.int64)


def read_prompt(cell: Cell, tokens: Tensor, state: State | None, lengths: Tensor | None, count: int) -> tuple[Tensor, State]:
    """The prompt, read: logits ``(B, V)`` and the state; ``count`` new tokens are to follow."""
    if not is_whole(count) or count < 0:
        raise Error(f"max_new_tokens is {count!r}; expected a whole number of at least 0")
    if isinstance(tokens, Tensor) and tokens.ndim == 2 and tokens.shape[1] == 0:
        raise Error("the prompt is empty; expected at least one token to continue from")
    if isinstance(lengths, Tensor) and lengths.dtype == torch.int64 and (lengths < 1).any():
        raise Error(f"lengths are {lengths.tolist()}; expected at least one token per prompt")
    logits, state = cell(tokens, state, lengths=lengths, last_only=True)
    return logits, state.detach() if state.carries_graph else state  # rows that no token left, and that none will change
