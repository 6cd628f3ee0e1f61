"""The start of decoding: a prompt that is read, or the logits of an earlier call."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error, check_int, describe
from ..state.state import State
from .sampling import as_python_number


class Start(NamedTuple):
    """Where decoding starts.

    Attributes:
        logits: ``(B, V)``, of the next token of each row.
        state: H after everything that was read; no other variable refers to it.
        context: for each row the ids that are known to precede the next token.
        ended: True if a row of ``context`` may already have ended, because an earlier call generated it.
    """

    logits: Tensor
    state: State
    context: list[list[int]]
    ended: bool


def read_prompt(
    cell: Cell,
    tokens: Tensor | None,
    state: State | None,
    logits: Tensor | None,
    lengths: Tensor | None,
    max_new_tokens: int,
) -> Start:
    """Check the arguments of :func:`msrnn.generate`, and read the prompt if there is one."""
    check_int("max_new_tokens", as_python_number(max_new_tokens), at_least=0)
    if logits is not None:
        return _continue(cell, tokens, state, logits, lengths)
    if tokens is None:
        raise Error("tokens and logits are both None; expected a prompt, or logits and the state that they belong to")
    if isinstance(tokens, Tensor) and tokens.ndim == 2 and tokens.shape[1] == 0:
        raise Error("the prompt is empty; expected at least one token (to continue from a state, pass its logits)")
    if isinstance(lengths, Tensor) and lengths.dtype == torch.int64 and (lengths < 1).any():
        raise Error(f"lengths are {lengths.tolist()}; expected at least one token per prompt")
    logits, after = cell(tokens, state, lengths=lengths, last_only=True)
    earlier = [list[int]() for _ in tokens] if state is None else _recent_tokens(state)
    prompts = (
        tokens.tolist() if lengths is None else [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    )
    context = [before + prompt for before, prompt in zip(earlier, prompts, strict=True)]
    return Start(logits, after.detach() if after.requires_grad else after, context, ended=False)  # learned rows have a graph


def _continue(cell: Cell, tokens: Tensor | None, state: State | None, logits: Tensor, lengths: Tensor | None) -> Start:
    if tokens is not None:
        raise Error("tokens and logits are both given; expected a prompt, or the logits that replace it")
    if lengths is not None:
        raise Error("lengths are given with logits; expected lengths only with a prompt (tokens)")
    if state is None:
        raise Error("state is None; expected the state that the logits belong to")
    if not isinstance(state, State):
        raise Error(f"state is {type(state).__name__}; expected a State, as a step or an earlier call returns it")
    shape = (len(state.clock), cell.config.vocab_size)
    if not isinstance(logits, Tensor) or logits.shape != shape or not logits.is_floating_point():
        hint = "; use logits[:, -1] of a call" if isinstance(logits, Tensor) and logits.ndim == 3 else ""
        raise Error(f"logits are {describe(logits)}; expected floating-point numbers of shape {shape}, as of a step{hint}")
    if logits.device != cell.device:
        raise Error(f"logits are on {logits.device}; expected {cell.device}, as the cell")
    cell.check_state(state, len(logits))
    state = state.detach().clone()  # a copy, because `step_` refuses tensors of torch.inference_mode()
    return Start(logits.detach().clone(), state, _recent_tokens(state), ended=True)


def _recent_tokens(state: State) -> list[list[int]]:
    if state.recent_tokens is None:
        return [[] for _ in state.clock]
    return [[i for i in row if i >= 0] for row in state.recent_tokens.tolist()]
