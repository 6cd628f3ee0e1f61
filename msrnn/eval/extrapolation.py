"""Extrapolation beyond the training length: perplexity along a whole text with a bounded state (fig. 7 of the paper, v2).

All texts are read in one batch, under every operator and size, with absolute or remapped positions. The state is saved after
every segment. A stopped run resumes from the saved state, and a finished run can be continued with more tokens.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from ..argtypes import positive_int
from ..cell.cell import Cell
from ..errors import Error
from ..reporting.report import Curves, Report, Table, format_significant
from ..reporting.statistics import Mean, mean, paired
from ..state.loading import load_state
from ..state.position_remapping import ABSOLUTE, RULES
from ..state.state import State
from ..storage.digest import digest
from ..storage.output_paths import create_folder
from .conditions import Condition, add_condition_arguments, check_affected, condition_name, load_results, parse_conditions
from .inputs import EvalInputs, add_text_arguments
from .teacher_forcing import MAX_LOGITS, score_tokens
from .texts import text_digest

N_SPANS = 6
"""Maximum number of columns of a table."""


@dataclass(frozen=True)
class ExtrapolationResult:
    """One segment of consecutive tokens of all texts.

    Attributes:
        operator, size, places: operator, size and position remapping.
        start: number of tokens before the segment.
        tokens: number of tokens of the segment, per text.
        texts: names of the texts.
        nll: by text, nats summed over the tokens after each token of the segment.
        seconds: reading time of all texts together.
    """

    operator: str
    size: int | None
    places: str
    start: int
    tokens: int
    texts: list[str]
    nll: list[float]
    seconds: float

    @property
    def name(self) -> str:
        """Operator, size and position remapping."""
        return f"{condition_name(self.operator, self.size)} {self.places}"


@torch.no_grad()
def score_segment(cell: Cell, tokens: Tensor, state: State) -> tuple[Tensor, State]:
    """Read all tokens except the last, and score all except the first. Memory is independent of T.

    Args:
        cell: the cell.
        tokens: ``(B, T + 1)`` int64.
        state: state before the first token.

    Returns:
        ``(B, T)`` −ln p in at least float32, and the state after T tokens.
    """
    step, losses = max(1, MAX_LOGITS // (len(tokens) * cell.config.vocab_size)), []
    for start in range(0, tokens.shape[1] - 1, step):
        piece = tokens[:, start : start + step + 1]
        logits, state = cell(piece[:, :-1], state)
        losses.append(score_tokens(logits, piece[:, 1:]).nll)
    return torch.cat(losses, dim=1), state


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn eval extrapolation``."""
    add_text_arguments(parser)
    parser.add_argument("--tokens", type=positive_int, metavar="N", default=16384, help="tokens per text (default: 16384)")
    parser.add_argument("--stretch", type=positive_int, metavar="N", default=512, help="tokens per segment (default: 512)")
    add_condition_arguments(parser, ("sinks:SIZE:4", "tova"), (256,))
    rules = [ABSOLUTE, *RULES]
    help_text = f"positions of the rows when they are read (default: {' '.join(rules)})"
    parser.add_argument("--places", nargs="+", choices=rules, default=rules, help=help_text)


def run(args: argparse.Namespace, inputs: EvalInputs) -> Report:
    """Read the texts under all conditions and position remappings."""
    conditions = parse_conditions(args.operators, args.sizes)
    if truncated := [condition for condition in conditions if condition.truncated]:
        raise Error(f"--operators has {truncated[0]}, which carries no state; expected operators")
    if args.tokens % args.stretch:
        raise Error(f"--tokens is {args.tokens}; expected a multiple of --stretch, {args.stretch}")
    for rule in args.places:
        inputs.cell.initial_state(1, places=rule)  # refuses a rule that the model does not allow
    check_affected(conditions, args.tokens, "a text")
    args.chunk, args.chunks = args.tokens + 1, 1
    chunks = inputs.chunks(args)
    inputs.check_memory(len(chunks), [condition.rows for condition in conditions], args.tokens)
    names, ids = [chunk.text_name for chunk in chunks], torch.stack([chunk.ids for chunk in chunks]).to(inputs.cell.device)
    rows = {
        (condition, rule): {f"{condition.key} {rule} from {start}": start for start in range(0, args.tokens, args.stretch)}
        for condition in conditions
        for rule in args.places
        if rule == ABSOLUTE or condition.bounds  # remapping does not change an unbounded H
    }
    if not rows:
        raise Error(f"--places has {', '.join(args.places)}, and no operator is bounded; expected {ABSOLUTE}")
    sweep = inputs.sweep(args.out, "extrapolation", text=text_digest(chunks), stretch=args.stretch)
    current, state = None, None
    for (condition, rule), pending in inputs.pending(sweep, rows, 1, together=lambda row: row):
        path = None if args.out is None else args.out / "states" / f"{_file_name(f'{condition.key} {rule}')}.safetensors"
        for key, start in pending.items():
            if state is None or current != (condition, rule):
                current, state = (condition, rule), saved_state(inputs.cell, condition, rule, len(chunks), path, start)
            totals, seconds, state = _score_until(inputs.cell, ids, state, start, args.stretch)
            segment = (rule, start, args.stretch, names, totals, seconds)
            sweep[key] = asdict(ExtrapolationResult(condition.operator, condition.size, *segment))
            if path is not None:
                create_folder(path.parent)
                state.save(path)
    return report(load_results(ExtrapolationResult, sweep, rows), inputs.cell.config.context_length)


def _file_name(key: str) -> str:
    """Return a name for the file of a state; a digest of a long key, because a name has at most 255 bytes."""
    name = quote(key, safe=" ")
    return name if len(name) <= 200 else digest(key)


def _score_until(cell: Cell, ids: Tensor, state: State, start: int, length: int) -> tuple[list[float], float, State]:
    """Read segments of ``length`` tokens up to and including the one from ``start``.

    Returns:
        For the last segment the sum of −ln p of each text and the seconds; and the state after it.
    """
    while (clock := int(state.clock[0])) <= start:
        begin = time.perf_counter()
        losses, state = score_segment(cell, ids[:, clock : clock + length + 1], state)
        totals = losses.cpu().double().sum(1).tolist()  # synchronises with the device
        seconds = time.perf_counter() - begin
    return totals, seconds, state


def saved_state(cell: Cell, condition: Condition, rule: str, batch_size: int, path: Path | None, start: int) -> State:
    """Return the state that an earlier run saved, if it has read at most ``start`` tokens; otherwise an empty state."""
    empty = cell.initial_state(batch_size, condition.reduction, places=rule)
    if path is None or not path.exists():
        return empty
    state = load_state(path, device=empty.clock.device)
    cell.check_state(state, batch_size)
    same = all(H.reduction == G.reduction and H.places == G.places for H, G in zip(state, empty, strict=True))
    return state if same and int(state.clock[0]) <= start else empty


def report(results: Sequence[ExtrapolationResult], training_length: int) -> Report:
    """Return tables of perplexity per span and up to each span, differences from the first row, times, and the curves."""
    lines: dict[str, list[ExtrapolationResult]] = {}
    for r in results:
        lines.setdefault(r.name, []).append(r)
    first = next(iter(lines.values()))
    per_span = -(-len(first) // N_SPANS)  # segments per span
    spans = [slice(i, min(i + per_span, len(first))) for i in range(0, len(first), per_span)]
    columns = ["operator and places", *(f"to {first[span][-1].start + first[span][-1].tokens:,}" for span in spans)]
    segment = f"{first[0].tokens:,} tokens"

    def table(title: str, note: str, cell: Callable[[list[ExtrapolationResult], slice], str]) -> Table:
        return Table(title, columns, [[name, *(cell(line, span) for span in spans)] for name, line in lines.items()], note)

    def difference(line: list[ExtrapolationResult], span: slice) -> str:
        return "" if line is first else f"{_difference(line[span], first[span]):+.4f}"

    tables = [
        table(
            "Perplexity by span",
            f"Texts: {', '.join(first[0].texts)}; the model was trained on texts of {training_length:,} tokens.",
            lambda line, span: format_significant(perplexity(line[span])),
        ),
        table(
            "Perplexity of all tokens so far",
            "As in fig. 7 of the paper.",
            lambda line, span: format_significant(perplexity(line[: span.stop])),
        ),
        table(
            f"Nats per token relative to {first[0].name}",
            f"Mean ± standard error of the differences per segment of {segment}.",
            difference,
        ),
        Table(
            "Time",
            ["operator and places", "ms per token"],
            [[name, f"{1e3 * mean([r.seconds / r.tokens for r in line]).value:.1f}"] for name, line in lines.items()],
            "Wall-clock time of all texts together.",
        ),
    ]
    return Report(tables, [asdict(r) for r in results], {"beyond.png": _curves(lines, spans, training_length)})


def _curves(lines: Mapping[str, Sequence[ExtrapolationResult]], spans: Sequence[slice], training_length: int) -> Curves:
    """Return the differences from the first row by span, or the perplexities of the segments if there is only one row.

    The difficulty of the text changes from segment to segment much more than operators differ.
    """
    label, trained = "tokens read", {"training length": training_length}
    (name, first), *others = lines.items()
    if not others:
        points = {name: [(float(r.start + r.tokens), perplexity([r]), math.nan) for r in first]}
        title = f"perplexity of every {first[0].tokens:,} tokens"
        return Curves(title, label, "perplexity", points, log_x=False, log_y=True, vertical_lines=trained)
    differences = {
        other: [(float(line[span][-1].start + line[span][-1].tokens), *_difference(line[span], first[span])) for span in spans]
        for other, line in others
    }
    title, y_label = "differences on the same tokens, and their standard errors", f"nats per token above {name}"
    return Curves(title, label, y_label, differences, {name: 0.0}, log_x=False, vertical_lines=trained)


def _difference(line: Sequence[ExtrapolationResult], reference: Sequence[ExtrapolationResult]) -> Mean:
    """Return the difference in nats per token over the segments of all texts, in pairs."""
    losses, base = ([x / r.tokens for r in some for x in r.nll] for some in (line, reference))
    return paired(losses, base)


def perplexity(results: Sequence[ExtrapolationResult]) -> float:
    """Return the perplexity of the tokens of all texts together."""
    return math.exp(sum(sum(r.nll) for r in results) / sum(r.tokens * len(r.nll) for r in results))
