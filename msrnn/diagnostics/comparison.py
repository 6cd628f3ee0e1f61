"""One prompt continued under several operators, with the same weights: text, speed, memory and retained positions."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..cell.cell import Cell
from ..decoding.generate import stream
from ..errors import check_int
from ..reductions.contract import Reduction
from ..state.state import State
from ..text.detokenizer import StreamingDetokenizer
from .retention import heads_agree, retained_fraction, retention

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class OperatorRun:
    """A continuation under one operator.

    Attributes:
        new: the N generated tokens.
        retained: ``(T, T)`` float32, T = prompt + N: the fraction of layers and heads that hold position p after step t.
        tokens_per_second: of the generation, without the prompt.
        state: H at the end.
        heads_agree: True if at every step all heads of a layer hold the same positions.
    """

    new: list[int]
    retained: Tensor
    tokens_per_second: float
    state: State
    heads_agree: bool


@torch.no_grad()
def continue_prompt(
    cell: Cell,
    tokenizer: "tokenizers.Tokenizer",
    prompt: Sequence[int],
    reduction: Reduction | str,
    max_new_tokens: int,
    out: TextIO | None = None,
) -> OperatorRun:
    """Continue ``prompt`` greedily and write the text to ``out`` (default: standard output) as it is generated.

    Raises:
        Error: ``max_new_tokens`` is not at least 1; and as :func:`msrnn.stream`.
    """
    check_int("max_new_tokens", max_new_tokens)
    out = out or sys.stdout
    state = cell.initial_state(1, reduction)
    tokens = torch.tensor([prompt], dtype=torch.int64, device=state.clock.device)
    generated = stream(cell, tokens, state, max_new_tokens=max_new_tokens, eos_token_id=cell.config.eos_token_ids)
    total = len(prompt) + max_new_tokens
    prompt_map = retention(cell, tokens, reduction)[0]  # (L, T, T)
    rows, agree = [*pad(prompt_map.mean(0), (0, max_new_tokens))], heads_agree(prompt_map)  # over layers: (total,) per step
    detokenize, new, seconds, start = StreamingDetokenizer(tokenizer, prompt), list[int](), 0.0, time.perf_counter()
    for token, state in generated:
        new.append(int(token))
        seconds += time.perf_counter() - start
        out.write(detokenize(new[-1]))
        out.flush()
        retained = retained_fraction(state, total)[0]  # (L, total)
        rows.append(retained.mean(0))
        agree = agree and heads_agree(retained)
        start = time.perf_counter()
    out.write(detokenize.flush())
    return OperatorRun(new, torch.stack(rows)[:, : len(rows)], len(new) / max(seconds, 1e-9), state, agree)
