"""Bytes of H, compared with an H without evictions or with that of the published model."""

from collections.abc import Iterable
from itertools import groupby

from ..cell.cell import Cell
from ..reductions.contract import Reduction
from ..reductions.head_budgets import HeadSizes
from ..reductions.per_layer import format_operators, per_layer
from ..reductions.tova_paper import Full
from ..state.multistate import MultiState
from ..state.state import State


def token_bytes(state: State, itemsize: int | None = None) -> int:
    """Return the bytes of one token in H: keys, values, scales and position in all layers and heads, without statistics.

    Args:
        state: H.
        itemsize: bytes of a number in keys and values; None takes the dtype of ``state``.
    """

    return sum(layer_token_bytes(H, itemsize) for H in state)


def layer_token_bytes(H: MultiState, itemsize: int | None = None) -> int:
    """Return the bytes of one token in one layer, as :func:`token_bytes`."""
    scales = 8 if H.is_quantised and itemsize is None else 0
    return H.keys.shape[1] * (2 * H.keys.shape[3] * (itemsize or H.keys.element_size()) + 8 + scales)


def rows_per_head(operator: Reduction, K: int, length: int) -> tuple[int, ...]:
    """Return how many rows each of K heads of a layer holds after ``length`` tokens.

    Under a shared budget each number is the mean over the heads, because the text decides how many a head holds.
    """
    sizes = operator.sizes if isinstance(operator, HeadSizes) else (operator.size,) * K
    return tuple(min(size, length) if isinstance(size, int) else length for size in sizes)


def full_nbytes(state: State, cell: Cell | None = None) -> int:
    """Return the bytes of an unbounded H of the same cell after as many tokens, with rows and clock only.

    With ``cell`` its windows count: the bytes of the published model, which are fewer if it bounds some layers itself.
    """
    published = [None] * len(state) if cell is None else [x.size for x in per_layer(None, len(state), cell.default_reduction)]
    needed = state.clock.nbytes
    for H, size in zip(state, published, strict=True):
        rows = H.clock.clamp(max=size) if isinstance(size, int) else H.clock
        needed += int(rows.sum()) * layer_token_bytes(H)
    return needed


def memory_summary(state: State, cell: Cell) -> str:
    """Return a phrase on the bytes of H, on those of the published model if they are more, and on the layers that are bounded.

    The layers are named if the published model has a window in some of them and the operator bounds only the others.
    """
    published, bounded = full_nbytes(state, cell), cell.default_reduction != Full()
    name = "H of the published model" if bounded else "an unbounded H"
    more = f"; {name} would hold {published / 1e6:.2f} MB" if state.nbytes < published else ""
    return f"H holds {state.nbytes / 1e6:.2f} MB{more}{_bounded_layers(state, cell)}"


def _bounded_layers(state: State, cell: Cell) -> str:
    own = [operator.size for operator in per_layer(None, len(state), cell.default_reduction)]
    windows = [l for l, size in enumerate(own) if size is not None and state[l].reduction.size == size]
    added = [l for l, size in enumerate(own) if size is None and state[l].reduction != Full()]
    if not windows or not added:
        return ""
    operators = format_operators([state[l].reduction for l in added])
    name = "layer" if len(added) == 1 else "layers"
    return f"; {operators} bounds {name} {format_layers(added)}, the others keep the window of the published model"


def format_layers(layers: Iterable[int]) -> str:
    """Return indices of layers in increasing order as text, ``0…4, 6``."""
    runs = groupby(enumerate(layers), lambda item: item[1] - item[0])
    found = [[layer for _, layer in run] for _, run in runs]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}…{run[-1]}" for run in found)
