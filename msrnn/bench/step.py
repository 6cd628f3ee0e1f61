"""One token: a step compared with transformers, kvpress, llama.cpp, the memory bandwidth, and other uses of the cell."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..models.packing import kind_of_weights
from ..state.state import State
from .baselines import llama_cpp
from .baselines.kvpress import decoding, versions
from .baselines.transformers import NAME
from .result import Result, paired
from .settings import STEPS, Bench, in_place_step, repeated
from .timing import Contenders

UNROLL_TOKENS, BATCH_SIZE = 16, 16
SUMMED_BYTES = 2**29
"""Size of the tensor that is summed to measure the memory bandwidth; larger than the CPU caches."""


def step(bench: Bench) -> Iterator[Result]:
    """Compare ``step_`` on a full H with a step of transformers at the same length."""
    for dtype in dict.fromkeys((bench.dtype, torch.bfloat16)):
        cell = bench.cell(dtype)
        steps = repeated(step_on_full_state(bench, cell), bench.text(bench.size))
        workload = f"step_, {bench.tova}, {dtype_name(cell)}"
        float_targets, packed_targets = ("≤ 0.65", "≤ 0.7"), ("≤ 0.35", "≤ 0.5")
        target = (packed_targets if bench.packed_dtype else float_targets)[dtype != torch.float32]
        yield from _against_transformers(bench, dtype, workload, steps, target, "ms/token")


def small_unroll(bench: Bench) -> Iterator[Result]:
    """Compare the unroll of a few tokens on a full H, with all logits, with one step of transformers."""
    cell = bench.cell()
    state, ids = bench.full_state(cell), bench.text(UNROLL_TOKENS)
    workload = f"unroll of {UNROLL_TOKENS} tokens on {bench.tova}"
    target = "≤ 1.2" if bench.packed_dtype else "≤ 1.5 (aim 1.3)"

    def unroll() -> None:
        for _ in range(STEPS):
            cell(ids, state)

    yield from _against_transformers(bench, bench.dtype, workload, unroll, target, "ms")


def batch(bench: Bench) -> Iterator[Result]:
    """Compare ``step_`` of a batch with one step of transformers at batch size 1."""
    cell = bench.cell()
    ids = bench.text(BATCH_SIZE * bench.size).view(BATCH_SIZE, -1)
    steps = repeated(step_on_full_state(bench, cell, BATCH_SIZE), ids)
    yield from _against_transformers(bench, bench.dtype, f"step_ at batch {BATCH_SIZE}, {bench.tova}", steps, "≤ 2", "ms")


def _against_transformers(
    bench: Bench, dtype: torch.dtype, workload: str, steps: Callable[[], object], target: str, unit: str
) -> Iterator[Result]:
    contenders: Contenders = {"msrnn": steps}
    baseline = bench.transformers(dtype)
    if baseline:
        ids = bench.text(bench.size)
        contenders = {**contenders, NAME: repeated(partial(baseline.step, cache=baseline.read(ids)), ids)}
    spent = bench.step_ms(contenders)
    name = f"{NAME}{f' in {dtype}'.replace('torch.', '') if bench.packed_dtype else ''}, step at length {bench.size}"
    note = "" if baseline else bench.no_baseline
    yield paired(workload, unit, spent["msrnn"], name, spent.get(NAME, ()), target, note)


def kvpress(bench: Bench) -> Iterator[Result]:
    """Compare ``step_`` with kvpress, which also evicts after every token."""
    cell = bench.cell()
    ids = bench.text(bench.size)
    with decoding(bench, ids, STEPS) as decode:
        spent = bench.step_ms({"msrnn": repeated(step_on_full_state(bench, cell), ids), "kvpress": decode})
    assert bench.kvpress is not None
    workload, name = f"step_, {bench.tova}, {dtype_name(cell)}", f"kvpress {versions(bench.kvpress)}"
    yield paired(workload, "ms/token", spent["msrnn"], name, spent["kvpress"], "≤ 0.5")


def llama(bench: Bench) -> Iterator[Result]:
    """Compare ``step_`` with llama.cpp, which reads the GGUF file of the model and evicts nothing."""
    cell, ids = bench.cell(), bench.text(bench.size)
    with llama_cpp.stepping(bench, ids, STEPS) as steps:
        spent = bench.step_ms({"msrnn": repeated(step_on_full_state(bench, cell), ids), "llama.cpp": steps})
    assert bench.llama_cpp is not None
    assert bench.gguf is not None
    name = f"llama-cpp-python {llama_cpp.version(bench.llama_cpp)}, {bench.gguf.name}"
    yield paired(f"step_, {bench.tova}, {dtype_name(cell)}", "ms/token", spent["msrnn"], name, spent["llama.cpp"])


def bandwidth(bench: Bench) -> Iterator[Result]:
    """Compare the parameter bytes that a step reads per second with the rate at which a large tensor is summed."""
    cell, large = bench.cell(), torch.ones(SUMMED_BYTES // 4, device=bench.device)

    def sums() -> None:
        for _ in range(STEPS):
            large.sum()

    steps = repeated(step_on_full_state(bench, cell), bench.text(bench.size))
    spent = bench.time({"step": steps, "sum": sums}, 5 * bench.rounds)
    values = [STEPS * bytes_read(cell) / t / 1e9 for t in spent["step"]]
    baselines = [STEPS * SUMMED_BYTES / t / 1e9 for t in spent["sum"]]
    workload, name = f"parameters read in a step_, {bench.tova}, {dtype_name(cell)}", f"summing {SUMMED_BYTES / 1e6:.0f} MB"
    yield paired(workload, "GB/s", values, name, baselines, "≥ 0.45 (aim 0.5)")


def bytes_read(cell: Cell) -> int:
    """Return the bytes of the weights that a step reads: all of them, except an embedding that is not also the LM head."""
    tensors = cell.state_dict()
    skipped = () if cell.config.tied else ("embed.weight", "embed.codes", "embed.scales")
    return sum(x.nbytes for name, x in tensors.items() if name not in skipped)


def pure_step(bench: Bench) -> Iterator[Result]:
    """Compare ``step``, which does not modify its state, with ``step_``."""
    cell = bench.cell()
    far = 4000 * bench.tokens // 2048  # 4,000 for the default length of a text
    for spec, tokens, target in ((bench.tova, bench.size + 1, "≤ 1.1"), ("full", far, "≤ 1.15")):
        start = bench.full_state(cell, spec, tokens)
        states = {"step": start, "step_": start.clone()}

        def advance(token: Tensor, name: str, states: dict[str, State] = states) -> None:
            _, states[name] = getattr(cell, name)(token, states[name])

        spent = bench.step_ms({name: repeated(partial(advance, name=name), bench.text(bench.size)) for name in states})
        workload = f"step, {spec}, position {tokens:,}"
        yield paired(workload, "ms/token", spent["step"], "step_", spent["step_"], target)


def step_on_full_state(bench: Bench, cell: Cell, batch_size: int = 1) -> Callable[[Tensor], object]:
    """Return ``step_`` on a new full H, repeated to ``batch_size`` sequences."""
    return in_place_step(cell, bench.full_state(cell).select([0] * batch_size))


def dtype_name(cell: Cell) -> str:
    """Return the dtype of the parameters for a label, such as ``float32``, after the kind of packed weights."""
    kind = kind_of_weights(cell)
    return f"{f'{kind}, ' if kind else ''}{str(cell.dtype).removeprefix('torch.')}"
