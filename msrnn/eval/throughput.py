"""Throughput at the largest batch: bytes per sequence, batch size within a budget, tokens per second (table 1 of the paper).

A smaller state gives a larger batch, not a faster step. The bytes are measured on a full state, or on an unbounded state after
``--length`` tokens. The batch size is the budget divided by these bytes; the batch is then allocated and its bytes are
measured.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch

from ..argtypes import positive_int
from ..cell.cell import Cell
from ..errors import Error
from ..reductions.contract import Reduction
from ..reporting.report import Report, Table, format_significant
from .conditions import add_condition_arguments, is_unbounded, load_results, parse_conditions
from .inputs import EvalInputs, total_memory


@dataclass(frozen=True)
class ThroughputResult:
    """One condition at the largest batch.

    Attributes:
        operator, size: the condition.
        sequence_nbytes: bytes of the state of one sequence.
        batch_size: number of sequences within the budget.
        nbytes: measured bytes of the state of the batch after the last step.
        tokens_per_second: of all sequences together, at the median step.
    """

    operator: str
    size: int | None
    sequence_nbytes: int
    batch_size: int
    nbytes: int
    tokens_per_second: float


@torch.no_grad()
def measure_throughput(cell: Cell, reduction: Reduction, budget: int, length: int, steps: int) -> tuple[int, int, int, float]:
    """Time the last ``steps`` of ``length`` tokens at the largest batch within ``budget`` bytes.

    Returns:
        The fields of :class:`ThroughputResult` after ``size``.

    Raises:
        Error: the budget is too small for one sequence.
    """
    device = cell.device
    text = torch.randint(cell.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0)).to(device)
    _, state = cell(text[:, : length - steps], cell.initial_state(1, reduction), last_only=True)
    last, single = text[0, length - steps :], state.clone()
    for token in last:
        _, single = cell.step_(token[None], single)
    sequence_nbytes = single.nbytes
    batch_size = budget // sequence_nbytes
    if batch_size < 1:
        raise Error(f"the budget is {budget:,} bytes; expected at least {sequence_nbytes:,}, one sequence under {reduction}")
    del single
    batch, seconds = state.select([0] * batch_size), []
    for token in last:
        begin = time.perf_counter()
        logits, batch = cell.step_(token.repeat(batch_size), batch)
        float(logits[0, 0])  # synchronises with the device
        seconds.append(time.perf_counter() - begin)
    return sequence_nbytes, batch_size, batch.nbytes, batch_size / median(seconds)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn eval throughput``."""
    add_condition_arguments(parser, ("tova", "full"), (64, 128, 256, 512, 1024))
    parser.add_argument("--budget", type=positive_int, metavar="MB", default=1000, help="memory for the states (default: 1000)")
    parser.add_argument("--length", type=positive_int, metavar="N", default=2048, help="tokens per sequence (default: 2048)")
    parser.add_argument("--steps", type=positive_int, metavar="N", default=9, help="timed steps (default: 9)")


def run(args: argparse.Namespace, inputs: EvalInputs) -> Report:
    """Measure all conditions."""
    conditions = parse_conditions(args.operators, args.sizes)
    if args.steps >= args.length:
        raise Error(f"--steps is {args.steps}; expected fewer than --length, {args.length}")
    read = args.length - args.steps
    if not_full := [condition for condition in conditions if condition.truncated or max(condition.bounds, default=0) >= read]:
        raise Error(f"--operators has {not_full[0]}, which is not full after {read} tokens; expected a longer --length")
    for condition in conditions:
        inputs.cell.operators_per_layer(condition.reduction)  # refuses an operator that the model cannot use
    if (budget := args.budget * 10**6) > (memory := total_memory(inputs.cell.device)):
        raise Error(f"--budget is {budget / 1e9:,.1f} GB; the machine has {memory / 1e9:,.1f} GB")
    settings = {"budget": args.budget, "length": args.length, "steps": args.steps}
    sweep = inputs.sweep(args.out, "throughput", **settings)
    rows = {condition: {condition.key: condition} for condition in conditions}
    together = None if inputs.cell.device.type == "cuda" else lambda _: ""  # ranks on one CPU would disturb each other's times
    inputs.launch.set_threads(together is not None)
    for condition, batch in inputs.pending(sweep, rows, 1, together):
        measured = measure_throughput(inputs.cell, condition.reduction, budget, args.length, args.steps)
        sweep[next(iter(batch))] = asdict(ThroughputResult(condition.operator, condition.size, *measured))
    return report(load_results(ThroughputResult, sweep, rows), args.budget, args.length)


def report(results: Sequence[ThroughputResult], budget: int, length: int) -> Report:
    """Return a table with one row per condition. Throughput is relative to the unbounded state, or else to the last row."""
    reference = next((r for r in results if is_unbounded(r.operator)), results[-1]).tokens_per_second
    rows = [
        [
            *(r.operator, "unbounded" if r.size is None else str(r.size), f"{r.sequence_nbytes / 1e6:,.2f}", str(r.batch_size)),
            *(f"{r.nbytes / 1e6:,.0f}", format_significant(r.tokens_per_second), f"{r.tokens_per_second / reference:.2f}"),
        ]
        for r in results
    ]
    columns = ["operator", "size", "MB per sequence", "largest batch", "MB in total", "tokens/s", "relative throughput"]
    note = f"States after {length:,} tokens, in {budget:,} MB; tokens per second of all sequences together."
    return Report([Table("Throughput at the largest batch", columns, rows, note)], [asdict(r) for r in results])
