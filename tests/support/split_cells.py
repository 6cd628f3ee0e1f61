"""Comparisons of a split cell with the whole one, in a process of a group."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

import msrnn
from msrnn import Cell, Observation, Reduction, State

T = 24


@dataclass(frozen=True)
class LayerMaximum(Reduction):
    """One decision for the layer by the maximum over its heads of decayed weights; states no flag."""

    stat_names: ClassVar[tuple[str, ...]] = ("received",)

    def update(self, observation: Observation) -> dict[str, Tensor]:
        return {"received": observation.row_stats["received"] * 0.7 + observation.weights.amax(2)}

    def score(self, observation: Observation) -> Tensor:
        return observation.row_stats["received"].amax(1, keepdim=True)


@dataclass(frozen=True)
class HeadIndex(Reduction):
    """Per head, with an order of rows that depends on the index of the head, and on the keys; states no flag."""

    needs_keys: ClassVar[bool] = True

    def score(self, observation: Observation) -> Tensor:
        assert observation.keys is not None
        head = torch.arange(observation.positions.shape[1])[:, None]
        return observation.keys[..., 0] * (1 + head) + observation.weights.mean((1, 2))[:, None]


@dataclass(frozen=True)
class HeadWeights(Reduction):
    """Per head, with an order of rows that depends on the rows of all heads; ``reads_heads`` has the safe value."""

    depends_on_row_layout: ClassVar[bool] = False

    def score(self, observation: Observation) -> Tensor:
        n_rows = (observation.positions >= 0).sum((1, 2))
        return (observation.positions * 7919 + n_rows[:, None, None]) % 13 + observation.weights.mean(2)


class Comparison(NamedTuple):
    """The largest differences of the logits, and whether all rows have the same positions."""

    many_tokens: float
    steps: float
    same_rows: bool


def text(vocab_size: int, batch: int = 2, length: int = T, seed: int = 1) -> Tensor:
    """Return random ids ``(B, T)``."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def compare(whole: Cell, split: Cell, reduction: Reduction | str | None, **options) -> Comparison:
    """Read a ragged batch at once, then a few tokens step by step, with both cells."""
    tokens, lengths = text(whole.config.vocab_size), torch.tensor([T, T - 5])
    start = [cell.initial_state(2, reduction, **options) for cell in (whole, split)]
    expected, H = whole(tokens, start[0], lengths=lengths)
    found, G = split(tokens, start[1], lengths=lengths)
    gap, same = largest_gap(found, expected), has_rows_of(G, H)
    steps = 0.0
    for t, active in enumerate((None, torch.tensor([True, False]), None)):
        expected, H = whole.step(tokens[:, t], H, active=active)
        found, G = split.step_(tokens[:, t], G, active=active)
        read = slice(None) if active is None else active
        steps = max(steps, largest_gap(found[read], expected[read]))
    return Comparison(gap, steps, same and has_rows_of(G, H))


def largest_gap(found: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference; NaN has to be at the same places."""
    assert found.isnan().equal(expected.isnan())
    return float((found - expected).nan_to_num(0).abs().amax())


def has_rows_of(split: State, whole: State) -> bool:
    """Return True if a state holds the positions and the statistics of its heads in the state of the whole cell."""
    assert split.heads is not None
    for G, H in zip(split, whole, strict=True):
        G, H, heads = G.sorted_by_position(), H.sorted_by_position(), split.heads
        S = G.positions.shape[2]  # H may have more columns, for a fuller head of another rank
        positions = heads.own(H.positions, 1)
        if not G.positions.equal(positions[..., :S]) or (positions[..., S:] >= 0).any():
            return False
        for name, x in G.row_stats.items():  # those of empty rows are arbitrary
            if not torch.allclose(x[~G.empty], heads.own(H.row_stats[name], 1)[:, :, :S][~G.empty], atol=1e-9):
                return False
    return True


def refusal(call) -> str:
    """Return the message of the ``msrnn.Error`` that ``call`` raises."""
    try:
        call()
    except msrnn.Error as error:
        return str(error)
    raise AssertionError("no error")
