"""Constants of the operators that score keys by statistics of queries: Q-Filters and expected attention."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..errors import Error, counted
from ..layers.positional import PositionEncoding, RotaryEncoding
from ..reductions.query_statistics import rotate_back
from .reading import read_layers

SINKS, FUTURE = 4, 512
"""Tokens at the start of a text that are left out of the statistics of expected attention, and future positions."""


def q_filters(cell: Cell, texts: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return ``filters (L, K, D)`` of :class:`~msrnn.reductions.query_statistics.QFilters`.

    The first right singular vector of the queries Q is the first eigenvector of QᵀQ, so the texts are read one by one.

    Args:
        cell: the cell.
        texts: ids ``(T,)`` int64 each.
    """
    squares: dict[int, Tensor] = {}
    sums: dict[int, Tensor] = {}
    for tokens in texts:
        for layer in read_layers(cell, tokens):
            q = layer.queries.double()  # (K, G, T, D)
            squares[layer.layer] = squares.get(layer.layer, 0) + q.mT @ q
            sums[layer.layer] = sums.get(layer.layer, 0) + q.sum(2)
    filters = []
    for i in range(len(cell.layers)):
        vector = torch.linalg.eigh(squares[i]).eigenvectors[..., -1]  # (K, G, D), of the largest eigenvalue
        sign = (vector * sums[i]).sum(-1, keepdim=True).sign()
        filters.append((vector * sign).mean(1))
    return {"filters": torch.stack(filters).float()}


def expected_attention(cell: Cell, texts: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the constants of :class:`~msrnn.reductions.query_statistics.ExpectedAttention`.

    Args:
        cell: the cell.
        texts: ids ``(T,)`` int64 each, longer than ``SINKS``.

    Raises:
        Error: a shorter text; a position encoding with other queries than rotated ones, or with frequencies that depend on the
            length.
    """
    pairs = [_pairs(encoding, cell.config.head_dim) for encoding in cell.position_encodings]
    squares: dict[int, Tensor] = {}
    sums: dict[int, Tensor] = {}
    count = 0
    for tokens in texts:
        if len(tokens) <= SINKS:
            raise Error(f"expected attention: a text has {counted(len(tokens), 'token')}; expected more than {SINKS}")
        count += len(tokens) - SINKS
        for layer in read_layers(cell, tokens):
            frequencies, scaling = pairs[layer.layer]
            K, G, T, D = layer.queries.shape
            position = torch.arange(T, device=layer.queries.device)
            q = layer.queries.double().permute(2, 0, 1, 3).reshape(T, K * G, 1, D)
            q = rotate_back(q, position, frequencies.to(q.device))[SINKS:, :, 0].transpose(0, 1) / scaling  # (N, T', D)
            squares[layer.layer] = squares.get(layer.layer, 0) + q.mT @ q
            sums[layer.layer] = sums.get(layer.layer, 0) + q.sum(1)
    means, covariances = [], []
    for i, rule in enumerate(cell.logit_rules):
        scale, rotation = rule.scale_for(cell.config.head_dim), _mean_rotation(*pairs[i]).to(sums[i].device)
        mean = sums[i] / count  # (N, D)
        covariance = (squares[i] - count * mean[:, :, None] * mean[:, None]) / max(1, count - 1)
        means.append(scale * mean @ rotation.T)
        covariances.append(scale**2 * rotation @ covariance @ rotation.T)
    frequencies = torch.stack([x for x, _ in pairs])
    stacked = {"mean": torch.stack(means), "covariance": torch.stack(covariances), "frequencies": frequencies}
    return {name: x.float() for name, x in stacked.items()}


def _pairs(encoding: PositionEncoding, head_dim: int) -> tuple[Tensor, float]:
    """Return the frequencies ``(D/2,)`` float64 of an encoding, and the factor on cos and sin."""
    if type(encoding) is PositionEncoding:
        return torch.zeros(head_dim // 2, dtype=torch.float64), 1.0
    if type(encoding) is not RotaryEncoding or not encoding.rope.relative:
        found = type(encoding).__name__ if encoding.rope is None else type(encoding.rope).__name__
        raise Error(f"expected attention: a layer has the positions of {found}; expected rotary ones that do not change")
    zero = torch.zeros((), dtype=torch.int64)
    return encoding.rope.frequencies(zero, head_dim, torch.float64), encoding.rope.attention_scaling


def _mean_rotation(frequencies: Tensor, scaling: float) -> Tensor:
    """Return the mean of the rotations by 1 to ``FUTURE`` positions, ``(D, D)``."""
    angle = torch.arange(1, FUTURE + 1, dtype=torch.float64)[:, None] * frequencies  # (F, D/2)
    cos, sin = (scaling * x.mean(0).diag() for x in (angle.cos(), angle.sin()))
    return torch.cat((torch.cat((cos, -sin), dim=1), torch.cat((sin, cos), dim=1)))
