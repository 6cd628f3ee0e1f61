"""What the shortcut costs: a prompt read by the fold, or under full attention and cut once (``prefill``), and what follows.

The published codes of most operators read a prompt by the shortcut, so the numbers published for them are its numbers. Here
both read the same prompt; the rest of the chunk is then read by the fold from either state, under the same operator.
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
from ..decoding.prefill import prefill
from ..errors import Error
from ..reductions.contract import Reduction
from ..reporting.report import Report, Table, format_significant
from ..reporting.statistics import mean, paired
from ..reporting.sweep import Sweep
from ..state.state import State
from . import conditions
from .conditions import entries
from .inputs import Source, add_text_arguments
from .teacher_forcing import forced
from .texts import text_digest


@dataclass(frozen=True)
class Costs:
    """One text under one operator, read both ways.

    Attributes:
        exact, shortcut: nats a token of what follows the prompt, ``tokens`` of them, after the fold and after the shortcut.
        common: the share of the rows that both hold after the prompt, over layers and heads.
        exact_seconds, shortcut_seconds: to read the prompt.
    """

    exact: float
    shortcut: float
    tokens: int
    common: float
    exact_seconds: float
    shortcut_seconds: float


@dataclass(frozen=True)
class Compared(Costs):
    """Which chunk, operator and size."""

    operator: str
    size: int | None
    chunk: str


@torch.no_grad()
def compare(cell: Cell, tokens: Tensor, reduction: Reduction | str, n_prompt: int) -> Costs:
    """What the shortcut costs on one text ``(T,)`` of which the first ``n_prompt`` tokens are the prompt.

    Raises:
        Error: as ``prefill``; a prompt that is empty or the whole text.
    """
    if not 0 < n_prompt < len(tokens):
        raise Error(f"the prompt has {n_prompt} of {len(tokens)} tokens; expected some, and that something follows")
    prompt, rest = tokens[None, :n_prompt], tokens[None, n_prompt:]
    by_fold, exact_seconds = _timed(lambda: cell(prompt, cell.initial_state(1, reduction), last_only=True))
    at_once, shortcut_seconds = _timed(lambda: prefill(cell, prompt, reduction))
    exact, shortcut = (float(forced(cell, logits, rest, H).nll.double().mean()) for logits, H in (by_fold, at_once))
    return Costs(exact, shortcut, rest.shape[1], common(by_fold[1], at_once[1]), exact_seconds, shortcut_seconds)


def _timed(read: Callable[[], tuple[Tensor, State]]) -> tuple[tuple[Tensor, State], float]:
    begin = time.perf_counter()
    logits, state = read()
    logits.sum().item()  # waits for the device
    return (logits, state), time.perf_counter() - begin


def common(one: State, other: State) -> float:
    """The share of the positions that ``one`` holds and ``other`` holds too, over layers and heads; NaN of empty states."""
    both = held = 0
    for G, H in zip(one, other, strict=True):
        same = (G.positions[..., None] == H.positions[..., None, :]) & ~G.empty[..., None]  # (B, K, S, S')
        both, held = both + int(same.sum()), held + int((~G.empty).sum())
    return both / held if held else math.nan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line's."""
    add_text_arguments(parser, chunk=2048)
    parser.add_argument(
        "--prompt", metavar="N", type=positive_int, default=1024, help="tokens of a chunk that are the prompt (default: 1024)"
    )
    conditions.add_arguments(parser, ("window", "sinks:SIZE:4", "h2o", "tova", "last-queries"), (128, 512))


def run(args: argparse.Namespace, source: Source) -> Report:
    """All chunks under all operators and sizes, both ways."""
    places = entries(args.operators, args.sizes)
    for entry in places:
        if entry.truncated or entry.reduction.merges_values:
            raise Error(f"{entry} has no shortcut; expected operators that drop rows")
    if args.prompt >= args.chunk:
        raise Error(f"--prompt is {args.prompt}; expected less than --chunk, {args.chunk}, so that something follows")
    chunks = source.chunks(args)
    source.check_memory(1, [None], args.chunk)  # the shortcut holds the whole prompt
    settings = {"experiment": "shortcut", "model": source.cell.fingerprint().digest(), "text": text_digest(chunks)}
    sweep = Sweep(args.out, {**settings, "chunk": args.chunk, "prompt": args.prompt})
    rows = {entry: {f"{entry} on {chunk.name}": chunk for chunk in chunks} for entry in places}
    device = source.cell.device
    for entry, now in sweep.pending(rows, 1, source.progress):
        for key, chunk in now.items():
            found = compare(source.cell, chunk.ids.to(device), entry.reduction, args.prompt)
            sweep[key] = {**asdict(found), "operator": entry.row, "size": entry.size, "chunk": chunk.name}
    return report([Compared(**{**sweep[key], "operator": e.row, "size": e.size}) for e, row in rows.items() for key in row])


def report(records: Sequence[Compared]) -> Report:
    """One table, a line for each operator and size."""
    places: dict[tuple[str, int | None], list[Compared]] = {}
    for r in records:
        places.setdefault((r.operator, r.size), []).append(r)
    lines = []
    for (row, size), found in places.items():
        exact, shortcut = [r.exact for r in found], [r.shortcut for r in found]
        value, error = paired(shortcut, exact)
        lines.append(
            [
                row,
                "" if size is None else str(size),
                format_significant(math.exp(mean(exact).value)),
                format_significant(math.exp(mean(shortcut).value)),
                f"{value:+.4f}" + ("" if math.isnan(error) else f" ± {error:.4f}"),
                f"{mean([r.common for r in found]).value:.0%}",
                f"{mean([r.exact_seconds for r in found]).value:.2f}",
                f"{mean([r.shortcut_seconds for r in found]).value:.2f}",
            ]
        )
    n = len({r.chunk for r in records})
    note = (
        f"Perplexity of the {records[0].tokens:,} tokens after the prompt, {n} chunk{'s' * (n > 1)}: after the exact fold, and "
        "after full attention over the prompt and one cut. Beyond: nats a token that the shortcut is worse, chunk by chunk, "
        "mean ± standard error. In common: of the rows held after the prompt. Seconds: to read the prompt."
    )
    columns = ["operator", "size", "fold", "shortcut", "beyond", "in common", "fold, s", "shortcut, s"]
    return Report([Table("The shortcut against the fold", columns, lines, note)], [asdict(r) for r in records])
