"""One prompt, the same weights, several operators: text as it streams, speed, bytes, and what each step kept."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..reductions.contract import Reduction
from ..state.state import State
from ..text.detokenizer import StreamingDetokenizer
from .retention import held

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class Run:
    """One operator's continuation.

    Attributes:
        new: the N tokens written.
        retained: ``(T, T)`` float32, T = prompt + N: the share of layers and heads that hold position p after step t.
        tokens_per_second: of the answer, one token at a time.
        nbytes, full_nbytes: what H held at the end, and what an unbounded H would hold then.
    """

    new: list[int]
    retained: Tensor
    tokens_per_second: float
    nbytes: int
    full_nbytes: int


def full_nbytes(state: State) -> int:
    """Bytes an unbounded H of the same cell would hold after as many tokens, rows and clock alone."""
    read = int(state.clock.sum())
    return state.clock.nbytes + sum(read * H.keys.shape[1] * (2 * H.keys.shape[3] * H.keys.element_size() + 8) for H in state)


def memory_summary(nbytes: int, full_nbytes: int) -> str:
    """Return a clause on the bytes of H, and on those of an unbounded H where they differ."""
    unbounded = f"; an unbounded H would hold {full_nbytes / 1e6:.2f} MB" if nbytes < full_nbytes else ""
    return f"H holds {nbytes / 1e6:.2f} MB{unbounded}"


@torch.no_grad()
def continue_prompt(
    cell: Cell,
    tokenizer: "tokenizers.Tokenizer",
    prompt: Sequence[int],
    reduction: Reduction | str,
    max_new_tokens: int,
    out: TextIO | None = None,
) -> Run:
    """Read ``prompt`` one step at a time and continue it greedily; the text goes to ``out`` (standard output) as it comes.

    Raises:
        Error: as ``cell.initial_state`` and ``cell.step``.
    """
    out = out or sys.stdout
    state = cell.initial_state(1, reduction)
    total = len(prompt) + max_new_tokens
    detokenize, kept, new, spent = StreamingDetokenizer(tokenizer), [], [], 0.0
    logits = torch.empty(0)
    for t in range(total):
        start = time.perf_counter()
        token = torch.tensor([prompt[t]], device=state.clock.device) if t < len(prompt) else logits.argmax(-1)  # (1,)
        logits, state = cell.step_(token, state)
        if t >= len(prompt):
            spent += time.perf_counter() - start
            new.append(int(token))
            out.write(detokenize(new[-1]))
            out.flush()
        kept.append(held(state, total)[0].mean(0))  # over layers
        if new and new[-1] in cell.config.eos_token_ids:
            break
    picture = torch.stack(kept)[:, : len(kept)]
    return Run(new, picture, len(new) / max(spent, 1e-9), state.nbytes, full_nbytes(state))
