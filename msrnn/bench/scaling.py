"""Times of a model over one or several ranks, and the model of cost with the bandwidths of this machine."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import inf
from statistics import median

import torch

from ..cell.cell import Cell
from ..distributed.cost import Device, sent_bytes, step_time
from ..distributed.model_shape import Shape
from .result import Result, SkipBenchmark, paired
from .settings import STEPS, Bench, repeated
from .step import SUMMED_BYTES, dtype_name, step_on_full_state
from .unroll import WARM_UP_TOKENS, read

LARGE_MESSAGE = 2**18
"""Elements of the message that measures the bandwidth between ranks; one with the width of the model measures the latency."""


def scaling(bench: Bench) -> Iterator[Result]:
    """Time a step and a text over one or several ranks; the step is compared with the model of cost (docs/distributed.md).

    Its inputs are the rate at which all ranks sum a large tensor at once, and the times of a short and of a long all-reduce.
    """
    if bench.packed_dtype:
        raise SkipBenchmark("the model of cost has no packed weights")
    cell, large = bench.cell(), torch.ones(SUMMED_BYTES // 4, device=bench.device)
    steps = repeated(step_on_full_state(bench, cell), bench.text(bench.size))
    spent = bench.time({"step": steps, "sum": large.sum, **_all_reduces(cell)}, 5 * bench.rounds)
    devices = [_device(cell, dict(zip(spent, times, strict=True))) for times in zip(*spent.values(), strict=True)]
    shape, itemsize = Shape.of(cell.config), cell.dtype.itemsize
    predicted = [step_time(shape, x, 1, bench.size, bench.ranks, bench.size + 1, itemsize).total for x in devices]
    ranks = f"{bench.ranks} rank{'s' if bench.ranks > 1 else ''}"
    note = f"{median(x.bandwidth for x in devices) / 1e9:.1f} GB/s of memory on each rank"
    if bench.ranks > 1:
        note += f", all-reduce in {1e6 * median(x.latency for x in devices):.0f} µs"
    values, baselines = ([1e3 * t for t in times] for times in ([t / STEPS for t in spent["step"]], predicted))
    yield paired(f"step_, {bench.tova}, {dtype_name(cell)}, {ranks}", "ms/token", values, "model of cost", baselines, note=note)
    ids = bench.text(bench.tokens)
    read(cell, ids[:, :WARM_UP_TOKENS], bench.tova)
    reading = bench.time({"read": partial(read, cell, ids, bench.tova)}, bench.rounds, warm_up=False)["read"]
    yield paired(f"read {bench.tokens:,} tokens, {bench.tova}, {ranks}", "tokens/s", [bench.tokens / t for t in reading])


def _messages(cell: Cell) -> dict[str, int]:
    return {"short": cell.config.width, "long": LARGE_MESSAGE}


def _all_reduces(cell: Cell) -> dict[str, Callable[[], None]]:
    """Return the all-reduces to time, by name; none in one process."""
    if cell.rank_part is None:
        return {}
    ranks = cell.rank_part.ranks

    def reduce(x: torch.Tensor) -> None:
        for _ in range(STEPS):
            ranks.all_reduce_(x, "scaling")

    return {name: partial(reduce, torch.zeros(n, device=cell.device)) for name, n in _messages(cell).items()}


def _device(cell: Cell, seconds: Mapping[str, float]) -> Device:
    """Return the figures of one rank of this machine, from the seconds of each contender in one round."""
    bandwidth, link, latency = SUMMED_BYTES / seconds["sum"], inf, 0.0
    if cell.rank_part is not None:
        sent = {name: sent_bytes(4 * n, cell.rank_part.ranks.size) for name, n in _messages(cell).items()}
        short, long = (seconds[name] / STEPS for name in sent)
        link = (sent["long"] - sent["short"]) / max(long - short, 1e-9)
        latency = max(0.0, short - sent["short"] / link)
    return Device("this machine", inf, bandwidth, link, flops=inf, latency=latency)
