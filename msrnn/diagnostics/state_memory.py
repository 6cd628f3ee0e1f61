"""Bytes of H, compared with an H without evictions."""

from ..state.multistate import MultiState
from ..state.state import State


def token_bytes(state: State, itemsize: int | None = None) -> int:
    """Return the bytes of one token in H: keys, values, scales and position in all layers and heads, without statistics.

    Args:
        state: H.
        itemsize: bytes of a number in keys and values; None takes the dtype of ``state``.
    """

    def head_bytes(H: MultiState) -> int:
        scales = 8 if H.is_quantised and itemsize is None else 0
        return 2 * H.keys.shape[3] * (itemsize or H.keys.element_size()) + 8 + scales

    return sum(H.keys.shape[1] * head_bytes(H) for H in state)


def full_nbytes(state: State) -> int:
    """Return the bytes of an unbounded H of the same cell after as many tokens, with rows and clock only."""
    return state.clock.nbytes + int(state.clock.sum()) * token_bytes(state)


def memory_summary(state: State) -> str:
    """Return a phrase on the bytes of H, and on those of an unbounded H if they are more."""
    full = full_nbytes(state)
    unbounded = f"; an unbounded H would hold {full / 1e6:.2f} MB" if state.nbytes < full else ""
    return f"H holds {state.nbytes / 1e6:.2f} MB{unbounded}"
