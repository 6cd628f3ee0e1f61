"""The observation of an operator in a cell that is split over several processes: the rows of all heads, if it needs them.

An operator that decides for each key/value head from this head alone needs no other rank. The score of TOVA, and of H2O for a
layer, is a mean over the heads: ranks exchange the means of their heads, R numbers per token. Every other operator is evaluated
by every rank for all heads, and each rank takes the results of its own heads.
"""

from torch import Tensor

from ..distributed.heads import RankHeads
from ..reductions.contract import Observation, Reduction


def heads_to_gather(heads: RankHeads | None, operator: Reduction) -> RankHeads | None:
    """Return ``heads`` if ``operator`` has to see the rows of all ranks; None if it needs the rows of this rank only."""
    if heads is None or operator.reads_heads == "all":
        return heads
    if heads.replicas == 1 or not (operator.needs_weights or operator.needs_queries):
        return None
    # several ranks hold the same key/value head with other query heads, so no rank has all of its weights and statistics
    return None if operator.reads_heads == "mean" and not operator.stat_names else heads


def gather_observation(heads: RankHeads | None, operator: Reduction, observation: Observation) -> Observation:
    """Return the observation of all heads; the observation itself, if ``heads`` is None."""
    if heads is None:
        return observation
    keys, values, output, queries = observation.keys, observation.values, observation.output, observation.queries
    return observation._replace(
        weights=gather_weights(heads, operator, observation.weights),
        positions=heads.gather(observation.positions, 1),
        row_stats={name: heads.gather(x, 1) for name, x in observation.row_stats.items()},
        keys=None if keys is None else heads.gather(keys, 1),
        values=None if values is None else heads.gather(values, 1),
        output=None if output is None else heads.gather_query_heads(output),
        queries=None if queries is None else heads.gather_query_heads(queries),
    )


def gather_weights(heads: RankHeads, operator: Reduction, weights: Tensor) -> Tensor:
    """Return weights or logits of all heads, ``(B, K_r, G_r, …) -> (B, K, G, …)``; zeros, if the operator reads no weights."""
    if operator.needs_weights:
        return heads.gather_query_heads(weights)
    shape = weights.shape[0], heads.n_kv_heads, weights.shape[2] * heads.replicas, *weights.shape[3:]
    return weights.new_zeros(()).expand(shape)


def heads_of_rank(heads: RankHeads | None, x: Tensor, dim: int = 1) -> Tensor:
    """Return the heads of this rank from a result for all heads. A result for the layer, with one head, stays as it is."""
    return x if heads is None or x.shape[dim] == 1 < heads.n_kv_heads else heads.own(x, dim)
