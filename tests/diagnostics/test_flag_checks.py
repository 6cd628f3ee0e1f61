"""``check_operator`` tests ``reads_heads``."""

from dataclasses import dataclass

import pytest
from support.refusals import refusing

import msrnn
from msrnn.diagnostics.flag_checks import check_heads


@dataclass(frozen=True)
class MeanOfAllHeads(msrnn.Reduction):
    reads_heads = "own"

    def score(self, observation):
        return observation.weights.mean((1, 2))[:, None]


@dataclass(frozen=True)
class IndexOfHead(msrnn.Reduction):
    reads_heads = "own"

    def score(self, observation):
        return observation.weights.mean(2).cumsum(1)


@dataclass(frozen=True)
class MaximumOfHeads(msrnn.Reduction):
    reads_heads = "mean"

    def score(self, observation):
        return observation.weights.amax((1, 2))[:, None]


@dataclass(frozen=True)
class SharedStatistic(msrnn.Reduction):
    reads_heads = "own"
    stat_names = ("seen",)

    def update(self, observation):
        return {"seen": observation.row_stats["seen"] + observation.weights.mean((1, 2))[:, None]}

    def score(self, observation):
        return observation.row_stats["seen"]


@dataclass(frozen=True)
class UnknownFlag(msrnn.Reduction):
    reads_heads = "none"

    def score(self, observation):
        return observation.weights.mean(2)


@pytest.mark.parametrize("kind", [MeanOfAllHeads, IndexOfHead, MaximumOfHeads, SharedStatistic])
def test_a_wrong_flag_is_found(kind):
    with refusing("expected 'all'"):
        check_heads(kind(6))


@pytest.mark.parametrize(
    "spec", ["full", "tova:6", "tova-head:6", "h2o-layer:6", "h2o:6", "random:6", "caote:6", "lagkv:9:2:1"]
)
def test_flags_of_the_library_are_right(spec):
    check_heads(msrnn.parse_reduction(spec).for_layer(0))


def test_an_unknown_value_is_refused():
    with refusing("reads_heads is 'none'"):
        UnknownFlag(6).check_contract()
