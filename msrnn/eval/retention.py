"""What a bounded state keeps: maps, lifetimes, the share of recent rows (the paper's figs. 8 and 9, table 2; v1 figs. 7 to 9).

All is read off ``cell.scan``'s trace. A token's *lifetime* is the number of steps whose query saw it, its own among them: so
counted, the mean over all T tokens is the same for every operator, and for T = 4,096 it is the paper's. After step t a kept row
is *recent* if it is one of the last ``size`` tokens read, t − size < p ≤ t; steps before H is full are not counted.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..cell.cell import Cell
from ..diagnostics.retention import eviction_steps, retention_map
from ..errors import Error
from ..reporting.report import Curves, HeatMaps, Report, Table
from ..reporting.statistics import mean
from ..reporting.sweep import Sweep
from . import conditions
from .conditions import Entry, entries
from .inputs import Source, add_text_arguments
from .texts import Chunk, text_digest
from .token_classes import check_tagger, kinds, parts_of_speech

FIRST = 25
"""Tokens whose lifetimes are shown one by one."""
PIXELS = 256
"""Of a map, each way."""


def lifetimes(leaving: Tensor) -> Tensor:
    """How many queries saw each position, from when it left: ``(…, T)`` int64 both."""
    T = leaving.shape[-1]
    return leaving.clamp(max=T - 1) - torch.arange(T, device=leaving.device) + 1


def recent_share(leaving: Tensor, size: int) -> Tensor:
    """Of the rows held after all steps from ``size`` on, the share that is recent: ``(…, T) -> (…)`` float64."""
    p = torch.arange(leaving.shape[-1], device=leaving.device)
    from_full = p.clamp(min=size)
    held = (leaving - from_full).clamp(min=0).sum(-1)
    recent = (torch.minimum(leaving, p + size) - from_full).clamp(min=0).sum(-1)
    return recent.double() / held


@dataclass(frozen=True)
class Kept:
    """One chunk under one operator; means are over layers and heads.

    Attributes:
        operator, size, chunk: which.
        mean: mean lifetime of a token.
        first: lifetimes of the first tokens, ``FIRST`` at most.
        stays: the share of layers and heads that hold the very first token at the end.
        recent: the share of recent rows, one number a layer.
        kinds: by kind of token how many there are and their mean lifetime, the very first left out.
        seconds: it took.
        leaving: of the first chunk alone ``(L, 1 or K, T)``, when each position left; otherwise nothing.
    """

    operator: str
    size: int
    chunk: str
    mean: float
    first: list[float]
    stays: float
    recent: list[float]
    kinds: dict[str, tuple[int, float]]
    seconds: float
    leaving: list[list[list[int]]] | None = None


def look(cell: Cell, chunk: Chunk, entry: Entry, kind: Callable[..., list[str]] = kinds, whole: bool = False) -> Kept:
    """Read one chunk and see what was kept; ``kind`` names each token's kind, as :func:`kinds` does."""
    assert entry.size is not None
    begin = time.perf_counter()
    left = eviction_steps(cell, chunk.ids[None].to(cell.device), entry.reduction)[0].cpu()  # (L, K, T)
    if bool((left == left[:, :1]).all()):
        left = left[:, :1]
    T = left.shape[-1]
    life = lifetimes(left).double().mean((0, 1))  # (T,)
    found: dict[str, list[float]] = {}
    for name, steps in list(zip(kind(chunk.text, chunk.spans), life.tolist(), strict=True))[1:]:
        found.setdefault(name, []).append(steps)
    return Kept(
        operator=entry.row,
        size=entry.size,
        chunk=chunk.name,
        mean=float(life.mean()),
        first=life[:FIRST].tolist(),
        stays=float((left[..., 0] == T).double().mean()),
        recent=recent_share(left, entry.size).mean(-1).tolist(),
        kinds={name: (len(steps), sum(steps) / len(steps)) for name, steps in sorted(found.items())},
        seconds=time.perf_counter() - begin,
        leaving=left.tolist() if whole else None,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line's."""
    add_text_arguments(parser, chunk=2048)
    conditions.add_arguments(parser, ("tova",))
    parser.add_argument("--parts-of-speech", action="store_true", help="kinds of tokens by HanTa's tags (the extra eval)")


def run(args: argparse.Namespace, source: Source) -> Report:
    """Look at all chunks under all operators and sizes."""
    places = entries(args.operators, args.sizes)
    for entry in places:
        if entry.truncated or entry.size is None or entry.size >= args.chunk:
            raise Error(f"{entry} drops nothing of a chunk of {args.chunk} tokens; expected operators that bound H below that")
    if args.parts_of_speech:
        check_tagger()
    chunks, kind = source.chunks(args), parts_of_speech if args.parts_of_speech else kinds
    source.check_memory(1, [entry.size for entry in places], args.chunk)
    settings = {
        "experiment": "kept",
        "model": source.cell.fingerprint().digest(),
        "text": text_digest(chunks),
        "chunk": args.chunk,
    }
    sweep = Sweep(args.out, settings | {"kinds": kind.__name__})
    rows = {entry: {f"{entry} on {chunk.name}": chunk for chunk in chunks} for entry in places}
    for entry, now in sweep.pending(rows, 1, source.progress):
        for key, chunk in now.items():
            sweep[key] = asdict(look(source.cell, chunk, entry, kind, whole=chunk is chunks[0]))
    found = [Kept(**{**sweep[key], "operator": e.row, "size": e.size}) for e, row in rows.items() for key in row]
    return report(found)


Places = dict[int, list[Kept]]
"""One operator's records by size."""


def report(records: Sequence[Kept]) -> Report:
    """The tables and pictures, of at least one record."""
    sizes = sorted({r.size for r in records})
    rows: dict[str, Places] = {}
    for r in records:
        rows.setdefault(r.operator, {}).setdefault(r.size, []).append(r)

    def over(title: str, of: Callable[[Kept], float], form: str, note: str) -> Table:
        cells = [
            [name, *_across(sizes, p, lambda rs: form.format(mean([of(r) for r in rs]).value))] for name, p in rows.items()
        ]
        return Table(title, ["operator", *map(str, sizes)], cells, note)

    n = len({r.chunk for r in records})
    about = f"{n} chunk{'s' * (n > 1)}; means over chunks, layers and heads."
    tables = [
        over("Share of recent rows among the kept", lambda r: mean(r.recent).value, "{:.1%}", about),
        over("Share of layers and heads that hold the very first token to the end", lambda r: r.stays, "{:.1%}", about),
        over("Mean lifetime, steps", lambda r: r.mean, "{:,.0f}", "The same for all operators whose H is always full."),
    ]
    pictures: dict[str, Curves | HeatMaps] = {}
    for name, p in rows.items():
        tables += [_kinds_table(name, p, sizes), _first_table(name, p, sizes)]
        pictures |= _pictures(name, p)
    return Report(tables, [{k: v for k, v in asdict(r).items() if k != "leaving"} for r in records], pictures)


def _across(sizes: Sequence[int], places: Places, word: Callable[[list[Kept]], str]) -> list[str]:
    return [word(places[size]) if size in places else "" for size in sizes]


def _kinds_table(name: str, places: Places, sizes: Sequence[int]) -> Table:
    """Kinds of tokens, the longest living first."""

    def life(kind: str, records: Sequence[Kept]) -> tuple[int, float]:
        found = [r.kinds[kind] for r in records if kind in r.kinds]
        count = sum(n for n, _ in found)
        return count, sum(n * steps for n, steps in found) / count

    largest = places[max(places)]
    names = sorted({kind for r in largest for kind in r.kinds}, key=lambda kind: -life(kind, largest)[1])
    rows = [[k, str(life(k, largest)[0]), *_across(sizes, places, lambda rs, k=k: f"{life(k, rs)[1]:,.0f}")] for k in names]  # type: ignore[misc]
    columns = ["kind", "tokens", *map(str, sizes)]
    return Table(f"Mean lifetime by kind of token, {name}", columns, rows, "The very first token is left out.")


def _first_table(name: str, places: Places, sizes: Sequence[int]) -> Table:
    first = {size: _first(records) for size, records in places.items()}
    rows = [[str(i), *(f"{first[s][i]:,.0f}" if s in first else "" for s in sizes)] for i in range(len(first[max(first)]))]
    return Table(f"Lifetime of the first tokens, {name}", ["token", *map(str, sizes)], rows)


def _first(records: Sequence[Kept]) -> list[float]:
    return torch.tensor([r.first for r in records]).mean(0).tolist()


def _pictures(name: str, places: Places) -> dict[str, Curves | HeatMaps]:
    lines = {f"size {s}": [(float(i), life, 0.0) for i, life in enumerate(_first(places[s]))] for s in sorted(places)}
    maps = {s: torch.tensor(rs[0].leaving) for s, rs in sorted(places.items()) if rs[0].leaving}  # (L, K, T)
    size, layers = max(maps.items())
    axes: dict[str, Any] = {
        "x_label": "position",
        "y_label": "step",
        "colour_label": "share of heads that hold it",
        "extent": layers.shape[-1],
    }
    last = {f"size {s}": _map(x[-1]) for s, x in maps.items()}
    every = {f"layer {l}": _map(x) for l, x in enumerate(layers)}
    file = name.replace(":", "-")
    return {
        f"first-{file}.png": Curves(f"lifetime of the first tokens, {name}", "token", "steps", lines, log_x=False),
        f"map-{file}.png": HeatMaps(title=f"what the last layer held after each step, {name}", panels=last, **axes),
        f"layers-{file}.png": HeatMaps(
            title=f"what each layer held after each step, {name}, size {size}", panels=every, **axes
        ),
    }


def _map(leaving: Tensor) -> Tensor:
    """``(K, T)`` -> ``(PIXELS, PIXELS)`` at most: time down, position across."""
    whole = retention_map(leaving)
    return adaptive_avg_pool2d(whole[None], min(PIXELS, len(whole)))[0]
