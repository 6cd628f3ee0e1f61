"""Operators that score keys by statistics of queries, which are calibrated once on a text. They need no attention weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .calibrated import CalibratedReduction, ModelSizes
from .contract import EMPTY, Observation, SpecNames


@dataclass(frozen=True)
class QFilters(CalibratedReduction):
    """Q-Filters (arXiv:2503.02812): the row with the key that points least in the direction of the queries is evicted.

    The score is the product of the key with one unit vector per layer and key/value head: the first right singular vector of
    the queries of a calibration text, with the sign for which the product with the mean query is positive. One decision per
    key/value head.

    From the paper: score and vector. Chosen here: the vectors of the query heads that share a key are averaged, queries and
    keys are rotated, and no row is protected.

    Attributes:
        constants: ``filters (L, K, D)``.
    """

    spec_names: ClassVar[SpecNames] = {"q-filters": {}}
    needs_weights: ClassVar[bool] = False
    needs_keys: ClassVar[bool] = True
    depends_on_other_positions: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False

    def constant_shapes(self, sizes: ModelSizes) -> Mapping[str, tuple[int, ...]]:
        return {"filters": (sizes.n_layers, sizes.n_kv_heads, sizes.head_dim)}

    def score(self, observation: Observation) -> Tensor:
        assert observation.keys is not None
        filters = self.constants.get("filters", like=observation.weights)  # (K, D)
        return (observation.keys @ filters[..., None])[..., 0]


@dataclass(frozen=True)
class ExpectedAttention(CalibratedReduction):
    r"""Expected attention (arXiv:2510.00636; NVIDIA/kvpress at 08a43bf): rows that future queries will attend to least.

    Unrotated queries of a head are modelled as Gaussian with mean μ and covariance Σ. The expected attention logit of a key is
    $k^\top R \mu / \sqrt D$, the exponential of a Gaussian adds $k^\top R \Sigma R^\top k / 2D$, and a softmax over the rows
    gives the expected attention. R is the mean rotation of the next 512 positions. The score is the mean over the query heads
    of a key/value head times the L2 norm of the value. The first ``sinks`` tokens are protected. One decision per key/value
    head.

    From the paper and its code: the score, 512 positions, 4 sinks. The code evicts once after a prompt and takes μ and Σ from
    the prompt, or from a data set as here; here R moves on by one position at each token.

    Attributes:
        constants: ``mean (L, N, D)`` and ``covariance (L, N, D, D)``, with the mean rotation of positions 1 to 512 and the
            scale of the logits applied, and ``frequencies (L, D/2)``, the angle per position of each pair.
    """

    sinks: int = 4
    spec_names: ClassVar[SpecNames] = {"expected-attention": {}}
    needs_weights: ClassVar[bool] = False
    needs_keys: ClassVar[bool] = True
    needs_values: ClassVar[bool] = True
    depends_on_row_layout: ClassVar[bool] = False
    needs_text_positions: ClassVar[bool] = True

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_int("sinks", self.sinks, at_least=0, at_most=size)

    def constant_shapes(self, sizes: ModelSizes) -> Mapping[str, tuple[int, ...]]:
        L, N, D = sizes.n_layers, sizes.n_heads, sizes.head_dim
        return {"covariance": (L, N, D, D), "frequencies": (L, D // 2), "mean": (L, N, D)}

    def score(self, observation: Observation) -> Tensor:
        assert observation.keys is not None
        assert observation.values is not None
        like, absent = observation.weights, observation.positions == EMPTY  # (B, K, R)
        K = absent.shape[1]
        mean = self.constants.get("mean", like).unflatten(0, (K, -1))  # (K, G, D)
        covariance = self.constants.get("covariance", like).unflatten(0, (K, -1))  # (K, G, D, D)
        keys = rotate_back(observation.keys, observation.clock, self.constants.get("frequencies", like))
        logits = keys @ mean.mT + quadratic_form(keys, covariance) / 2  # (B, K, R, G)
        expected = logits.masked_fill(absent[..., None], -torch.inf).softmax(2).mean(-1)
        score = expected * observation.values.norm(dim=-1)
        return score.masked_fill((observation.positions < self.sinks) & ~absent, torch.inf)


def quadratic_form(keys: Tensor, matrices: Tensor) -> Tensor:
    """Return kᵀ A k for each key and each matrix of its head: ``(B, K, R, D), (K, G, D, D) -> (B, K, R, G)``."""
    (B, K, R, D), G = keys.shape, matrices.shape[1]
    of_head = keys.transpose(0, 1).reshape(K, B * R, 1, D)
    products = of_head[:, :, 0] @ matrices.transpose(1, 2).reshape(K, D, G * D)  # one product per head: much faster than B G
    return products.view(K, B * R, G, D).mul_(of_head).sum(-1).view(K, B, R, G).transpose(0, 1)


def rotate_back(keys: Tensor, clock: Tensor, frequencies: Tensor) -> Tensor:
    """Return ``keys (B, K, R, D)`` rotated by minus ``clock (B,)`` positions, so that a query at the clock needs no rotation.

    ``frequencies``: ``(D/2,)``; pair i of a head is ``(x[i], x[i + D/2])``.
    """
    angle = clock[:, None].to(frequencies.dtype) * frequencies  # (B, D/2)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    a, b = keys.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)
