"""``check_operator`` accepts every shipped operator and finds operators that break the contract."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

import msrnn
from msrnn.reductions.contract import Reduction
from msrnn.reductions.registry import defined_reductions

SHIPPED = {
    *{"full", "window:6", "sinks:6:2", "h2o:6", "h2o-layer:6", "tova:6", "tova-head:6", "random:6", "last-queries:6:2"},
    *{"morphkv:6:2", "morphkv-max:6:2", "scissorhands:6:2", "keyformer:6", "keydiff:6", "knorm:6", "cam:6:2"},
}


@dataclass(frozen=True)
class Decayed(msrnn.H2O):
    """A subclass that decays; the flags of H2O do not apply to it."""

    def update(self, observation):
        received = observation.row_stats["accumulated_attention"]
        return {"accumulated_attention": 0.9 * received + observation.weights.mean(2)}


@dataclass(frozen=True)
class KeepsCurrent(msrnn.Reduction):
    def score(self, observation):
        score = observation.weights.mean(2).clone()
        score[..., -1] = torch.inf
        return score


@dataclass(frozen=True)
class FalselyWithoutLayout(msrnn.Reduction):
    depends_on_row_layout: ClassVar[bool] = False

    def score(self, observation):
        return observation.weights.mean(2) * torch.arange(observation.positions.shape[-1], dtype=torch.float64)


@dataclass(frozen=True)
class HasMemory(msrnn.Reduction):
    calls: list = field(default_factory=list)

    def score(self, observation):
        self.calls.append(1)
        return observation.weights.mean(2) * (-1) ** len(self.calls)


@dataclass(frozen=True)
class EditsWeights(msrnn.Reduction):
    depends_on_row_layout: ClassVar[bool] = False

    def score(self, observation):
        return observation.weights.mul_(2).mean(2)


def test_the_list_contains_every_shipped_operator():
    names = {name for kind in defined_reductions() if kind.__module__.startswith("msrnn.") for name in kind.spec_names}
    assert {spec.split(":")[0] for spec in SHIPPED} == names


@pytest.mark.parametrize("spec", sorted(SHIPPED))
def test_shipped_operator_passes(spec):
    msrnn.check_operator(spec, seeds=1)


@pytest.mark.parametrize("operator", [Decayed(6), KeepsCurrent(6)], ids=str)
def test_user_defined_operator_passes(operator):
    msrnn.check_operator(operator)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (FalselyWithoutLayout(6), "FalselyWithoutLayout"),
        (HasMemory(6), "HasMemory"),
        (EditsWeights(6), "in place"),
        (Reduction(6), "defines no score"),
        ("nonsense:6", "nonsense"),
        (6, "expected a Reduction"),
    ],
    ids=str,
)
def test_operator_that_breaks_the_contract_is_refused(operator, message):
    with pytest.raises(msrnn.Error, match=message):
        msrnn.check_operator(operator)
