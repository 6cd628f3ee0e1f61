"""What a smaller state buys: bytes of a sequence, how many fit into a budget, and tokens per second at that many (table 1).

The gain comes from the larger batch, not from a faster step. Bytes are those of a state that is full, or has read ``--length``
tokens. The batch is what the budget divided by them gives; it is then really held, and its bytes are looked at.
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
from ..reporting.sweep import Sweep
from . import conditions
from .conditions import entries
from .inputs import Source, total_memory


@dataclass(frozen=True)
class Speed:
    """One operator at the largest batch.

    Attributes:
        operator, size: which.
        sequence: bytes of one sequence's state.
        batch: how many fit into the budget.
        held: bytes that they were seen to hold together, after the last step.
        tokens_per_second: of all sequences together, by the median step.
    """

    operator: str
    size: int | None
    sequence: int
    batch: int
    held: int
    tokens_per_second: float


@torch.no_grad()
def measure(cell: Cell, reduction: Reduction, budget: int, length: int, steps: int) -> tuple[int, int, int, float]:
    """Bytes of a sequence that has read ``length`` tokens, sequences in ``budget`` bytes, bytes held by these, tokens a second
    over the last ``steps`` of the ``length`` tokens.

    Raises:
        Error: not one sequence fits.
    """
    device = cell.device
    text = torch.randint(cell.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0)).to(device)
    _, state = cell(text[:, : length - steps], cell.initial_state(1, reduction), last_only=True)
    last, alone = text[0, length - steps :], state.clone()
    for token in last:
        _, alone = cell.step_(token[None], alone)
    sequence = alone.nbytes
    batch = budget // sequence
    if batch < 1:
        raise Error(f"{reduction} holds {sequence:,} bytes a sequence; the budget is {budget:,}")
    del alone
    many, spent = state.select([0] * batch), []
    for token in last:
        begin = time.perf_counter()
        logits, many = cell.step_(token.repeat(batch), many)
        float(logits[0, 0])  # waits for the device
        spent.append(time.perf_counter() - begin)
    return sequence, batch, many.nbytes, batch / median(spent)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line's."""
    conditions.add_arguments(parser, ("tova", "full"), (64, 128, 256, 512, 1024))
    parser.add_argument("--budget", type=positive_int, metavar="MB", default=1000, help="for the states (default: 1000)")
    parser.add_argument("--length", type=positive_int, metavar="N", default=2048, help="tokens of a sequence (default: 2048)")
    parser.add_argument("--steps", type=positive_int, metavar="N", default=9, help="steps that are timed (default: 9)")


def run(args: argparse.Namespace, source: Source) -> Report:
    """All operators and sizes."""
    places = entries(args.operators, args.sizes)
    if args.steps >= args.length:
        raise Error(f"--steps is {args.steps}; expected fewer than --length, {args.length}")
    if cut := [entry for entry in places if entry.truncated or (entry.size or 0) >= args.length - args.steps]:
        raise Error(f"{cut[0]} is not full after {args.length - args.steps} tokens; expected a longer --length")
    if (budget := args.budget * 10**6) > (memory := total_memory(source.cell.device)):
        raise Error(f"--budget is {budget / 1e9:,.1f} GB; the machine has {memory / 1e9:,.1f} GB")
    about = {"experiment": "throughput", "model": source.cell.fingerprint().digest(), "device": args.device}
    sweep = Sweep(args.out, about | {"budget": args.budget, "length": args.length, "steps": args.steps})
    for entry, now in sweep.pending({entry: {str(entry): entry} for entry in places}, 1, source.progress):
        sweep[next(iter(now))] = asdict(
            Speed(entry.row, entry.size, *measure(source.cell, entry.reduction, budget, args.length, args.steps))
        )
    found = [Speed(**{**sweep[str(e)], "operator": e.row, "size": e.size}) for e in places]
    return report(found, args.budget, args.length)


def report(records: Sequence[Speed], budget: int, length: int) -> Report:
    """One row per operator and size; speed is relative to the unbounded one where there is one, otherwise to the last."""
    one = next((r for r in records if r.size is None), records[-1]).tokens_per_second
    rows = [
        [
            *(r.operator, "unbounded" if r.size is None else str(r.size), f"{r.sequence / 1e6:,.2f}", str(r.batch)),
            *(f"{r.held / 1e6:,.0f}", format_significant(r.tokens_per_second), f"{r.tokens_per_second / one:.2f}"),
        ]
        for r in records
    ]
    columns = ["operator", "size", "MB a sequence", "batch", "MB held", "tokens/s", "relative"]
    note = f"States of {length:,} tokens read, in {budget:,} MB; tokens per second of all sequences together."
    return Report([Table("Throughput at the largest batch", columns, rows, note)], [asdict(r) for r in records])
