"""Checks of flags of an operator on random observations, for :func:`msrnn.check_operator`."""

import torch
from torch import Tensor

from ..errors import Error
from ..recurrence.operator_calls import retention_scores, update_stats
from ..reductions.budgets import flat_sizes
from ..reductions.contract import FLAG_OF_FIELD, Observation, Reduction

K, G, D, E = 2, 2, 4, 16
"""Sizes of an observation: key/value heads, query heads of each, head dimension, width. Those of the tiny cells of
``operator_check.py``, because the constants of an operator have them too."""


def check_additive(operator: Reduction) -> None:
    """Check that an additive update adds terms that do not depend on the statistics.

    Raises:
        Error: it does not.
    """
    if not operator.update_is_additive:
        return
    observation = _random_observation(operator)
    stats = observation.row_stats
    terms = update_stats(operator, observation._replace(row_stats={name: torch.zeros_like(x) for name, x in stats.items()}))
    for name, x in update_stats(operator, observation).items():
        if not torch.allclose(x, stats[name] + terms[name], rtol=1e-9, atol=1e-9):
            raise Error(f"{type(operator).__name__}.update is not additive for {name!r}; expected update_is_additive = False")


def check_heads(operator: Reduction) -> None:
    """Check ``reads_heads``: compare the results for all heads with those for two halves of the heads.

    Raises:
        Error: the results contradict the flag.
    """
    if operator.reads_heads == "all":
        return
    kind, observation = type(operator).__name__, _random_observation(operator)
    halves = [_heads(observation, half) for half in (slice(0, K // 2), slice(K // 2, K))]
    claim = f"states reads_heads = {operator.reads_heads!r}; expected 'all'"
    for name, x in update_stats(operator, observation).items():
        parts = torch.cat([update_stats(operator, half)[name] for half in halves], dim=1)
        if not torch.allclose(x, parts, rtol=1e-9, atol=1e-9, equal_nan=True):
            raise Error(f"{kind}.update gives {name!r} for a head that depends on other heads, but the class {claim}")
    score, (first, second) = retention_scores(operator, observation), (retention_scores(operator, half) for half in halves)
    found = (first + second) / 2 if operator.reads_heads == "mean" else torch.cat((first, second), dim=1)[:, : score.shape[1]]
    one_decision = score.shape[1] == 1
    wrong = one_decision != (operator.reads_heads == "mean") and not first.equal(second)
    if wrong or not torch.allclose(score, found.expand_as(score), rtol=1e-9, atol=1e-9, equal_nan=True):
        raise Error(f"{kind}.score depends on the heads in another way than the class states, which {claim}")


def _random_observation(operator: Reduction) -> Observation:
    B, R = 2, 1 + (max(flat_sizes(operator.size)) or 6)
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(B, K, G, R, dtype=torch.float64, generator=generator)
    shapes = {"keys": (K, R, D), "values": (K, R, D), "output": (K, G, D), "queries": (K, G, D), "x": (E,)}
    fields = {
        name: torch.randn(B, *shape, dtype=torch.float64, generator=generator)
        for name, shape in shapes.items()
        if getattr(operator, FLAG_OF_FIELD[name])
    }
    stats = {
        name: torch.rand(B, K, R, *operator.stat_shape(name), dtype=torch.float64, generator=generator)
        for name in operator.stat_names
    }
    positions, clock = torch.arange(R).expand(B, K, R).contiguous(), torch.full((B,), R - 1)
    return Observation(weights / weights.sum(-1, keepdim=True), positions, clock, stats, **fields)


def _heads(observation: Observation, heads: slice) -> Observation:
    """Return the observation of some heads."""

    def some(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:, heads]

    return observation._replace(
        weights=observation.weights[:, heads],
        positions=observation.positions[:, heads],
        row_stats={name: x[:, heads] for name, x in observation.row_stats.items()},
        keys=some(observation.keys),
        values=some(observation.values),
        output=some(observation.output),
        queries=some(observation.queries),
    )
