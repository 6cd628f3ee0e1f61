"""``check_operator`` accepts every operator of the library, and finds classes that break the contract."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import msrnn
from msrnn import H2O, TOVA, Knorm, Reduction, check_operator
from msrnn.reductions.calibrated import CalibratedReduction
from msrnn.reductions.contract import is_recent
from msrnn.reductions.spec_strings import SPEC_NAMES

SETTINGS = {"sinks": ":512:4", "morphkv": ":128:32", "morphkv-max": ":128:32", "full": ""}
SPECS = [name + SETTINGS.get(name, ":512") for name, (kind, _) in SPEC_NAMES.items() if kind.__module__.startswith("msrnn.")]
SPECS = [spec for spec in SPECS if not issubclass(SPEC_NAMES[spec.partition(":")[0]][0], CalibratedReduction)]


@pytest.mark.parametrize("spec", [*SPECS, "window:0", "keydiff:1", "h2o:1", "tova:1", "h2o:7:0", "random:3:5"])
def test_operators_of_the_library_pass(spec):
    check_operator(spec)


def test_sizes_per_layer_pass():
    check_operator(TOVA((5, 9)))
    check_operator(H2O((300, 200)))


class Faulty(Reduction):
    """Base class of operators with one fault each."""

    def score(self, observation):
        return observation.weights.mean(2)


@dataclass(frozen=True)
class Generator(Faulty):
    def score(self, observation):
        return torch.rand(observation.positions.shape)


@dataclass(frozen=True)
class Memory(Faulty):
    calls: ClassVar[list] = []

    def score(self, observation):
        self.calls.append(1)
        return observation.weights.mean(2) * (-1) ** len(self.calls)


@dataclass(frozen=True)
class MixesBatch(Faulty):
    def score(self, observation):
        return (observation.positions - observation.clock.max() // 2).abs().double()


@dataclass(frozen=True)
class NotAdditive(Faulty):
    stat_names: ClassVar[tuple[str, ...]] = ("best",)
    update_is_additive: ClassVar[bool] = True
    depends_on_row_layout: ClassVar[bool] = False

    def update(self, observation):
        return {"best": torch.maximum(observation.row_stats["best"], observation.weights.mean(2))}

    def score(self, observation):
        return observation.row_stats["best"]


@dataclass(frozen=True)
class NotLayoutFree(Faulty):
    depends_on_row_layout: ClassVar[bool] = False

    def score(self, observation):
        return observation.weights.mean(2).cumsum(-1)


@dataclass(frozen=True)
class OtherPositions(Faulty):
    depends_on_row_layout: ClassVar[bool] = False
    depends_on_other_positions: ClassVar[bool] = False

    def score(self, observation):
        newest = observation.positions == observation.positions.amax(-1, keepdim=True)
        return observation.weights.mean(2).masked_fill(newest, torch.inf)


@dataclass(frozen=True)
class Ties(Knorm):
    needs_weights: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False
    tie_tolerance: ClassVar[float] = 0.0


@dataclass(frozen=True)
class Raises(Faulty):
    def score(self, observation):
        return observation.weights.mean(2) * int(observation.clock)


@dataclass(frozen=True)
class InfiniteValues(Faulty):
    def merge(self, observation, values, row):
        return values * torch.inf


@dataclass(frozen=True)
class EditsWeights(Faulty):
    depends_on_row_layout: ClassVar[bool] = False

    def score(self, observation):
        return observation.weights.mul_(2).mean(2)


@dataclass(frozen=True)
class NotJson(Faulty):
    settings: object = frozenset({1})


@dataclass(frozen=True)
class WrongSpec(Faulty):
    spec_names: ClassVar = {"wrong-spec": {}}
    decay: int = 3

    def __str__(self):
        return f"wrong-spec:{self.decay}:{self.size}"


FAULTS = {
    Generator: "differ|retains other rows",
    Memory: "differ|retains other rows",
    MixesBatch: r"batch alone|cell\(tokens\)|other rows",
    NotAdditive: "NotAdditive.update is not additive for 'best'",
    NotLayoutFree: "retains other rows",
    OtherPositions: "retains other rows|differ",
    Ties: "need tie_tolerance|differ",
    Raises: "raises (Runtime|Value)Error in the step loop: .*convert",
    InfiniteValues: "logits are not finite",
    EditsWeights: "EditsWeights.score edits weights in place",
    NotJson: "cannot be saved",
    WrongSpec: "spec string 'wrong-spec:3:6' gives",
}


@pytest.mark.parametrize(("kind", "sentence"), FAULTS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_faults_are_found(kind, sentence):
    with pytest.raises(msrnn.Error, match=sentence):
        check_operator(kind(6))


@dataclass(frozen=True)
class RandomButRecent(Reduction):
    recent: int = 16

    def score(self, observation):
        drawn = torch.rand(observation.positions.shape, dtype=observation.weights.dtype)
        return drawn.masked_fill(is_recent(observation, self.recent), torch.inf)


@dataclass(frozen=True)
class RandomButRecentOfLargerSizes(RandomButRecent):
    def validate(self, size):
        super().validate(size)
        if size <= self.recent:
            raise msrnn.Error(f"size is {size}; expected more than recent, {self.recent}")


def test_a_rule_that_is_not_tested_is_refused():
    with pytest.raises(msrnn.Error, match=r"with 5 rows all scores are \+inf, so its rule is not tested; expected a method"):
        check_operator(RandomButRecent(64))
    with pytest.raises(msrnn.Error, match="retains other rows than the step loop"):
        check_operator(RandomButRecentOfLargerSizes(64))


@pytest.mark.parametrize("operator", [None, 5, TOVA, "tovaa:3"])
def test_other_arguments_are_refused(operator):
    with pytest.raises(msrnn.Error, match="expected"):
        check_operator(operator)
