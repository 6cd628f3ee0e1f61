"""Sizes per layer and per head.

PyramidKV (arXiv:2406.02069) gives low layers more rows, because their attention is spread wider.
"""

from typing import Any

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


def as_tuples(size: Any) -> Any:
    """Return a size with tuples in place of lists."""
    if not isinstance(size, list | tuple):
        return size
    return tuple(tuple(x) if isinstance(x, list) else x for x in size)


def flat_sizes(size: Any) -> tuple[Any, ...]:
    """Return the sizes of all layers and heads, ``(size,)`` if there is one; ``()`` if a tuple among them is empty."""
    if not isinstance(size, tuple):
        return (size,)
    layers = [x if isinstance(x, tuple) else (x,) for x in size]
    return tuple(x for layer in layers for x in layer) if all(layers) else ()


def sizes_to_validate(size: Any) -> tuple[Any, ...]:
    """Return the sizes of all layers and heads that an operator has to accept.

    The None of an unbounded head is omitted. The None of a whole layer stays, because only ``Full`` accepts it.
    """
    layers = size if isinstance(size, tuple) else (size,)
    return tuple(x for layer in layers for x in ([n for n in layer if n is not None] if isinstance(layer, tuple) else [layer]))


def has_sizes_per_head(size: Any) -> bool:
    """Return True if some layer has one size per key/value head."""
    return isinstance(size, tuple) and any(isinstance(x, tuple) for x in size)


def is_for_every_layer(size: tuple[Any, ...]) -> bool:
    """Return True for ``((64, 32, 32),)``: sizes of the heads, the same in every layer."""
    return len(size) == 1 and isinstance(size[0], tuple)


def size_of_layer(size: tuple[Any, ...], layer: int) -> Any:
    """Return the size of one layer, or ``((64, 32, 32),)`` if it has sizes per head."""
    of_layer = size[0] if is_for_every_layer(size) else size[layer]
    return (of_layer,) if isinstance(of_layer, tuple) else of_layer


def mean_size(size: Any) -> float | None:
    """Return the mean number of rows per head, over layers and heads; None if a layer or a head is unbounded."""
    if None in flat_sizes(size):
        return None
    layers = size if isinstance(size, tuple) else (size,)
    means = [sum(flat_sizes(x)) / len(flat_sizes(x)) for x in layers]
    return sum(means) / len(means)
