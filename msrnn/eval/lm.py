"""Language modelling under a bounded state: perplexity and bits per byte (the paper's fig. 3 and table 3).

Each chunk is read by the fold from an empty state, so that the operator acts from the first token on, and every token but the
first is predicted. The truncated baseline is the unbounded model that sees ``size`` tokens at most: it starts anew every
``size`` tokens, the last one being read again so that all tokens are predicted there too.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..argtypes import positive_int
from ..cell.cell import Cell
from ..errors import Error
from ..reductions.contract import Reduction
from ..reporting.report import Curves, Report, Table, format_significant
from ..reporting.statistics import mean, paired
from ..reporting.sweep import Sweep
from . import conditions
from .conditions import Entry, entries
from .inputs import Source, add_text_arguments
from .teacher_forcing import forced
from .texts import Chunk, text_digest

AT_ONCE = 1024
"""Tokens of a truncated text that are read side by side."""


@torch.no_grad()
def nll(cell: Cell, tokens: Tensor, reduction: Reduction | str | Sequence[Reduction | str] | None = None) -> Tensor:
    """How badly each token was predicted from those before it.

    Args:
        cell: the cell.
        tokens: ``(B, T)`` int64, T at least 2.
        reduction: as ``cell.initial_state`` takes it.

    Returns:
        ``(B, T − 1)`` float32 (float64 of a float64 cell): −ln p of tokens 1 … T − 1. Memory is that of a few hundred tokens'
        logits, whatever T.
    """
    logits, state = cell(tokens[:, :1], cell.initial_state(len(tokens), reduction), last_only=True)
    return forced(cell, logits, tokens[:, 1:], state).nll


def truncated_nll(cell: Cell, tokens: Tensor, size: int) -> Tensor:
    """:func:`nll` of the unbounded model that starts anew every ``size`` tokens: each token is predicted from 1 to ``size``."""
    B, T = tokens.shape
    whole = (T - 1) // size * size  # tokens predicted in whole pieces; a piece reads one that it does not predict
    pieces = [tokens[:, i : i + size + 1] for i in range(0, whole, size)]
    together = [torch.cat(pieces[i : i + max(1, AT_ONCE // size)]) for i in range(0, len(pieces), max(1, AT_ONCE // size))]
    read = [nll(cell, rows, "full").unflatten(0, (-1, B)).transpose(0, 1).flatten(1) for rows in together]
    rest = [nll(cell, tokens[:, whole:], "full")] if whole < T - 1 else []
    return torch.cat(read + rest, dim=1)


@dataclass(frozen=True)
class Scored:
    """One chunk under one operator.

    Attributes:
        operator, size, chunk: which.
        nll: nats, of all ``tokens`` predicted together.
        n_bytes: of these tokens, as text.
        seconds: it took, of all chunks read beside it together.
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
        """The name of the text that the chunk is part of."""
        return self.chunk.rpartition(" ")[0]


def score(cell: Cell, chunks: Sequence[Chunk], entry: Entry) -> list[Scored]:
    """Chunks of the same length, side by side in a batch."""
    tokens = torch.stack([chunk.ids for chunk in chunks]).to(cell.device)
    begin = time.perf_counter()
    if entry.truncated:
        assert entry.size is not None
        lost = truncated_nll(cell, tokens, entry.size)
    else:
        lost = nll(cell, tokens, entry.reduction)
    first = chunks[0].first
    totals = lost[:, first - 1 :].double().sum(1).tolist()  # waits for the device
    seconds, n = time.perf_counter() - begin, tokens.shape[1] - first
    pairs = zip(chunks, totals, strict=True)
    return [Scored(entry.row, entry.size, c.name, total, n, c.n_bytes, seconds / len(chunks)) for c, total in pairs]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line's."""
    add_text_arguments(parser, chunk=2048)
    conditions.add_arguments(parser, (*conditions.CORE, conditions.TRUNCATED))
    parser.add_argument(
        "--against", metavar="FORM", default="tova", help="operator to compare with, chunk by chunk (default: tova)"
    )
    parser.add_argument(
        "--batch", type=positive_int, metavar="B", default=1, help="chunks side by side (default: 1; a GPU wants more)"
    )


def run(args: argparse.Namespace, source: Source) -> Report:
    """Score all chunks under all operators and sizes."""
    places = entries(args.operators, args.sizes)
    if args.against not in args.operators:
        raise Error(f"--against is {args.against!r}; expected one of the operators, {', '.join(args.operators)}")
    chunks = source.chunks(args)
    source.check_memory(args.batch, [entry.size for entry in places], args.chunk)
    settings = {
        "experiment": "lm",
        "model": source.cell.fingerprint().digest(),
        "text": text_digest(chunks),
        "chunk": args.chunk,
    }
    sweep = Sweep(args.out, settings)
    rows = {entry: {f"{entry} on {chunk.name}": chunk for chunk in chunks} for entry in places}
    for entry, now in sweep.pending(rows, args.batch, source.progress):
        for key, record in zip(now, score(source.cell, list(now.values()), entry), strict=True):
            sweep[key] = asdict(record)
    found = [Scored(**{**sweep[key], "operator": e.row, "size": e.size}) for e, row in rows.items() for key in row]
    return report(found, args.against)


def report(records: Sequence[Scored], against: str) -> Report:
    """Tables of perplexity, bits per byte and differences from ``against``, and the picture; of each text and of all."""
    texts = list(dict.fromkeys(r.text for r in records))
    tables = [t for text in texts for t in _tables([r for r in records if r.text == text], against, f", {text}")]
    if len(texts) > 1:
        tables = [*_tables(records, against, ", all texts"), *tables]
    by_place = _places(records)
    lines: dict[str, list[tuple[float, float, float]]] = {}
    levels = {}
    for (row, size), scored in by_place.items():
        value, error = mean([r.mean for r in scored])
        if size is None:
            levels[row] = math.exp(value)
        else:
            lines.setdefault(row, []).append((size, math.exp(value), math.exp(value) * error))
    picture = Curves(
        "perplexity, and its standard error over chunks", "tokens carried", "perplexity", lines, levels, log_y=True
    )
    return Report(tables, [asdict(r) for r in records], {"lm.png": picture})


def _places(records: Sequence[Scored]) -> dict[tuple[str, int | None], list[Scored]]:
    places: dict[tuple[str, int | None], list[Scored]] = {}
    for r in records:
        places.setdefault((r.operator, r.size), []).append(r)
    return places


def _tables(records: Sequence[Scored], against: str, of: str) -> list[Table]:
    places, n = _places(records), len({r.chunk for r in records})
    sizes = sorted({size for _, size in places if size is not None})
    columns = ["operator", *map(str, sizes), *(["unbounded"] if any(size is None for _, size in places) else [])]
    ours = {size: places.get((against, size), places.get((against, None))) for size in (*sizes, None)}

    def table(title: str, note: str, word: Callable[[list[Scored], list[Scored] | None], str]) -> Table:
        rows = []
        for row in dict.fromkeys(row for row, _ in places):
            cells = {size: word(scored, ours[size]) for (name, size), scored in places.items() if name == row}
            rows.append([row, *(cells.get(size, "") for size in [*sizes, None][: len(columns) - 1])])
        return Table(title + of, columns, rows, note)

    def perplexity(scored: list[Scored], _: object) -> str:
        value, error = mean([r.mean for r in scored])
        return f"{format_significant(math.exp(value))}" + (
            "" if math.isnan(error) else f" ± {format_significant(math.exp(value) * error, 2)}"
        )

    def bits(scored: list[Scored], _: object) -> str:
        return f"{sum(r.nll for r in scored) / math.log(2) / sum(r.n_bytes for r in scored):.4f}"

    def difference(scored: list[Scored], base: list[Scored] | None) -> str:
        if base is None or base is scored:
            return ""
        value, error = paired([r.mean for r in scored], [r.mean for r in base])
        worse = sum(a.mean > b.mean for a, b in zip(scored, base, strict=True))
        return f"{value:+.4f}" + ("" if math.isnan(error) else f" ± {error:.4f}") + f" ({worse}/{len(scored)})"

    count = f"{n} chunk{'s' * (n > 1)} of {records[0].tokens:,} predicted tokens"
    return [
        table("Perplexity", f"{count}; ± is the standard error over chunks.", perplexity),
        table("Bits per byte", count + ".", bits),
        table(
            f"Nats per token beyond {against}",
            f"Chunk by chunk: mean ± standard error of the differences, and on how many chunks it was worse than {against}.",
            difference,
        ),
    ]
