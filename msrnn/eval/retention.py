"""Tokens that a bounded state retains (figs. 8 and 9, table 2 of the paper; v1 figs. 7 to 9).

The results are maps, lifetimes and the share of recent rows. All of them follow from the trace of ``cell.scan``. The *lifetime*
of a token is the number of steps that attend to its row, including its own step. With this definition the mean over T tokens is
the same for every operator, and it agrees with the paper for T = 4,096. After step t a retained row is *recent* if it is one of
the last ``size`` tokens, t − size < p ≤ t. Steps before H is full are not counted. Layers that keep the window of the published
model are left out of all numbers, because the operator does not bound them.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..diagnostics.retention import eviction_steps, pixel_map, share_label, survival
from ..errors import Error
from ..reductions.per_layer import replaced_layers
from ..reporting.report import Curves, HeatMaps, Report, Table
from ..reporting.statistics import mean
from .conditions import Condition, add_condition_arguments, condition_name, load_results, parse_conditions
from .inputs import EvalInputs, add_text_arguments
from .texts import Chunk, text_digest
from .token_classes import character_classes, check_tagger, parts_of_speech

N_FIRST = 25
"""Number of tokens that have their lifetimes listed one by one."""
MAP_PIXELS = 256
"""Maximum width and height of a map."""


def lifetimes(steps: Tensor) -> Tensor:
    """Return the number of queries that attend to each position, ``(…, T)`` int64, given the eviction steps ``(…, T)``."""
    T = steps.shape[-1]
    return steps.clamp(max=T - 1) - torch.arange(T, device=steps.device) + 1


def recent_share(steps: Tensor, size: int) -> Tensor:
    """Return the share of recent rows among the rows retained after the steps from ``size`` on: ``(…, T) -> (…)`` float64."""
    p = torch.arange(steps.shape[-1], device=steps.device)
    from_full = p.clamp(min=size)
    retained = (steps - from_full).clamp(min=0).sum(-1)
    recent = (torch.minimum(steps, p + size) - from_full).clamp(min=0).sum(-1)
    return recent.double() / retained


@dataclass(frozen=True)
class RetentionResult:
    """One chunk under one condition; means are over heads and over the layers that the operator bounds.

    Attributes:
        operator, size, chunk: the condition and the name of the chunk.
        mean: mean lifetime of a token.
        first: lifetimes of the first tokens, at most ``N_FIRST``.
        first_retained: share of layers and heads that retain the first token to the end.
        layers: indices of the layers that the operator bounds.
        recent: share of recent rows, for each of ``layers``.
        classes: by token class, the number of tokens and their mean lifetime, without the first token.
        seconds: computing time.
        steps: eviction steps ``(L, 1 or K, T)`` of the first chunk, for each of ``layers``; None for other chunks.
    """

    operator: str
    size: int
    chunk: str
    mean: float
    first: list[float]
    first_retained: float
    layers: list[int]
    recent: list[float]
    classes: dict[str, tuple[int, float]]
    seconds: float
    steps: list[list[list[int]]] | None = None


def measure_retention(
    cell: Cell,
    chunk: Chunk,
    condition: Condition,
    classify: Callable[..., list[str]] = character_classes,
    keep_steps: bool = False,
) -> RetentionResult:
    """Read one chunk and measure which tokens are retained.

    Args:
        cell, chunk, condition: the cell, the chunk, and an operator with one size.
        classify: function that returns the class of each token, as :func:`character_classes`.
        keep_steps: True: the result contains the eviction steps.
    """
    assert condition.size is not None
    begin = time.perf_counter()
    replaced = replaced_layers(condition.reduction, len(cell.layers), cell.default_reduction)
    layers = [layer for layer, is_replaced in enumerate(replaced) if is_replaced]
    steps = eviction_steps(cell, chunk.ids[None].to(cell.device), condition.reduction)[0, layers].cpu()  # (L, K, T)
    if bool((steps == steps[:, :1]).all()):
        steps = steps[:, :1]
    T = steps.shape[-1]
    life = lifetimes(steps).double().mean((0, 1))  # (T,)
    by_class: dict[str, list[float]] = {}
    for name, lifetime in list(zip(classify(chunk.text, chunk.spans), life.tolist(), strict=True))[1:]:
        by_class.setdefault(name, []).append(lifetime)
    return RetentionResult(
        operator=condition.operator,
        size=condition.size,
        chunk=chunk.name,
        mean=float(life.mean()),
        first=life[:N_FIRST].tolist(),
        first_retained=float((steps[..., 0] == T).double().mean()),
        layers=layers,
        recent=recent_share(steps, condition.size).mean(-1).tolist(),
        classes={name: (len(values), mean(values).value) for name, values in sorted(by_class.items())},
        seconds=time.perf_counter() - begin,
        steps=steps.tolist() if keep_steps else None,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn eval retention``."""
    add_text_arguments(parser, chunk=2048)
    add_condition_arguments(parser, ("tova",))
    parser.add_argument("--parts-of-speech", action="store_true", help="classify tokens by HanTa's tags (extra eval)")


def run(args: argparse.Namespace, inputs: EvalInputs) -> Report:
    """Measure all chunks under all conditions."""
    conditions = parse_conditions(args.operators, args.sizes)
    for condition in conditions:
        if isinstance(condition.reduction.size, tuple):
            expected = "expected one size for all layers and heads, because recent rows are counted within it"
            raise Error(f"--operators has {condition}, with several sizes; {expected}")
        if condition.truncated or condition.size is None or condition.size >= args.chunk:
            raise Error(f"--operators has {condition}, which evicts no row of {args.chunk} tokens; expected bounded operators")
    if args.parts_of_speech:
        check_tagger()
    chunks, classify = inputs.chunks(args), parts_of_speech if args.parts_of_speech else character_classes
    inputs.check_memory(1, [condition.rows for condition in conditions], args.chunk)
    sweep = inputs.sweep(args.out, "retention", text=text_digest(chunks), chunk=args.chunk, classes=classify.__name__)
    rows = {condition: {f"{condition.key} on {chunk.name}": chunk for chunk in chunks} for condition in conditions}
    for condition, batch in inputs.pending(sweep, rows, 1):
        for key, chunk in batch.items():
            result = measure_retention(inputs.cell, chunk, condition, classify, keep_steps=chunk is chunks[0])
            sweep[key] = asdict(result)
    return report(load_results(RetentionResult, sweep, rows))


BySize = dict[int, list[RetentionResult]]
"""Results of one operator by size."""


def report(results: Sequence[RetentionResult]) -> Report:
    """Return tables and figures of at least one result."""
    sizes = sorted({r.size for r in results})
    operators: dict[str, BySize] = {}
    for r in results:
        operators.setdefault(r.operator, {}).setdefault(r.size, []).append(r)

    def table(title: str, value: Callable[[RetentionResult], float], spec: str, note: str) -> Table:
        def cell(group: list[RetentionResult]) -> str:
            return f"{mean([value(r) for r in group]).value:{spec}}"

        rows = [[name, *_cells(sizes, by_size, cell)] for name, by_size in operators.items()]
        return Table(title, ["operator", *map(str, sizes)], rows, note)

    n = len({r.chunk for r in results})
    note = f"{n} chunk{'s' * (n > 1)}; means over chunks, heads, and layers that the operator bounds."
    tables = [
        table("Share of recent rows", lambda r: mean(r.recent).value, ".1%", note),
        table("Share of layers and heads that retain the first token to the end", lambda r: r.first_retained, ".1%", note),
        table("Mean lifetime, steps", lambda r: r.mean, ",.0f", "Equal for all operators that evict one row per token."),
    ]
    figures: dict[str, Curves | HeatMaps] = {"lifetimes.png": held_curves(operators)}
    for name, by_size in operators.items():
        tables += [_class_table(name, by_size, sizes), _first_table(name, by_size, sizes)]
        figures |= _figures(name, by_size)
    return Report(tables, [{k: v for k, v in asdict(r).items() if k != "steps"} for r in results], figures)


def _cells(sizes: Sequence[int], by_size: BySize, cell: Callable[[list[RetentionResult]], str]) -> list[str]:
    return [cell(by_size[size]) if size in by_size else "" for size in sizes]


def _class_table(name: str, by_size: BySize, sizes: Sequence[int]) -> Table:
    """Return the mean lifetime by token class, the longest first."""

    def lifetime(token_class: str, results: Sequence[RetentionResult]) -> tuple[int, float]:
        found = [r.classes[token_class] for r in results if token_class in r.classes]
        count = sum(n for n, _ in found)
        return count, sum(n * value for n, value in found) / count

    largest = by_size[max(by_size)]
    names = sorted({c for r in largest for c in r.classes}, key=lambda c: -lifetime(c, largest)[1])
    rows = [
        [c, str(lifetime(c, largest)[0]), *_cells(sizes, by_size, lambda group, c=c: f"{lifetime(c, group)[1]:,.0f}")]  # type: ignore[misc]
        for c in names
    ]
    columns = ["class", "tokens", *map(str, sizes)]
    return Table(f"Mean lifetime by token class, {name}", columns, rows, "Without the first token.")


def _first_table(name: str, by_size: BySize, sizes: Sequence[int]) -> Table:
    first = {size: _mean_first(results) for size, results in by_size.items()}
    rows = [[str(i), *(f"{first[s][i]:,.0f}" if s in first else "" for s in sizes)] for i in range(len(first[max(first)]))]
    return Table(f"Lifetime of the first tokens, {name}", ["token", *map(str, sizes)], rows)


def _mean_first(results: Sequence[RetentionResult]) -> list[float]:
    return torch.tensor([r.first for r in results]).mean(0).tolist()


def _figures(name: str, by_size: BySize) -> dict[str, Curves | HeatMaps]:
    lines = {f"size {s}": [(float(i), x, 0.0) for i, x in enumerate(_mean_first(by_size[s]))] for s in sorted(by_size)}
    steps = first_steps(by_size)
    size, largest = max(steps.items())
    T = largest.shape[-1]
    labels: dict[str, Any] = {
        "x_label": "position",
        "y_label": "step",
        "colour_label": share_label(1, largest.shape[1], reduced=T > MAP_PIXELS),
        "extent": T,
        "first_token": True,
    }
    last_layer = {f"size {s}": pixel_map(x[-1], MAP_PIXELS) for s, x in steps.items()}
    all_layers = {f"layer {l}": pixel_map(x, MAP_PIXELS) for l, x in zip(by_size[size][0].layers, largest, strict=True)}
    file, title = quote(name.replace(":", "-"), safe="=,"), "positions in H after each step"
    return {
        f"first-{file}.png": Curves(f"lifetime of the first tokens, {name}", "token", "steps", lines, log_x=False),
        f"map-{file}.png": HeatMaps(title=f"{title}, last layer, {name}", panels=last_layer, **labels),
        f"layers-{file}.png": HeatMaps(title=f"{title}, {name}, size {size}", panels=all_layers, **labels),
    }


def first_steps(by_size: BySize) -> dict[int, Tensor]:
    """Return the eviction steps ``(L, K, T)`` of the first chunk, by size."""
    return {size: torch.tensor(results[0].steps) for size, results in sorted(by_size.items()) if results[0].steps}


def held_curves(operators: Mapping[str, BySize]) -> Curves:
    """Return the share of the tokens that are still held some steps after they were read, one line per condition."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for name, by_size in operators.items():
        for size, steps in first_steps(by_size).items():
            lines[condition_name(name, size)] = [(age, y, math.nan) for age, y in enumerate(survival(steps).tolist()) if age]
    title = "how long rows stay in H, first chunk"
    return Curves(title, "steps since the token was read", "share of tokens in H, mean of layers and heads", lines, steps=True)
