"""Which operator bounds which layer, where the published model bounds some layers itself.

Gemma, Ministral and others have layers with a window between layers that attend to all tokens. The windows are part of the
published model, and the other layers hold most of the KV cache. So an operator bounds only the layers without a window.
``all-layers:tova:512`` bounds all layers and replaces the windows. A model with a window in every layer, such as Mistral v0.1,
has no other layers, so an operator replaces its windows.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import Error
from .all_layers import AllLayers
from .budgets import is_for_every_layer
from .contract import Reduction
from .head_budgets import HeadBudget, HeadSizes
from .registry import parse_reduction
from .stochastic import StochasticReduction


def per_layer(
    reduction: Reduction | str | Sequence[Reduction | str] | None, n_layers: int, published: Reduction | Sequence[Reduction]
) -> list[Reduction]:
    """Return one operator per layer, each with an int size. Sizes per head give :class:`HeadSizes`.

    Args:
        reduction: an operator or its spec string, for the layers that the published model does not bound, or for all layers if
            it is :class:`AllLayers` or the published model bounds every layer; or one operator or spec string per layer. None:
            the published model.
        n_layers: number of layers.
        published: the operator of the published model, or one per layer.

    Raises:
        Error: another number of operators or sizes than layers; a class that breaks the contract.
    """
    own = _one_per_layer(published, n_layers)
    if reduction is None:
        return own
    operators, replaced = _one_per_layer(reduction, n_layers), replaced_layers(reduction, n_layers, published)
    return [new if is_replaced else window for window, is_replaced, new in zip(own, replaced, operators, strict=True)]


def replaced_layers(
    reduction: Reduction | str | Sequence[Reduction | str], n_layers: int, published: Reduction | Sequence[Reduction]
) -> list[bool]:
    """Return for each layer whether ``reduction`` bounds it; False for a layer that keeps the window of the published model.

    The arguments are those of :func:`per_layer`.
    """
    bounded = [operator.size is not None for operator in _one_per_layer(published, n_layers)]
    several = isinstance(reduction, Sequence) and not isinstance(reduction, str)
    if several or all(bounded) or isinstance(_operator(reduction), AllLayers):
        return [True] * n_layers
    return [not is_bounded for is_bounded in bounded]


def _operator(reduction: Any) -> Reduction:
    """Return an operator from itself or its spec string."""
    return reduction if isinstance(reduction, Reduction) else parse_reduction(reduction)


def _one_per_layer(reduction: Reduction | str | Sequence[Reduction | str], n_layers: int) -> list[Reduction]:
    """Return one operator per layer from one operator or from one per layer, each given by itself or its spec string."""
    if isinstance(reduction, Sequence) and not isinstance(reduction, str):
        if len(reduction) != n_layers:
            raise Error(f"{len(reduction)} reductions for a cell of {n_layers} layers; expected one per layer")
        return [_one_per_layer(r, n_layers)[layer] for layer, r in enumerate(reduction)]
    operator = _operator(reduction)
    if isinstance(size := operator.size, tuple) and len(size) != n_layers and not is_for_every_layer(size):
        kind = type(operator).__name__
        raise Error(f"{kind}: {len(size)} sizes for a cell of {n_layers} layers; expected one per layer")
    operators = [operator.for_layer(layer) for layer in range(n_layers)]
    for of_layer in operators:
        if not isinstance(of_layer, Reduction):
            raise Error(f"{type(operator).__name__}.for_layer returns {of_layer!r:.60}; expected a Reduction")
    operators = [HeadSizes(x) if isinstance(x.size, tuple) else x for x in operators]
    for of_layer in operators:
        of_layer.check_contract()
    return operators


def format_operators(operators: Reduction | Sequence[Reduction]) -> str:
    """Return one operator, or one per layer, as text: ``full``, or ``window:511 in 15 layers, full in 3``."""
    return format_per_layer(map(spec_of_layer, [operators] if isinstance(operators, Reduction) else operators))


def spec_of_layer(operator: Reduction) -> str:
    """Return the spec string without the index of the layer, which a random operator has."""
    if isinstance(operator, HeadBudget) and isinstance(operator.operator, StochasticReduction):
        return str(replace(operator, operator=replace(operator.operator, layer=None)))  # type: ignore[call-arg]
    return str(replace(operator, layer=None) if isinstance(operator, StochasticReduction) else operator)  # type: ignore[call-arg]


def format_per_layer(values: Iterable[object]) -> str:
    """Return one value for each layer as text: the value that all share, or each value with its number of layers."""
    counts = Counter(map(str, values))
    if len(counts) == 1:
        return next(iter(counts))
    (first, n), *others = counts.items()
    return ", ".join([f"{first} in {n} layers", *(f"{name} in {n}" for name, n in others)])
