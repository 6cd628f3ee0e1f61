"""The table that ``print(state)`` shows."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from ..reductions.head_budgets import HeadBudget
from ..reductions.per_layer import spec_of_layer
from .jagged_rows import jagged_if_uneven
from .multistate import MultiState


def nbytes(layers: Iterable[MultiState]) -> int:
    """Return the bytes that the tensors hold, spare rows included. Views of one storage count once."""
    storages = (x.untyped_storage() for H in layers for x in (*H.rows.values(), H.clock))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def summarize(layers: Sequence[MultiState], total_nbytes: int) -> str:
    """Return a table with operator, rows per layer, oldest position and bytes. Equal layers share a line."""
    clocks, places = layers[0].clock.tolist(), layers[0].places
    read = _format_range(sorted(set(clocks))) or "no"
    dtype = str(layers[0].keys.dtype).removeprefix("torch.")
    head = f"State: {len(layers)} layers, batch {len(clocks)}, {read} tokens read, {dtype}, {_format_bytes(total_nbytes)}"
    if places is not None:
        head += f", places {places.rule}"
    table = [("layers", "operator", "rows", "oldest", "bytes")]
    kinds = [(spec_of_layer(H.reduction), _rows(H), H.n_learned) for H in layers]
    groups = groupby(enumerate(layers), lambda item: kinds[item[0]])
    for (operator, rows, n_learned), group in groups:
        indices, same = zip(*group, strict=True)
        positions = [H.positions[H.positions >= 0] for H in same]
        oldest = sorted({int(x.min()) for x in positions if x.numel()})
        number = f"{n_learned} learned + {rows}" if n_learned else rows
        held = _format_bytes(nbytes(map(jagged_if_uneven, same)))
        table.append((_format_range(indices), operator, number, _format_range(oldest), held))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join([head, *("  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in table)])


def _rows(H: MultiState) -> str:
    """Return the number of rows of a head without learned rows, or the fewest and the most of the heads."""
    if not isinstance(H.reduction, HeadBudget) or not H.positions.numel():
        return str(H.keys.shape[2] - H.n_learned)
    return _format_range(sorted({int(n) - H.n_learned for n in (~H.empty).sum(-1).aminmax()}))


def _format_range(ordered: Sequence[int]) -> str:
    return "" if not ordered else str(ordered[0]) if ordered[0] == ordered[-1] else f"{ordered[0]}…{ordered[-1]}"


def _format_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
