"""Beyond the training length: a whole text through a bounded state, as a running curve of perplexity (the paper's v2, fig. 7).

Texts are read side by side, each in one go, under every operator at every size, with rows at their positions or at places that
are counted among the rows there are. After every stretch the state is kept on disk, so a run that was stopped goes on, and a
finished one can be asked for more tokens.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from ..argtypes import positive_int
from ..cell.cell import Cell
from ..errors import Error
from ..reporting.report import Curves, Report, Table, format_significant
from ..reporting.statistics import mean, paired
from ..reporting.sweep import Sweep
from ..state.position_remapping import ABSOLUTE, RULES
from ..state.serialization import load_state
from ..state.state import State
from . import conditions
from .conditions import Entry, entries
from .inputs import Source, add_text_arguments
from .teacher_forcing import LOGITS, judged
from .texts import text_digest

SPANS = 6
"""Columns of a table."""


@dataclass(frozen=True)
class Stretch:
    """Some tokens in a row, of all texts side by side.

    Attributes:
        operator, size, places: how they were read.
        start: tokens read before the first of them.
        tokens: how many.
        texts, nll: by name, nats of the tokens after each of them, together.
        seconds: it took, all texts together.
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
        """Operator, size and places, in words."""
        size = "" if self.size is None or "SIZE" in self.operator or ":" in self.operator else f":{self.size}"
        return f"{self.operator.replace('SIZE', str(self.size))}{size} {self.places}"


@torch.no_grad()
def read(cell: Cell, tokens: Tensor, state: State) -> tuple[Tensor, State]:
    """Read all but the last of ``tokens (B, T + 1)`` int64: ``(B, T)`` in at least float32, −ln p of the token after each, and
    the state. Memory is that of a few hundred tokens' logits."""
    step, found = max(1, LOGITS // (len(tokens) * cell.config.vocab_size)), []
    for start in range(0, tokens.shape[1] - 1, step):
        piece = tokens[:, start : start + step + 1]
        logits, state = cell(piece[:, :-1], state)
        found.append(judged(logits, piece[:, 1:]).nll)
    return torch.cat(found, dim=1), state


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line's."""
    add_text_arguments(parser)
    parser.add_argument("--tokens", type=positive_int, metavar="N", default=16384, help="read of each text (default: 16384)")
    parser.add_argument("--stretch", type=positive_int, metavar="N", default=512, help="tokens between saves (default: 512)")
    conditions.add_arguments(parser, ("sinks:SIZE:4", "tova"), (256,))
    rules = [ABSOLUTE, *RULES]
    parser.add_argument(
        "--places",
        nargs="+",
        choices=rules,
        default=rules,
        help=f"where rows stand when they are read (default: {' '.join(rules)})",
    )


def run(args: argparse.Namespace, source: Source) -> Report:
    """All operators, sizes and places."""
    asked = entries(args.operators, args.sizes)
    if cut := [entry for entry in asked if entry.truncated]:
        raise Error(f"{cut[0]} carries no state through a text; expected operators")
    if args.tokens % args.stretch:
        raise Error(f"--tokens is {args.tokens}; expected a multiple of --stretch, {args.stretch}")
    args.chunk, args.chunks = args.tokens + 1, 1
    texts = source.chunks(args)
    source.check_memory(len(texts), [entry.size for entry in asked], args.tokens)
    about = {
        "experiment": "beyond",
        "model": source.cell.fingerprint().digest(),
        "text": text_digest(texts),
        "stretch": args.stretch,
    }
    ids = torch.stack([text.ids for text in texts]).to(source.cell.device)
    rows = {
        (entry, rule): {f"{entry} {rule} from {start}": start for start in range(0, args.tokens, args.stretch)}
        for entry in asked
        for rule in args.places
        if rule == ABSOLUTE or entry.size is not None  # of an unbounded H all places are the same
    }
    if not rows:
        raise Error(f"--places are {', '.join(args.places)}, and nothing is bounded; expected {ABSOLUTE}")
    sweep = Sweep(args.out, about)
    at, state = None, None
    for (entry, rule), now in sweep.pending(rows, 1, source.progress):
        kept = None if args.out is None else args.out / "states" / f"{quote(f'{entry} {rule}', safe=' ')}.safetensors"
        for key, start in now.items():
            if state is None or at != (entry, rule):
                at, state = (entry, rule), resume(source.cell, entry, rule, len(texts), kept, start)
            while int(state.clock[0]) <= start:
                begin, clock = time.perf_counter(), int(state.clock[0])
                lost, state = read(source.cell, ids[:, clock : clock + args.stretch + 1], state)
                totals = lost.double().sum(1).tolist()  # waits for the device
                names, seconds = [text.name.rpartition(" ")[0] for text in texts], time.perf_counter() - begin
            sweep[key] = asdict(Stretch(entry.row, entry.size, rule, start, args.stretch, names, totals, seconds))
            if kept is not None:
                kept.parent.mkdir(exist_ok=True)
                state.save(kept)
    found = [Stretch(**{**sweep[key], "operator": e.row, "size": e.size}) for (e, _), row in rows.items() for key in row]
    return report(found, source.cell.config.length)


def resume(cell: Cell, entry: Entry, rule: str, batch_size: int, kept: Path | None, start: int) -> State:
    """The state that an earlier run kept, if it has not read more than ``start`` tokens; otherwise a new one."""
    fresh = cell.initial_state(batch_size, entry.reduction, places=rule)
    if kept is None or not kept.exists():
        return fresh
    state = load_state(kept, device=fresh.clock.device)
    cell.check_state(state, batch_size)
    alike = all(H.reduction == G.reduction and H.places == G.places for H, G in zip(state, fresh, strict=True))
    return state if alike and int(state.clock[0]) <= start else fresh


def report(records: Sequence[Stretch], length: int) -> Report:
    """Tables of perplexity by span and up to there, differences from the first line, and the curves; ``length`` is the model's
    own."""
    lines: dict[str, list[Stretch]] = {}
    for r in records:
        lines.setdefault(r.name, []).append(r)
    first = next(iter(lines.values()))
    each = -(-len(first) // SPANS)  # stretches of a span
    spans = [slice(i, min(i + each, len(first))) for i in range(0, len(first), each)]
    ends = [first[span][-1].start + first[span][-1].tokens for span in spans]
    texts = ", ".join(first[0].texts)

    def table(title: str, note: str, word: Callable[[list[Stretch], slice], str], columns: list[str]) -> Table:
        rows = [[name, *(word(found, span) for span in spans)] for name, found in lines.items()]
        return Table(title, ["operator and places", *columns], rows, note)

    def difference(found: list[Stretch], span: slice) -> str:
        pairs = [
            (a / r.tokens, b / r.tokens)
            for r, o in zip(found[span], first[span], strict=True)
            for a, b in zip(r.nll, o.nll, strict=True)
        ]
        value, error = paired(*map(list, zip(*pairs, strict=True)))
        return "" if found is first else f"{value:+.4f}" + ("" if math.isnan(error) else f" ± {error:.4f}")

    to, per = [f"to {end:,}" for end in ends], f"{first[0].tokens:,} tokens"
    tables = [
        table(
            "Perplexity, span by span",
            f"Of {texts}, read in one go; the model was trained on texts of {length:,} tokens.",
            lambda found, span: format_significant(perplexity(found[span])),
            to,
        ),
        table(
            "Perplexity of all tokens so far",
            "As the paper's fig. 7 has it.",
            lambda found, span: format_significant(perplexity(found[: span.stop])),
            to,
        ),
        table(
            f"Nats per token beyond {first[0].name}",
            f"Mean ± standard error of the differences, stretch by stretch of {per}.",
            difference,
            to,
        ),
        Table(
            "Time",
            ["operator and places", "ms a token"],
            [[name, f"{1e3 * mean([r.seconds / r.tokens for r in found]).value:.1f}"] for name, found in lines.items()],
            "All texts side by side, by the clock.",
        ),
    ]
    curves = {name: [(r.start + r.tokens, perplexity([r]), math.nan) for r in found] for name, found in lines.items()}
    picture = Curves(
        f"perplexity of every {per}",
        "tokens read",
        "perplexity",
        curves,
        log_x=False,
        log_y=True,
        vertical_lines={"training length": length},
    )
    return Report(tables, [asdict(r) for r in records], {"beyond.png": picture})


def perplexity(found: Sequence[Stretch]) -> float:
    """Of all texts' tokens together."""
    return math.exp(sum(sum(r.nll) for r in found) / sum(r.tokens * len(r.nll) for r in found))
