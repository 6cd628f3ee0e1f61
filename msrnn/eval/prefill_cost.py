"""Cost of one-shot prefill (``msrnn.prefill``) compared with eviction at every token.

The published implementations of most operators read a prompt with full attention and evict once at its end. Their published
results therefore include the effect of one-shot prefill. Here both methods read the same prompt. The rest of the chunk is then
read by the many-token path from either state, under the same operator.
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
from ..decoding.prefill import check_one_shot, prefill
from ..diagnostics.retention import eviction_steps, pixel_map, share_label
from ..errors import Error
from ..reductions.contract import Reduction
from ..reductions.per_layer import replaced_layers
from ..reporting.report import Curves, HeatMaps, Report, SideBySide, Table, format_significant
from ..reporting.statistics import mean, paired
from ..state.state import State
from .conditions import (
    add_condition_arguments,
    by_condition,
    check_affected,
    condition_name,
    is_unbounded,
    load_results,
    parse_conditions,
)
from .inputs import EvalInputs, add_text_arguments
from .teacher_forcing import teacher_force
from .texts import text_digest

MAP_PIXELS = 128
"""Maximum width and height of a map."""


@dataclass(frozen=True)
class PrefillCost:
    """One text under one operator, read by both methods.

    Attributes:
        exact, one_shot: nats per token of the text after the prompt, after the exact unroll and after one-shot prefill.
        tokens: number of tokens after the prompt.
        common: share of the rows retained after the prompt that both states contain, over layers and heads.
        exact_seconds, one_shot_seconds: time to read the prompt.
    """

    exact: float
    one_shot: float
    tokens: int
    common: float
    exact_seconds: float
    one_shot_seconds: float


@dataclass(frozen=True)
class PrefillCostResult(PrefillCost):
    """The cost, with its condition and the name of the chunk.

    Attributes:
        maps: for the first chunk under the first bounded condition, the maps of :func:`retention_maps`; None for others.
        averaged: numbers of layers and of heads that ``maps`` are means over.
    """

    operator: str
    size: int | None
    chunk: str
    maps: list[list[list[float]]] | None = None
    averaged: Sequence[int] = (1, 1)


@torch.no_grad()
def measure_cost(cell: Cell, tokens: Tensor, reduction: Reduction | str, n_prompt: int) -> PrefillCost:
    """Read a text ``(T,)`` int64 by both methods; its first ``n_prompt`` tokens are the prompt.

    Raises:
        Error: as ``prefill``; the prompt is empty or the whole text.
    """
    if not 0 < n_prompt < len(tokens):
        raise Error(f"the prompt has {n_prompt} of {len(tokens)} tokens; expected at least 1, and fewer than all")
    prompt, rest = tokens[None, :n_prompt], tokens[None, n_prompt:]
    exact, exact_seconds = _timed(lambda: cell(prompt, cell.initial_state(1, reduction), last_only=True))
    one_shot, one_shot_seconds = _timed(lambda: prefill(cell, prompt, reduction))
    nats = [float(teacher_force(cell, logits, rest, H).nll.cpu().double().mean()) for logits, H in (exact, one_shot)]
    common = common_share(exact[1], one_shot[1])
    return PrefillCost(nats[0], nats[1], rest.shape[1], common, exact_seconds, one_shot_seconds)


def retention_maps(cell: Cell, tokens: Tensor, reduction: Reduction | str, n_prompt: int) -> tuple[Tensor, tuple[int, int]]:
    """Return the positions that H holds after each step, by the exact unroll and by one-shot prefill.

    Args:
        cell, tokens, reduction, n_prompt: as for :func:`measure_cost`.

    Returns:
        ``(2, P, 1 + P)`` float32, the maps (:func:`~msrnn.diagnostics.retention.pixel_map`, P ≤ ``MAP_PIXELS``), means over the
        layers that the operator bounds; and the numbers of these layers and of their heads, 1 if all heads agree.
    """
    layers = [l for l, own in enumerate(replaced_layers(reduction, len(cell.layers), cell.default_reduction)) if own]
    read = [eviction_steps(cell, tokens[None], reduction, one_shot=n)[0, layers].cpu() for n in (0, n_prompt)]  # (L, K, T) each
    heads = 1 if all(bool((steps == steps[:, :1]).all()) for steps in read) else read[0].shape[1]
    return torch.stack([pixel_map(steps, MAP_PIXELS) for steps in read]), (len(layers), heads)


def _timed(read: Callable[[], tuple[Tensor, State]]) -> tuple[tuple[Tensor, State], float]:
    begin = time.perf_counter()
    logits, state = read()
    logits.sum().item()  # synchronises with the device
    return (logits, state), time.perf_counter() - begin


def common_share(one: State, other: State) -> float:
    """Return the share of the positions in ``one`` that ``other`` contains too, over layers and heads; NaN for empty states."""
    common = total = 0
    for G, H in zip(one, other, strict=True):
        same = (G.positions[..., None] == H.positions[..., None, :]) & ~G.empty[..., None]  # (B, K, S, S')
        common, total = common + int(same.sum()), total + int((~G.empty).sum())
    return common / total if total else math.nan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn eval prefill-cost``."""
    add_text_arguments(parser, chunk=2048)
    parser.add_argument(
        "--prompt", metavar="N", type=positive_int, default=1024, help="prompt tokens of a chunk (default: 1024)"
    )
    add_condition_arguments(parser, ("window", "sinks:SIZE:4", "h2o", "tova", "last-queries"), (128, 512))


def run(args: argparse.Namespace, inputs: EvalInputs) -> Report:
    """Read all chunks under all conditions by both methods."""
    conditions = parse_conditions(args.operators, args.sizes)
    for condition in conditions:
        if condition.truncated or condition.reduction.merges_values:
            raise Error(f"--operators has {condition}, which has no one-shot prefill; expected operators that only evict rows")
        check_one_shot(inputs.cell.operators_per_layer(condition.reduction))
    if args.prompt >= args.chunk:
        raise Error(f"--prompt is {args.prompt}; expected less than --chunk, {args.chunk}")
    chunks = inputs.chunks(args)
    check_affected(conditions, args.prompt, "a prompt")
    inputs.check_memory(1, ["full"], args.chunk)  # one-shot prefill holds the whole prompt
    sweep = inputs.sweep(args.out, "prefill-cost", text=text_digest(chunks), chunk=args.chunk, prompt=args.prompt)
    rows = {condition: {f"{condition.key} on {chunk.name}": chunk for chunk in chunks} for condition in conditions}
    drawn = next((condition for condition in conditions if condition.bounds), None)
    for c, batch in inputs.pending(sweep, rows, 1):
        for key, chunk in batch.items():
            cost = measure_cost(inputs.cell, chunk.ids.to(inputs.cell.device), c.reduction, args.prompt)
            record = {**asdict(cost), "operator": c.operator, "size": c.size, "chunk": chunk.name}
            if c is drawn and chunk is chunks[0]:
                maps, averaged = retention_maps(inputs.cell, chunk.ids.to(inputs.cell.device), c.reduction, args.prompt)
                record |= {"maps": maps.tolist(), "averaged": averaged}
            sweep[key] = record
    return report(load_results(PrefillCostResult, sweep, rows), args.chunk, args.prompt)


def report(results: Sequence[PrefillCostResult], n_tokens: int, n_prompt: int) -> Report:
    """Return a table with one row per condition, and a figure of the bounded conditions.

    The figure has the maps of the first bounded condition, and the cost of all bounded conditions.
    """
    rows = [
        [
            *(operator, "" if size is None else str(size)),
            *(
                format_significant(math.exp(mean(losses).value))
                for losses in ([r.exact for r in group], [r.one_shot for r in group])
            ),
            f"{paired([r.one_shot for r in group], [r.exact for r in group]):+.4f}",
            f"{mean([r.common for r in group]).value:.0%}",
            f"{mean([r.exact_seconds for r in group]).value:.2f}",
            f"{mean([r.one_shot_seconds for r in group]).value:.2f}",
        ]
        for (operator, size), group in by_condition(results).items()
    ]
    n = len({r.chunk for r in results})
    note = (
        f"Perplexity of the {results[0].tokens:,} tokens after the prompt, {n} chunk{'s' * (n > 1)}: after the exact unroll, "
        "and after one-shot prefill (full attention over the prompt, then one eviction). Cost: nats per token, mean ± standard "
        "error of the differences per chunk. In common: share of the rows after the prompt. Seconds: to read the prompt."
    )
    columns = ["operator", "size", "unroll", "one-shot", "cost", "in common", "unroll, s", "one-shot, s"]
    table = Table("One-shot prefill compared with the unroll", columns, rows, note)
    records = [{k: v for k, v in asdict(r).items() if k not in ("maps", "averaged")} for r in results]
    return Report([table], records, _figures(results, n_tokens, n_prompt))


def _figures(results: Sequence[PrefillCostResult], n_tokens: int, n_prompt: int) -> dict[str, Curves | HeatMaps | SideBySide]:
    lines: dict[str, list[tuple[float, float, float]]] = {}
    levels = {"equal": 0.0}
    for (operator, size), group in by_condition(results).items():
        cost = paired([r.one_shot for r in group], [r.exact for r in group])
        if size is not None:
            lines.setdefault(operator, []).append((size, *cost))
        elif not is_unbounded(operator):  # some heads are unbounded
            levels[operator] = cost.value
    shown = next((r for r in results if r.maps), None)
    if shown is None or shown.maps is None:
        return {}
    name = condition_name(shown.operator, shown.size)
    panels = dict(zip(("after every token", "once, after the prompt"), map(torch.tensor, shown.maps), strict=True))
    maps = HeatMaps(
        f"positions in H after each step, {name}",
        "position",
        "step",
        panels,
        share_label(*shown.averaged, reduced=n_tokens > MAP_PIXELS),
        extent=n_tokens,
        prompt=n_prompt,
        first_token=True,
    )
    label = "nats per token, one-shot − every token"
    curves = Curves("difference on the text after the prompt", "size of the state in tokens", label, lines, levels)
    title = "eviction after every token, and one eviction after the prompt"
    return {"prefill-cost.png": SideBySide(title, maps, curves)}
