"""Reading a text by the many-token path, compared with the dense forward pass of transformers."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..state.state import State
from .result import Result, SkipBenchmark, paired
from .settings import Bench
from .timing import Contenders

DENSE = "transformers, dense"
WARM_UP_TOKENS = 64
"""Number of tokens read before the timing; a warm-up with whole texts would take as long as a round."""


def operators(bench: Bench) -> Iterator[Result]:
    """Compare reading a text under each operator with transformers."""
    size = bench.size
    targets = {
        **{bench.tova: "≤ 1.25", f"h2o:{size}": "≤ 1.5", f"window:{size}": "≤ 1"},
        **{f"sinks:{size}:4": "≤ 1", "full": "≤ 1"},
    }
    yield from _against_transformers(bench, bench.text(bench.tokens), targets, bench.rounds)


def long(bench: Bench) -> Iterator[Result]:
    """Compare reading four times as many tokens with transformers; the dense time is quadratic in the length."""
    yield from _against_transformers(bench, bench.text(4 * bench.tokens), {bench.tova: "< 1"}, (bench.rounds + 1) // 2)


def _against_transformers(bench: Bench, ids: Tensor, targets: dict[str, str], rounds: int) -> Iterator[Result]:
    cell, baseline = bench.cell(), bench.transformers()
    for some in (ids[:, :WARM_UP_TOKENS], ids):
        contenders: Contenders = {spec: partial(read, cell, some, spec) for spec in targets}
        if baseline:
            contenders = {DENSE: partial(baseline.read, some), **contenders}
        spent = bench.time(contenders, rounds if some is ids else 1, warm_up=False)
    for spec, target in targets.items():
        workload = f"read {ids.shape[1]:,} tokens, {spec}"
        yield paired(workload, "s", spent[spec], DENSE, spent.get(DENSE, ()), target, "" if baseline else bench.no_baseline)


def bfloat16(bench: Bench) -> Iterator[Result]:
    """Compare reading a text in bfloat16 with float32."""
    if bench.packed_dtype:
        raise SkipBenchmark(f"the cell has packed weights and computes in {bench.packed_dtype}")
    ids, cells = bench.text(bench.tokens), {}
    for dtype in (torch.float32, torch.bfloat16):
        cells[dtype] = bench.cell(dtype)
        read(cells[dtype], ids[:, :WARM_UP_TOKENS], bench.tova)
    contenders = {str(dtype): partial(read, cell, ids, bench.tova) for dtype, cell in cells.items()}
    single, half = bench.time(contenders, bench.rounds, warm_up=False).values()
    workload = f"read {ids.shape[1]:,} tokens, {bench.tova}, bfloat16"
    yield paired(workload, "s", half, "msrnn, float32", single, "≤ 1.15")


def ragged(bench: Bench) -> Iterator[Result]:
    """Compare a batch of texts of different lengths with a batch of equal lengths and the same total.

    There are eight texts, of tokens / 8 to tokens.
    """
    cell, T = bench.cell(), bench.tokens
    texts = torch.cat([bench.text(T, start=n * T) for n in range(8)])  # (8, T)
    lengths = torch.linspace(T // 8, T, 8).long()
    equal = torch.full_like(lengths, int(lengths.float().mean()))
    lengths[-1] -= lengths.sum() - equal.sum()  # makes the totals equal
    contenders = {}
    for name, n in {"equal": equal, "ragged": lengths}.items():
        contenders[name] = partial(read, cell, texts[:, : int(n.max())], bench.tova, n.to(bench.device))
    spent = bench.time(contenders, (bench.rounds + 1) // 2, warm_up=False)
    total = int(equal.sum())
    speed = {name: [total / t for t in times] for name, times in spent.items()}
    workload = f"read 8 texts of {lengths[0]:,} … {lengths[-1]:,} tokens, {bench.tova}"
    yield paired(workload, "tokens/s", speed["ragged"], f"8 of {equal[0]:,}", speed["equal"], "≥ 0.8")


@torch.no_grad()
def read(cell: Cell, ids: Tensor, reduction: str, lengths: Tensor | None = None) -> State:
    """Read ``ids (B, T)`` under an operator and return the state."""
    state = cell.initial_state(ids.shape[0], reduction)
    return cell(ids, state, lengths=lengths, last_only=True)[1]
