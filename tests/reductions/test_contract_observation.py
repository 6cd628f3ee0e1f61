"""An operator receives the same observation in the step loop and in the many-token path."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.operator_paths import TEXT, assert_paths_agree
from support.tiny_models import assert_close, assert_same, retained_positions, step_loop, tiny_cell, tiny_decoder

from msrnn import Reduction


@dataclass(frozen=True)
class CurrentProtected(Reduction):
    """TOVA, but the current token is not evicted: its row is the last."""

    def score(self, observation):
        score = observation.weights.mean(2)
        score[..., -1] = math.inf
        return score


@dataclass(frozen=True)
class FairShare(Reduction):
    """Counts how often a row receives more than one R-th of the attention."""

    stat_names: ClassVar[tuple[str, ...]] = ("above",)

    def update(self, observation):
        return {"above": observation.row_stats["above"] + (observation.weights.mean(2) > 1 / observation.weights.shape[-1])}

    def score(self, observation):
        return observation.row_stats["above"]


@dataclass(frozen=True)
class NewBonus(Reduction):
    """A row receives a bonus when it is appended."""

    stat_names: ClassVar[tuple[str, ...]] = ("value",)

    def update(self, observation):
        value = 0.9 * observation.row_stats["value"] + observation.weights.mean(2)
        value[..., -1] = 2.0
        return {"value": value}

    def score(self, observation):
        return observation.row_stats["value"].cumsum(-1)


@pytest.mark.parametrize("operator", [CurrentProtected(6), FairShare(6), NewBonus(6)], ids=lambda o: type(o).__name__)
def test_observation_has_the_same_layout_in_both_paths(operator):
    end = assert_paths_agree(operator)
    cell = tiny_cell()
    _, alone = step_loop(cell, TEXT[1:, :21], cell.initial_state(1, operator))
    assert_same(end.select([1]), alone, 1e-8)


@dataclass(frozen=True)
class Recording(Reduction):
    """Checks each observation that it receives against the documented layout."""

    stat_names: ClassVar[tuple[str, ...]] = ("seen",)
    needs_keys: ClassVar[bool] = True

    def check(self, observation, R=None):
        weights, positions, clock, row_stats, keys, *_ = observation
        assert R in (None, positions.shape[2])
        assert (positions[..., -1] == clock[:, None]).all()
        assert (positions >= 0).all()
        assert (positions[..., 1:] > positions[..., :-1]).all()
        assert weights.shape == (*positions.shape[:2], 2, positions.shape[2])
        assert keys.shape[:3] == row_stats["seen"].shape == positions.shape
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))

    def update(self, observation):
        self.check(observation)
        assert (observation.row_stats["seen"][..., -1] == 0).all()
        return {"seen": observation.row_stats["seen"] + 1}

    def score(self, observation):
        self.check(observation, self.size + 1)
        assert (observation.row_stats["seen"] == observation.clock[:, None, None] - observation.positions + 1).all()
        return observation.weights.mean(2)


def test_observation_has_the_documented_columns():
    assert_paths_agree(Recording(6))


def test_learned_rows_come_first_in_an_observation():
    @dataclass(frozen=True)
    class Learned(Reduction):
        def score(self, observation):
            assert observation.positions.shape[2] == 3 + self.size + 1
            assert (observation.positions[..., :3] == -2).all()
            assert (observation.positions[..., -1] == observation.clock[:, None]).all()
            return -observation.positions.double()  # a learned row has the highest score, and a lower one would not matter

    cell = tiny_decoder(persistent=3)
    state = cell.initial_state(2, Learned(4))
    expected, end = step_loop(cell, TEXT[:, :12], state)
    logits, after = cell(TEXT[:, :12], state)
    assert_close(logits, expected, 1e-8)
    assert_same(after, end, 1e-8)
    assert retained_positions(end)[0][0][0] == [-2, -2, -2, 0, 1, 2, 3]


@pytest.mark.parametrize("operator", [CurrentProtected(6), NewBonus(6)], ids=lambda o: type(o).__name__)
def test_step_of_a_full_cache_is_one_graph(operator):
    """A synchronisation with the device would break the graph."""
    cell = tiny_cell()
    _, state = cell(TEXT, cell.initial_state(2, operator))
    stepped = torch.compile(cell.layers[0].step, backend="eager", fullgraph=True)(torch.zeros(2, 24).double(), state[0])
    plain = cell.layers[0].step(torch.zeros(2, 24).double(), state[0])
    assert_close(stepped[0], plain[0])
    assert stepped[1].positions.equal(plain[1].positions)
