"""One token: the step beside transformers' and kvpress', beside the memory's pace, and beside itself in other dress."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..state.state import State
from .baselines.kvpress import decoding, versions
from .baselines.transformers import MISSING
from .result import Row, paired
from .settings import BLOCK, Bench, block_of, moving
from .timing import Ways

FEW, MANY = 16, 16
"""Tokens folded at once, and sequences side by side."""
LARGE = 2**29
"""Bytes that are summed to know the machine's pace: more than a processor keeps near itself."""


def step(bench: Bench) -> Iterator[Row]:
    """``step_`` on a full H beside transformers' step at that length."""
    for dtype in dict.fromkeys((bench.dtype, torch.bfloat16)):
        cell = bench.cell(dtype)
        ways = {"ours": block_of(_moving(bench, cell), bench.text(bench.size))}
        work = f"step_, {bench.tova}, {_name(cell)}"
        yield from _beside_step(bench, dtype, work, ways, "≤ 0.65" if dtype == torch.float32 else "≤ 0.7")


def few(bench: Bench) -> Iterator[Row]:
    """A fold of some tokens on a full H, with all their logits, beside one step of transformers."""
    cell = bench.cell()
    full, ids = bench.full(cell), bench.text(FEW)
    ways = {"ours": lambda: [cell(ids, full) for _ in range(BLOCK)]}
    yield from _beside_step(bench, bench.dtype, f"fold of {FEW} tokens on {bench.tova}", ways, "≤ 1.5 (aim 1.3)", "ms")


def batch(bench: Bench) -> Iterator[Row]:
    """``step_`` of some sequences at once beside one step of transformers for one."""
    cell = bench.cell()
    ids = bench.text(MANY * bench.size).view(MANY, -1)
    ways = {"ours": block_of(_moving(bench, cell, MANY), ids)}
    yield from _beside_step(bench, bench.dtype, f"step_ at batch {MANY}, {bench.tova}", ways, "≤ 2", "ms")


def _beside_step(bench: Bench, dtype: torch.dtype, work: str, ways: Ways, bound: str, unit: str = "ms/token") -> Iterator[Row]:
    peer = bench.peer(dtype)
    if peer:
        ids = bench.text(bench.size)
        ways = {**ways, "transformers": block_of(partial(peer.step, cache=peer.read(ids)), ids)}
    spent = bench.step_ms(ways)
    beside, note = f"transformers, step at length {bench.size}", "" if peer else MISSING
    yield paired(work, unit, spent["ours"], beside, spent.get("transformers", ()), bound, note)


def kvpress(bench: Bench) -> Iterator[Row]:
    """``step_`` beside kvpress, which cuts as often, in its own environment."""
    cell = bench.cell()
    ids = bench.text(bench.size)
    with decoding(bench, ids, BLOCK) as block:
        spent = bench.step_ms({"ours": block_of(_moving(bench, cell), ids), "kvpress": block})
    assert bench.kvpress is not None
    work, beside = f"step_, {bench.tova}, {_name(cell)}", f"kvpress {versions(bench.kvpress)}"
    yield paired(work, "ms/token", spent["ours"], beside, spent["kvpress"], "≤ 0.5")


def bandwidth(bench: Bench) -> Iterator[Row]:
    """The parameters' bytes that a token needs, over its time, beside the pace at which a large tensor is summed."""
    cell, large = bench.cell(), torch.ones(LARGE // 4, device=bench.device)
    ways: Ways = {
        "step": block_of(_moving(bench, cell), bench.text(bench.size)),
        "sum": lambda: [large.sum() for _ in range(BLOCK)],
    }
    spent = bench.time(ways, 5 * bench.rounds)
    ours = [BLOCK * bytes_read(cell) / t / 1e9 for t in spent["step"]]
    theirs = [BLOCK * LARGE / t / 1e9 for t in spent["sum"]]
    work = f"parameters read in a step_, {bench.tova}, {_name(cell)}"
    yield paired(work, "GB/s", ours, f"summing {LARGE / 1e6:.0f} MB", theirs, "≥ 0.45 (aim 0.5)")


def bytes_read(cell: Cell) -> int:
    """Bytes of the parameters that a step reads: all, but for the rows of an embedding that is not the head as well."""
    everything = sum(x.nbytes for x in cell.parameters())
    return everything if cell.config.tied else everything - cell.get_parameter("embed.weight").nbytes


def pure(bench: Bench) -> Iterator[Row]:
    """``step``, which leaves the state as it was, beside ``step_``."""
    cell = bench.cell()
    for form, tokens, bound in ((bench.tova, bench.size + 1, "≤ 1.1"), ("full", deep(bench), "≤ 1.15")):
        start = bench.full(cell, form, tokens)
        kept = {"step": start, "step_": start.clone()}

        def move(token: Tensor, name: str, kept: dict[str, State] = kept) -> None:
            _, kept[name] = getattr(cell, name)(token, kept[name])

        spent = bench.step_ms({name: block_of(partial(move, name=name), bench.text(bench.size)) for name in kept})
        work = f"step, {form}, position {tokens:,}"
        yield paired(work, "ms/token", spent["step"], "step_", spent["step_"], bound)


def deep(bench: Bench) -> int:
    """4,000 tokens where texts are of 2,048."""
    return 4000 * bench.tokens // 2048


def _moving(bench: Bench, cell: Cell, batch_size: int = 1) -> Callable[[Tensor], object]:
    """``step_`` on a full H of its own, as many times side by side as asked."""
    return moving(cell, bench.full(cell).select([0] * batch_size))


def _name(cell: Cell) -> str:
    return str(cell.marks[0].dtype).removeprefix("torch.")
