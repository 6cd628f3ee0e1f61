"""Reading a text: the fold beside transformers' dense pass, and beside itself in other dress."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..state.state import State
from .baselines.transformers import MISSING
from .result import Row, paired
from .settings import Bench
from .timing import Ways

DENSE = "transformers, dense"
WARM = 64
"""Tokens read before anything is timed; a warm-up of whole texts would take as long as a round."""


def operators(bench: Bench) -> Iterator[Row]:
    """A text under every operator."""
    size = bench.size
    bounds = {
        **{bench.tova: "≤ 1.25", f"h2o:{size}": "≤ 1.5", f"window:{size}": "≤ 1"},
        **{f"sinks:{size}:4": "≤ 1", "full": "≤ 1"},
    }
    yield from _beside_dense(bench, bench.text(bench.tokens), bounds, bench.rounds)


def long(bench: Bench) -> Iterator[Row]:
    """Four times the text: the dense pass grows with its square."""
    yield from _beside_dense(bench, bench.text(4 * bench.tokens), {bench.tova: "< 1"}, (bench.rounds + 1) // 2)


def _beside_dense(bench: Bench, ids: Tensor, bounds: dict[str, str], rounds: int) -> Iterator[Row]:
    cell, peer = bench.cell(), bench.peer()
    for some in (ids[:, :WARM], ids):
        ways: Ways = {form: partial(_read, cell, some, form) for form in bounds}
        if peer:
            ways = {DENSE: partial(peer.read, some), **ways}
        spent = bench.time(ways, rounds if some is ids else 1, warm=False)
    for form, bound in bounds.items():
        work = f"read {ids.shape[1]:,} tokens, {form}"
        yield paired(work, "s", spent[form], DENSE, spent.get(DENSE, ()), bound, "" if peer else MISSING)


def half(bench: Bench) -> Iterator[Row]:
    """bfloat16 beside float32."""
    ids, cells = bench.text(bench.tokens), {}
    for dtype in (torch.float32, torch.bfloat16):
        cells[dtype] = bench.cell(dtype)
        _read(cells[dtype], ids[:, :WARM], bench.tova)
    ways = {str(dtype): partial(_read, cell, ids, bench.tova) for dtype, cell in cells.items()}
    single, half = bench.time(ways, bench.rounds, warm=False).values()
    work = f"read {ids.shape[1]:,} tokens, {bench.tova}, bfloat16"
    yield paired(work, "s", half, "msrnn, float32", single, "≤ 1.15")


def ragged(bench: Bench) -> Iterator[Row]:
    """Eight texts of an eighth to the whole length, beside eight equal ones of as many tokens in all."""
    cell, T = bench.cell(), bench.tokens
    texts = torch.cat([bench.text(T, start=n * T) for n in range(8)])  # (8, T)
    lengths = torch.linspace(T // 8, T, 8).long()
    equal = torch.full_like(lengths, int(lengths.float().mean()))
    lengths[-1] -= lengths.sum() - equal.sum()  # the same number of tokens, to the last
    ways = {}
    for name, n in {"equal": equal, "ragged": lengths}.items():
        ways[name] = partial(_read, cell, texts[:, : int(n.max())], bench.tova, n.to(bench.device))
    spent = bench.time(ways, (bench.rounds + 1) // 2, warm=False)
    total = int(equal.sum())
    pace = {name: [total / t for t in times] for name, times in spent.items()}
    work = f"read 8 texts of {lengths[0]:,} … {lengths[-1]:,} tokens, {bench.tova}"
    yield paired(work, "tokens/s", pace["ragged"], f"8 of {equal[0]:,}", pace["equal"], "≥ 0.8")


@torch.no_grad()
def _read(cell: Cell, ids: Tensor, form: str, lengths: Tensor | None = None) -> State:
    state = cell.initial_state(ids.shape[0], form)
    return cell(ids, state, lengths=lengths, last_only=True)[1]
