"""Cache sizes per layer: PyramidKV (arXiv:2406.02069) gives low layers more rows, because their attention is spread wider."""

from ..errors import Error, check_int


def pyramid(size: int, n_layers: int, *, window: int = 0, beta: float = 20.0) -> tuple[int, ...]:
    """Return one size per layer: they decrease linearly with depth, and their mean is ``size`` up to rounding.

    Args:
        size: mean number of rows per layer.
        n_layers: number of layers.
        window: rows that every layer retains; only the rest is distributed.
        beta: steepness: the last layer receives 1/beta of the mean share, the first layer the complement to twice the mean.

    Raises:
        Error: an argument is not an int of at least 1; ``window`` is not below ``size``; ``beta`` is below 1.
    """
    check_int("pyramid: size", size)
    check_int("pyramid: n_layers", n_layers)
    check_int("pyramid: window", window, at_least=0, at_most=size - 1)
    if not isinstance(beta, int | float) or isinstance(beta, bool) or not beta >= 1:
        raise Error(f"pyramid: beta is {beta!r:.60}; expected a number of at least 1")
    if n_layers == 1:
        return (size,)
    last = (size - window) / beta
    first = 2 * (size - window) - last
    shares = [first - layer * (first - last) / (n_layers - 1) for layer in range(n_layers)]
    return tuple(max(1, window + round(share)) for share in shares)
