"""The bytes of the messages between ranks, counted and predicted."""

from collections.abc import Iterator

from ..distributed.cost import contributed_per_token
from ..distributed.model_shape import Shape
from ..distributed.ranks import TRAFFIC
from .result import Result, SkipBenchmark, paired
from .settings import Bench

STEPS = 4


def messages(bench: Bench) -> Iterator[Result]:
    """Compare the bytes that a step passes to collectives on each rank with the model of cost (docs/distributed.md)."""
    if bench.ranks == 1:
        raise SkipBenchmark("there is one process; expected torchrun with several ranks")
    cell, size = bench.cell(), bench.size
    shape = Shape.of(cell.config)
    for spec, scores in {
        f"window:{size}": 0,
        f"tova-head:{size}": 0,
        bench.tova: size + 1,
        f"h2o-layer:{size}": size + 1,
    }.items():
        state = bench.full_state(cell, spec)
        TRAFFIC.reset()
        for token in bench.text(STEPS)[0]:
            _, state = cell.step_(token[None], state)
        counted = sum(TRAFFIC.payload.values()) / STEPS
        predicted = contributed_per_token(shape, bench.ranks, scores, cell.dtype.itemsize)
        yield paired(f"bytes of a step_, {spec}, {bench.ranks} ranks", "bytes", [counted], "predicted", [predicted], "≤ 1")
