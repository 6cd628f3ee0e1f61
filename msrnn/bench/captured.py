"""The captured step (``cell.capture``), compared with ``step_`` and with transformers."""

from collections.abc import Iterator
from functools import partial

import torch

from ..errors import Error
from .baselines.transformers import NAME
from .result import Result, SkipBenchmark, paired
from .settings import Bench, in_place_step, repeated
from .step import dtype_name
from .timing import Contenders


def captured(bench: Bench) -> Iterator[Result]:
    """Compare ``step_`` recorded as a CUDA graph with ``step_``, and with a step of transformers at the same length."""
    for dtype in dict.fromkeys((bench.dtype, torch.bfloat16)):
        cell, ids = bench.cell(dtype), bench.text(bench.size)
        state = bench.full_state(cell)
        try:
            step = cell.capture(state)
        except Error as reason:
            raise SkipBenchmark(str(reason)) from None
        contenders: Contenders = {"captured": repeated(step, ids), "step_": repeated(in_place_step(cell, state), ids)}
        if baseline := bench.transformers(dtype):
            contenders = {**contenders, NAME: repeated(partial(baseline.step, cache=baseline.read(ids)), ids)}
        spent = bench.step_ms(contenders)
        workload, times = f"captured step, {bench.tova}, {dtype_name(cell)}", spent.pop("captured")
        for name, baselines in spent.items():
            yield paired(
                workload, "ms/token", times, f"{name}, step at length {bench.size}" if name == NAME else name, baselines
            )
