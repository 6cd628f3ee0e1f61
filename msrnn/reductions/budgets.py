"""Sizes that shrink with depth (PyramidKV, arXiv:2406.02069): low layers spread their attention over many rows, high ones do
not."""

from ..errors import Error


def pyramid(size: int, n_layers: int, *, window: int = 0, beta: float = 20.0) -> tuple[int, ...]:
    """One size per layer, ``size`` on average but for rounding; from low to high in equal steps.

    Args:
        size: rows of a layer on average.
        n_layers: how many there are.
        window: rows that every layer has in any case; only the others are shared out.
        beta: how steep: the last layer has 1/beta of its share, the first what that leaves over.

    Raises:
        Error: whole numbers of at least 1 expected; a window that leaves no row; beta below 1.
    """
    for name, value in (("size", size), ("n_layers", n_layers)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Error(f"pyramid: {name} is {value!r:.60}; expected a whole number of at least 1")
    if not isinstance(window, int) or isinstance(window, bool) or not 0 <= window < size:
        raise Error(f"pyramid: window is {window!r:.60}; expected a whole number from 0 to {size - 1}")
    if not isinstance(beta, int | float) or isinstance(beta, bool) or not beta >= 1:
        raise Error(f"pyramid: beta is {beta!r:.60}; expected a number of at least 1")
    least = (size - window) / beta
    most = 2 * (size - window) - least
    steps = max(1, n_layers - 1)
    sizes = [most - layer * (most - least) / steps for layer in range(n_layers)] if n_layers > 1 else [size - window]
    return tuple(max(1, window + round(x)) for x in sizes)
