r"""Operators that score rows by their values too.

Without row j the softmax is renormalized, so the attention output o of one query changes by exactly
$\frac{p_j}{1 - p_j} (o - v_j)$, where p_j is the attention weight and v_j the value of the row.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .contract import Observation, Reduction, SpecNames, is_recent
from .observation_window import LastQueries


@dataclass(frozen=True)
class CAOTE(Reduction):
    r"""CAOTE (arXiv:2504.14051): evict the row with the least effect on the attention output of the current query.

    The score is the norm of the exact change, $\frac{p_j}{1 - p_j} \lVert o - v_j \rVert$. One decision per key/value head, by
    the norm over the outputs of its query heads together; ``per_head=False`` takes one decision for the layer, by the norm over
    the outputs of all heads. The current token may be evicted.

    From the paper: the score. Chosen here: the norm over several query heads. The paper also computes the score from the sums
    of H2O or from the window of SnapKV, scaled to probabilities, in place of the current query's attention.
    """

    per_head: bool = True
    spec_names: ClassVar[SpecNames] = {"caote": {"per_head": True}, "caote-layer": {"per_head": False}}
    needs_values: ClassVar[bool] = True
    needs_output: ClassVar[bool] = True
    depends_on_other_positions: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False

    @property
    def reads_heads(self) -> str:  # type: ignore[override]
        return "own" if self.per_head else "all"

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_bool("per_head", self.per_head)

    def score(self, observation: Observation) -> Tensor:
        squares = squared_change(observation).sum(2)  # (B, K, R)
        return (squares if self.per_head else squares.sum(1, keepdim=True)).sqrt()


@dataclass(frozen=True)
class DropKV(LastQueries):
    r"""DropKV (openreview.net/forum?id=MqfNzH3TVH; NVIDIA/kvpress#285): :class:`CAOTE` over the last ``window`` queries.

    The score is the sum of the squared changes $\left(\frac{p_j}{1 - p_j}\right)^2 \lVert o - v_j \rVert^2$ of the attention
    output over these queries, by the mean over the query heads of a key/value head. The rows of these queries are protected.

    kvpress evicts once after a prompt: all queries of the window see all rows, and scores are averaged over 7 neighbouring
    positions. Here one row is evicted at each step, each query has seen the rows of its own step, and nothing is averaged over
    positions, because retained rows are no neighbours.
    """

    spec_names: ClassVar[SpecNames] = {"dropkv": {}}
    needs_values: ClassVar[bool] = True
    needs_output: ClassVar[bool] = True
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"

    def query_weights(self, observation: Observation) -> Tensor:
        return squared_change(observation).mean(2)


@dataclass(frozen=True)
class VATP(Reduction):
    r"""Value-aware token pruning (arXiv:2406.12335): the score is accumulated attention times the L1 norm of the value.

    The attention is that of H2O (the paper's "H2O with VATP"): summed since the row was appended, by the mean over the query
    heads of a key/value head, with the ``recent`` newest rows protected, half of ``size`` by default. The first ``sinks``
    tokens are protected too, because their values are small although they receive much attention. One decision per key/value
    head.

    From the paper: the product and the protected first tokens. Chosen here: 4 of them, and one decision for the query heads
    that share a key; the models of the paper have one key head per query head.
    """

    recent: int | None = None
    sinks: int = 4
    spec_names: ClassVar[SpecNames] = {"vatp": {}}
    stat_names: ClassVar[tuple[str, ...]] = ("accumulated_attention",)
    needs_values: ClassVar[bool] = True
    update_is_additive: ClassVar[bool] = True
    depends_on_other_positions: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"

    def validate(self, size: int | None) -> None:
        super().validate(size)
        if self.recent is not None:
            self._check_int("recent", self.recent, at_least=0, at_most=size)
        self._check_int("sinks", self.sinks, at_least=0, at_most=size)

    def update(self, observation: Observation) -> dict[str, Tensor]:
        received = observation.weights.mean(2)  # (B, K, R)
        return {"accumulated_attention": observation.row_stats["accumulated_attention"] + received}

    def score(self, observation: Observation) -> Tensor:
        assert isinstance(self.size, int)
        assert observation.values is not None
        received = observation.row_stats["accumulated_attention"]
        score = received * observation.values.abs().sum(-1)
        protected = is_recent(observation, self.size // 2 if self.recent is None else self.recent)
        return score.masked_fill(protected | (observation.positions < self.sinks), torch.inf)


def squared_change(observation: Observation) -> Tensor:
    r"""Return $\left(\frac{p_j}{1 - p_j}\right)^2 \lVert o - v_j \rVert^2$ for each query head and row, ``(B, K, G, R)``.

    For the row j with the largest weight, 1 − p_j and o − v_j may be differences of almost equal numbers. With the output
    $o_{-j}$ of the other rows, their weights divided by their sum, the change is $p_j (o_{-j} - v_j)$, which stays exact.
    Without other rows $o_{-j}$ is 0.

    The other weights are at most 1/2. For them the product form of the distance needs no tensor of all rows for each query
    head. The bound of its rounding error is the floor of the distance for every row, so that weights decide among equal values.
    """
    assert observation.values is not None
    assert observation.output is not None
    weights = observation.weights
    values, output = observation.values, observation.output.to(weights.dtype)
    limits, D = torch.finfo(weights.dtype), values.shape[-1]
    lengths = output.square().sum(-1, keepdim=True) + values.square().sum(-1)[:, :, None]  # (B, K, G, R)
    floor = D * limits.eps * lengths
    distance = torch.maximum((lengths - 2 * output @ values.mT) / (1 - weights).square(), floor)
    row = weights.argmax(-1, keepdim=True)  # (B, K, G, 1)
    rest = weights.scatter(-1, row, 0)
    without = rest @ values / rest.sum(-1, keepdim=True).clamp(min=limits.tiny)  # (B, K, G, D)
    value = values.gather(2, row.expand(-1, -1, -1, D))  # (B, K, G, D)
    exact = torch.maximum((without - value).square().sum(-1, keepdim=True), floor.gather(-1, row))
    return weights.square() * distance.scatter(-1, row, exact)
