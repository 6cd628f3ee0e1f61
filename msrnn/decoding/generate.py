"""Plain decoding: sample a token, read it with the step, repeat."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict, TypeVar

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error, check_int, is_int
from ..state.state import State
from .sampling import Sampler, as_python_number, make_sampler


class GenerationSettings(TypedDict, total=False):
    """Optional keyword arguments that all decoding functions share; :func:`generate` documents them."""

    lengths: Tensor | None
    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    eos_token_id: int | Sequence[int] | None
    generator: torch.Generator | None


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
    """Read a prompt and generate its continuation. No graph is built, and ``state`` is not modified.

    Args:
        cell: the cell.
        tokens: the prompt, ``(B, T)`` int64 with T at least 1. Prompts of different lengths are padded on the right.
        state: H before the prompt. None is ``cell.initial_state(B)``.
        max_new_tokens: maximum number of tokens to generate.
        lengths: lengths of the prompts without padding, ``(B,)`` int64, each at least 1.
        do_sample: sample from the distribution; otherwise the most likely token is taken.
        temperature, top_k, top_p: change the distribution, in this order; they require ``do_sample``.
        eos_token_id: one id or several that end a row. With None no row ends. A finished row repeats its eos.
        generator: the random generator for sampling.

    Returns:
        The new tokens ``(B, N)`` int64 and the state. N is below ``max_new_tokens`` only if all rows are finished. The state
        has read the prompt and all new tokens, of a finished row up to its eos. Decoding can continue from it.

    Raises:
        Error: the prompt is empty, a setting is out of range or needs ``do_sample``; also the errors of :meth:`Cell.forward`.
    """
    sampler, eos = make_sampler(do_sample, temperature, top_k, top_p, generator), eos_ids(cell, eos_token_id)
    logits, state = read_prompt(cell, tokens, state, lengths, max_new_tokens)
    new = [token for token, _ in _decode(cell.step_, logits, state, sampler, eos, max_new_tokens)]  # step_ updates `state`
    return torch.stack(new, dim=1) if new else tokens[:, :0], state


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
    """Yield the tokens of :func:`generate` one at a time, as ``(token (B,), state)``; the state has read the token.

    The arguments and errors are those of :func:`generate`. Every state is a separate value: it can be kept, and decoding can
    branch from it.
    """
    sampler, eos = make_sampler(do_sample, temperature, top_k, top_p, generator), eos_ids(cell, eos_token_id)
    with torch.no_grad():
        logits, state = read_prompt(cell, tokens, state, lengths, max_new_tokens)
    return _decode(cell.step, logits, state, sampler, eos, max_new_tokens)


def _decode(
    step: Callable[..., tuple[Tensor, State]],
    logits: Tensor,
    state: State,
    sampler: Sampler,
    eos: Tensor,
    max_new_tokens: int,
) -> Iterator[tuple[Tensor, State]]:
    """Yield each sampled token ``(B,)`` with the state that has read it. A finished row repeats its eos without reading it."""
    last_token = finished = None
    for _ in range(max_new_tokens):
        token = sampler(logits)
        if last_token is not None and finished is not None:
            token = torch.where(finished, last_token, token)
        with torch.no_grad():  # not around the yield, because the caller's gradient mode must not change
            logits, state = step(token, state, active=None if finished is None else ~finished)
        yield token, state
        if eos.numel():
            is_eos = torch.isin(token, eos.to(token.device))
            if finished is not None or is_eos.any():  # until a row is finished, the step needs no mask
                last_token, finished = token, is_eos if finished is None else finished | is_eos
                if finished.all():
                    return


def read_prompt(
    cell: Cell, tokens: Tensor, state: State | None, lengths: Tensor | None, max_new_tokens: int
) -> tuple[Tensor, State]:
    """Check the arguments of :func:`generate`, and read the prompt; return the last logits ``(B, V)`` and the state."""
    check_int("max_new_tokens", as_python_number(max_new_tokens), at_least=0)
    if isinstance(tokens, Tensor) and tokens.ndim == 2 and tokens.shape[1] == 0:
        raise Error("the prompt is empty; expected at least one token")
    if isinstance(lengths, Tensor) and lengths.dtype == torch.int64 and (lengths < 1).any():
        raise Error(f"lengths are {lengths.tolist()}; expected at least one token per prompt")
    logits, state = cell(tokens, state, lengths=lengths, last_only=True)
    return logits, state.detach() if state.requires_grad else state  # rows from parameters carry a graph


def eos_ids(cell: Cell, eos_token_id: int | Sequence[int] | None) -> Tensor:
    """Return ``eos_token_id`` as ``(n,)`` int64.

    Raises:
        Error: an id is not an int or is outside the vocabulary.
    """
    if isinstance(eos_token_id, Tensor):
        eos_token_id = eos_token_id.flatten().tolist()
    values = [] if eos_token_id is None else list(eos_token_id) if isinstance(eos_token_id, Sequence) else [eos_token_id]
    ids = [as_python_number(value) for value in values]
    for i in ids:
        if not is_int(i) or not 0 <= i < cell.config.vocab_size:
            raise Error(f"eos_token_id is {i!r}; expected ids below {cell.config.vocab_size}, the vocabulary size")
    return torch.tensor(ids, dtype=torch.int64)


Decoder = TypeVar("Decoder", bound=Callable[..., object])


def list_shared_settings(decoder: Decoder) -> Decoder:
    """Decorate a decoding function so that ``help`` lists the arguments of :func:`generate` in place of ``**settings``."""
    signature = inspect.signature(decoder)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    shared = [p for p in inspect.signature(generate).parameters.values() if p.name not in signature.parameters]
    vars(decoder)["__signature__"] = signature.replace(parameters=[*own, *shared])
    return decoder
