"""Language modelling with a bounded state: perplexity and bits per byte (fig. 3 and table 3 of the paper).

Each chunk is read by the many-token path from an empty state, so the operator evicts rows from token size + 1 on. All tokens
except the first are predicted. The truncated baseline is the unbounded model with at most ``size`` visible tokens. Its state is
reset every ``size`` tokens. The last token before a reset is read again, so that all tokens are predicted.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..argtypes import add_kv_dtype_argument, positive_int
from ..cell.cell import Cell
from ..reductions.contract import Reduction
from ..reporting.report import Curves, Report, Table, format_significant
from ..reporting.statistics import mean, paired
from .conditions import (
    CORE,
    TRUNCATED,
    Condition,
    add_condition_arguments,
    by_condition,
    check_affected,
    describe_several_sizes,
    is_published,
    is_unbounded,
    load_results,
    parse_conditions,
)
from .inputs import EvalInputs, add_text_arguments
from .reference import add_against_argument, choose_reference
from .teacher_forcing import teacher_force
from .texts import Chunk, text_digest

SIZE_LABEL = "size of the state in tokens"
BATCH_TOKENS = 1024
"""Tokens of a truncated text that are read in one batch."""


@torch.no_grad()
def nll(
    cell: Cell,
    tokens: Tensor,
    reduction: Reduction | str | Sequence[Reduction | str] | None = None,
    kv_dtype: torch.dtype | str | None = None,
) -> Tensor:
    """Return −ln p of each token given the tokens before it. Memory is independent of T.

    Args:
        cell: the cell.
        tokens: ``(B, T)`` int64, T at least 2.
        reduction: as for ``cell.initial_state``.
        kv_dtype: of keys and values, as ``dtype`` of ``cell.initial_state``.

    Returns:
        ``(B, T − 1)`` float32 (float64 for a float64 cell), for tokens 1 … T − 1.
    """
    logits, state = cell(tokens[:, :1], cell.initial_state(len(tokens), reduction, dtype=kv_dtype), last_only=True)
    return teacher_force(cell, logits, tokens[:, 1:], state).nll


def truncated_nll(cell: Cell, tokens: Tensor, size: int, kv_dtype: torch.dtype | str | None = None) -> Tensor:
    """Return :func:`nll` of the unbounded model with a reset every ``size`` tokens, so 1 to ``size`` tokens are visible."""
    B, T = tokens.shape
    complete = (T - 1) // size * size  # tokens predicted in complete windows
    windows = [tokens[:, i : i + size + 1] for i in range(0, complete, size)]  # the last token is predicted but not read
    step = max(1, BATCH_TOKENS // size)
    batches = [torch.cat(windows[i : i + step]) for i in range(0, len(windows), step)]
    found = [nll(cell, batch, "full", kv_dtype).unflatten(0, (-1, B)).transpose(0, 1).flatten(1) for batch in batches]
    rest = [nll(cell, tokens[:, complete:], "full", kv_dtype)] if complete < T - 1 else []
    return torch.cat(found + rest, dim=1)


@dataclass(frozen=True)
class LMResult:
    """One chunk under one condition.

    Attributes:
        operator, size, chunk: the condition and the name of the chunk.
        nll: nats, summed over the predicted ``tokens``.
        tokens: number of predicted tokens.
        n_bytes: length of the predicted tokens in UTF-8 bytes.
        seconds: reading time of the batch, divided by the number of chunks.
    """

    operator: str
    size: int | None
    chunk: str
    nll: float
    tokens: int
    n_bytes: int
    seconds: float

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.nll / self.tokens

    @property
    def text(self) -> str:
        """Name of the text of the chunk."""
        return self.chunk.rpartition(" ")[0]


def score_chunks(
    cell: Cell, chunks: Sequence[Chunk], condition: Condition, kv_dtype: torch.dtype | str | None = None
) -> list[LMResult]:
    """Score chunks of equal length in one batch."""
    tokens = torch.stack([chunk.ids for chunk in chunks]).to(cell.device)
    begin = time.perf_counter()
    if condition.truncated:
        assert condition.size is not None
        losses = truncated_nll(cell, tokens, condition.size, kv_dtype)
    else:
        losses = nll(cell, tokens, condition.reduction, kv_dtype)
    first = chunks[0].first
    totals = losses[:, first - 1 :].cpu().double().sum(1).tolist()  # synchronises with the device
    seconds, n = time.perf_counter() - begin, tokens.shape[1] - first
    return [
        LMResult(condition.operator, condition.size, chunk.name, total, n, chunk.n_bytes, seconds / len(chunks))
        for chunk, total in zip(chunks, totals, strict=True)
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn eval lm``."""
    add_text_arguments(parser, chunk=2048)
    add_condition_arguments(parser, (*CORE, TRUNCATED))
    add_against_argument(parser)
    add_kv_dtype_argument(parser)
    parser.add_argument("--batch", type=positive_int, metavar="B", default=1, help="batch size; use more on a GPU (default: 1)")


def run(args: argparse.Namespace, inputs: EvalInputs) -> Report:
    """Score all chunks under all conditions."""
    conditions = parse_conditions(args.operators, args.sizes)
    against = choose_reference(args.against, conditions)
    chunks = inputs.chunks(args)
    check_affected(conditions, args.chunk - 1, "the part of a chunk before its last token,")
    inputs.check_memory(args.batch, [condition.rows for condition in conditions], args.chunk)
    rows_dtype = {} if args.kv_dtype is None else {"kv_dtype": args.kv_dtype}
    sweep = inputs.sweep(args.out, "lm", text=text_digest(chunks), chunk=args.chunk, **rows_dtype)
    rows = {condition: {f"{condition.key} on {chunk.name}": chunk for chunk in chunks} for condition in conditions}
    for condition, batch in inputs.pending(sweep, rows, args.batch):
        for key, result in zip(batch, score_chunks(inputs.cell, list(batch.values()), condition, args.kv_dtype), strict=True):
            sweep[key] = asdict(result)
    return report(load_results(LMResult, sweep, rows), against, describe_several_sizes(conditions))


def report(results: Sequence[LMResult], against: str, remark: str = "") -> Report:
    """Return tables of perplexity, bits per byte and differences from ``against``, per text and in total, times, and curves.

    ``remark`` is a sentence on the columns, for the differences.
    """
    texts = list(dict.fromkeys(r.text for r in results))
    tables = [t for text in texts for t in _tables([r for r in results if r.text == text], against, remark, f", {text}")]
    if len(texts) > 1:
        tables = [*_tables(results, against, remark, ", all texts"), *tables]
    tables.append(_seconds(results))
    return Report(tables, [asdict(r) for r in results], {"lm.png": _curves(by_condition(results))})


def _curves(groups: Mapping[tuple[str, int | None], Sequence[LMResult]]) -> Curves:
    """Return the curves of differences from the unbounded model, or of perplexities if that was not measured.

    Chunks differ much more than operators do. In differences on the same chunks this cancels. Operators without a size, because
    some of their heads are unbounded, are levels.
    """
    found = [(operator, group) for (operator, size), group in groups.items() if size is None and is_unbounded(operator)]
    unbounded = next((group for _, group in sorted(found, key=lambda item: not is_published(item[0]))), None)
    lines: dict[str, list[tuple[float, float, float]]] = {}
    levels = dict[str, float]()
    for (operator, size), group in groups.items():
        if unbounded is None:
            value, error = mean([r.mean for r in group])
            y, error = math.exp(value), math.exp(value) * error
        else:
            y, error = paired([r.mean for r in group], [r.mean for r in unbounded])
        if size is not None:
            lines.setdefault(operator, []).append((size, y, error))
        elif not is_unbounded(operator):
            levels[operator] = y
    positive = all(y > 0 for y in (*levels.values(), *(y for points in lines.values() for _, y, _ in points)))
    if unbounded is None:
        title = "perplexity, and its standard error over chunks"
        return Curves(title, SIZE_LABEL, "perplexity", lines, levels, log_y=positive)
    title = "loss by eviction: mean difference on the same chunks, and its standard error"
    return Curves(title, SIZE_LABEL, "nats per token above the unbounded model", lines, levels, log_y=positive)


def _tables(results: Sequence[LMResult], against: str, remark: str, suffix: str) -> list[Table]:
    groups, n = by_condition(results), len({r.chunk for r in results})

    def perplexity(key: tuple[str, int | None]) -> str:
        value, error = mean([r.mean for r in groups[key]])
        shown = format_significant(math.exp(value))
        return shown if math.isnan(error) else f"{shown} ± {format_significant(math.exp(value) * error, 2)}"

    def bits(key: tuple[str, int | None]) -> str:
        return f"{sum(r.nll for r in groups[key]) / math.log(2) / sum(r.n_bytes for r in groups[key]):.4f}"

    def difference(key: tuple[str, int | None]) -> str:
        group, base = groups[key], groups.get((against, key[1]), groups.get((against, None)))
        if base is None or base is group:
            return ""
        worse = sum(a.mean > b.mean for a, b in zip(group, base, strict=True))
        return f"{paired([r.mean for r in group], [r.mean for r in base]):+.4f} ({worse}/{len(group)})"

    count = f"{n} chunk{'s' * (n > 1)} of {results[0].tokens:,} predicted tokens"
    error = "; ± is the standard error over chunks" if n > 1 else ""
    tables = [
        _table(f"Perplexity{suffix}", f"{count}{error}.", groups, perplexity),
        _table(f"Bits per byte{suffix}", f"{count}.", groups, bits),
    ]
    note = f"Mean ± standard error of the differences per chunk; in brackets, on how many chunks {against} is better."
    relative = _table(f"Nats per token relative to {against}{suffix}", f"{note} {remark}".strip(), groups, difference)
    return [*tables, relative] if any(text for row in relative.rows for text in row[1:]) else tables


def _seconds(results: Sequence[LMResult]) -> Table:
    groups = by_condition(results)
    note = "Median of the reading times, at the batch size and on the machine of the run."
    median = {key: format_significant(statistics.median(r.seconds for r in group)) for key, group in groups.items()}
    return _table("Seconds per chunk", note, groups, median.__getitem__)


def _table(
    title: str,
    note: str,
    groups: Mapping[tuple[str, int | None], Sequence[LMResult]],
    entry: Callable[[tuple[str, int | None]], str],
) -> Table:
    """Return a table with a row per operator and a column per size."""
    sizes = sorted({size for _, size in groups if size is not None})
    columns = [*sizes, *([None] if any(size is None for _, size in groups) else [])]
    rows = [
        [operator, *(entry((operator, size)) if (operator, size) in groups else "" for size in columns)]
        for operator in dict.fromkeys(operator for operator, _ in groups)
    ]
    return Table(title, ["operator", *("unbounded" if size is None else str(size) for size in columns)], rows, note)
