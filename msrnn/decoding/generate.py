"""Plain decoding: sample a token, read it with the step, repeat."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict, TypeVar

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..state.state import State
from .endings import Endings
from .prompt import Start, read_prompt
from .sampling import Sampler, make_sampler

if TYPE_CHECKING:
    import tokenizers


class GenerationSettings(TypedDict, total=False):
    """Optional keyword arguments that all decoding functions share; :func:`generate` documents them."""

    logits: Tensor | None
    lengths: Tensor | None
    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    eos_token_id: int | Sequence[int] | None
    stop: str | Sequence[str] | None
    tokenizer: "tokenizers.Tokenizer | None"
    generator: torch.Generator | None


class Generated(NamedTuple):
    """Result of :func:`generate`.

    Attributes:
        tokens: the new tokens, ``(B, N)`` int64.
        state: H after the prompt and all new tokens.
        logits: ``(B, V)``, of the token after those that the state has read.
    """

    tokens: Tensor
    state: State
    logits: Tensor


class StreamedToken(tuple[Tensor, State]):
    """One item of :func:`stream`: ``token (B,), state = item``.

    Attributes:
        token: ``(B,)`` int64.
        state: H after the token.
        logits: ``(B, V)``, of the token after it. With ``state`` it continues decoding.
    """

    logits: Tensor

    def __new__(cls, token: Tensor, state: State, logits: Tensor) -> "StreamedToken":
        item = super().__new__(cls, (token, state))
        item.logits = logits
        return item

    @property
    def token(self) -> Tensor:
        """The token ``(B,)``."""
        return self[0]

    @property
    def state(self) -> State:
        """H after the token."""
        return self[1]


@torch.no_grad()
def generate(
    cell: Cell,
    tokens: Tensor | None = None,
    state: State | None = None,
    *,
    logits: Tensor | None = None,
    max_new_tokens: int,
    lengths: Tensor | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    stop: str | Sequence[str] | None = None,
    tokenizer: "tokenizers.Tokenizer | None" = None,
    generator: torch.Generator | None = None,
) -> Generated:
    """Read a prompt and generate its continuation. No graph is built, and ``state`` is not modified.

    To continue later, pass the ``state`` and the ``logits`` of the result and no tokens: 10 tokens followed by 10 tokens equal
    20 tokens.

    Args:
        cell: the cell.
        tokens: the prompt, ``(B, T)`` int64 with T at least 1. Prompts of different lengths are padded on the right.
        state: H before the prompt. None is ``cell.initial_state(B)``.
        logits: in place of a prompt, the logits ``(B, V)`` of the next token, which belong to ``state``: from a step, from
            ``logits[:, -1]`` of a call, or from an earlier result.
        max_new_tokens: maximum number of tokens to generate.
        lengths: lengths of the prompts without padding, ``(B,)`` int64, each at least 1.
        do_sample: sample from the distribution; otherwise the most likely token is taken.
        temperature, top_k, top_p: change the distribution, in this order; they require ``do_sample``.
        eos_token_id: one id or several that end a row. With None no row ends. A finished row repeats its last token.
        stop: one string or several that end a row, as ``stop_strings`` of transformers: the row ends with the token that
            completes the string. The string may begin in the prompt. Special tokens are part of the text.
        tokenizer: the tokenizer for ``stop``. None is the one in the model folder.
        generator: the random generator for sampling.

    Returns:
        The new tokens ``(B, N)`` int64, the state, and the logits ``(B, V)`` of the next token. N is below ``max_new_tokens``
        only if all rows are finished. The state has read the prompt and all new tokens, of a finished row up to its end.

    Raises:
        Error: the prompt is empty, there is neither a prompt nor logits or both, the logits do not fit the state, a setting is
            out of range or needs ``do_sample``, or the model computes NaN; also the errors of :meth:`Cell.forward`.
    """
    sampler = make_sampler(do_sample, temperature, top_k, top_p, generator, cell.of_rank_0)
    endings = Endings(cell, eos_token_id, stop, tokenizer)
    start = read_prompt(cell, tokens, state, logits, lengths, max_new_tokens)
    new, state, logits = [], start.state, start.logits
    for step in _decode(cell.step_, start, sampler, endings, max_new_tokens):  # step_ updates `state`
        new.append(step.token)
        logits = step.logits
    return Generated(torch.stack(new, dim=1) if new else state.clock.new_empty(len(logits), 0), state, logits)


def stream(
    cell: Cell,
    tokens: Tensor | None = None,
    state: State | None = None,
    *,
    logits: Tensor | None = None,
    max_new_tokens: int,
    lengths: Tensor | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    stop: str | Sequence[str] | None = None,
    tokenizer: "tokenizers.Tokenizer | None" = None,
    generator: torch.Generator | None = None,
) -> Iterator[StreamedToken]:
    """Yield the tokens of :func:`generate` one at a time, as ``(token (B,), state)``; the state has read the token.

    The arguments and errors are those of :func:`generate`. Every state is a separate value: it can be kept, and decoding can
    branch from it. Each item also has ``item.logits``, so that decoding can continue: ``generate(cell, state=item.state,
    logits=item.logits, …)``.
    """
    sampler = make_sampler(do_sample, temperature, top_k, top_p, generator, cell.of_rank_0)
    endings = Endings(cell, eos_token_id, stop, tokenizer)
    with torch.no_grad():
        start = read_prompt(cell, tokens, state, logits, lengths, max_new_tokens)
    return _decode(cell.step, start, sampler, endings, max_new_tokens)


def _decode(
    step: Callable[..., tuple[Tensor, State]],
    start: Start,
    sampler: Sampler,
    endings: Endings,
    max_new_tokens: int,
) -> Iterator[StreamedToken]:
    """Yield each sampled token ``(B,)`` with the state that has read it. A finished row repeats its last token unread."""
    logits, state = start.logits, start.state
    ended = endings.start(start)
    token = torch.tensor([i or 0 for i in ended], device=logits.device)
    finished = None  # (B,) bool; None while no row is finished: the step then needs no mask
    if any(i is not None for i in ended):
        finished = torch.tensor([i is not None for i in ended], device=logits.device)
    for i in range(max_new_tokens):
        if finished is not None and finished.all():
            sampler.verify()
            return
        sampled = sampler(logits)
        if i in (0, max_new_tokens - 1) or finished is not None:  # reading `finished` has synchronised
            sampler.verify()
        token = sampled if finished is None else torch.where(finished, token, sampled)
        with torch.no_grad():  # not around the yield, because the caller's gradient mode must not change
            after, state = step(token, state, active=None if finished is None else ~finished)
        logits = after if finished is None else torch.where(finished[:, None], logits, after)
        finished = endings.update(token, finished)
        state.recent_tokens = endings.recent_tokens(token, token.device)
        yield StreamedToken(token, state, logits)


Decoder = TypeVar("Decoder", bound=Callable[..., object])


def list_shared_settings(decoder: Decoder) -> Decoder:
    """Decorate a decoding function so that ``help`` lists the arguments of :func:`generate` in place of ``**settings``."""
    signature = inspect.signature(decoder)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    shared = [p for p in inspect.signature(generate).parameters.values() if p.name not in signature.parameters]
    vars(decoder)["__signature__"] = signature.replace(parameters=[*own, *shared])
    return decoder
