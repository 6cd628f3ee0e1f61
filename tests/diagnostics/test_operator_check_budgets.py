"""``check_operator`` checks operators with sizes per head and shared budgets, and finds faults in them."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.refusals import refusing

import msrnn
from msrnn import TOVA, Constants, QFilters, Reduction, SharedBudget, check_operator
from msrnn.diagnostics.small_operators import n_kv_heads_of, small_operator


@pytest.mark.parametrize(
    "operator",
    [
        SharedBudget(TOVA(512, per_head=True)),
        "shared:floor=1.0:last-queries:64:4",
        TOVA(size=((6, 4, 2),), per_head=True),
        "sinks:full/64/64:4",
        "all-layers:shared:random:7",
        "keydiff:8/4,9/3",
    ],
    ids=str,
)
def test_uneven_heads_pass(operator):
    check_operator(operator, seeds=1)


def test_constants_fit_the_heads_of_the_sizes_and_the_operator_is_unchanged():
    filters = QFilters(((8, 6, 4),), Constants({"filters": torch.ones(3, 5, 7)}))
    check_operator(filters, seeds=1)
    assert filters.constants.tensors["filters"].shape == (3, 5, 7)


@pytest.mark.parametrize(
    ("spec", "small"),
    [
        ("tova-head:512/64/32/64", "tova-head:11/8/5/8"),
        ("tova-head:6/4/2", "tova-head:6/4/2"),
        ("sinks:full/64/64:4", "sinks:full/5/5:4"),
        ("sinks:full/64/64:8", "sinks:full/9/9:8"),
        ("h2o:full/full,8/4", "h2o:full/full"),
        ("tova:100,200", "tova:5"),
        ("shared:floor=0.5:h2o:300:recent=7", "shared:floor=0.5:h2o:9:7"),
        ("all-layers:tova-head:50/60", "tova-head:5/8"),
    ],
)
def test_sizes_become_small_and_stay_different(spec, small):
    found = small_operator(msrnn.parse_reduction(spec))
    assert str(found) == small
    assert n_kv_heads_of(found) == (small.count("/") + 1 if "/" in small else 2)


@dataclass(frozen=True)
class Generator(Reduction):
    def score(self, observation):
        return torch.rand(observation.positions.shape)


@dataclass(frozen=True)
class NumberOfColumns(Reduction):
    depends_on_row_layout: ClassVar[bool] = False

    def score(self, observation):
        return observation.weights.mean(2) * (-1) ** observation.weights.shape[-1]


@dataclass(frozen=True)
class FirstOfBatch(Reduction):
    depends_on_row_layout: ClassVar[bool] = False

    def score(self, observation):
        return observation.weights.mean(2) * (-1) ** (observation.clock[0] % 2)


@dataclass(frozen=True)
class IndexOfHead(Reduction):
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"

    def score(self, observation):
        return observation.weights.mean(2).cumsum(1)


@dataclass(frozen=True)
class WrongSpec(Reduction):
    depends_on_row_layout: ClassVar[bool] = False
    spec_names: ClassVar = {"wrong-inner-spec": {}}
    decay: int = 3

    def score(self, observation):
        return observation.weights.mean(2)

    def __str__(self):
        return f"wrong-inner-spec:{self.size}"


FAULTS = {
    NumberOfColumns: "retains other rows than the step loop|differ",
    FirstOfBatch: "of the batch alone|retains other rows|differ",
    IndexOfHead: "IndexOfHead.score depends on the heads in another way",
}


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("form", ["sizes per head", "shared budget"])
def test_faults_are_found(kind, form):
    operator = kind(((8, 5),)) if form == "sizes per head" else SharedBudget(kind(5))
    with pytest.raises(msrnn.Error, match=FAULTS[kind]) as raised:
        check_operator(operator, seeds=2)
    assert kind.__name__ in str(raised.value)


def test_the_spec_string_of_the_operator_within_a_shared_budget_is_checked():
    with refusing("spec string 'shared:wrong-inner-spec:5' gives SharedBudget"):
        check_operator(SharedBudget(WrongSpec(5, 7)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Generator(((8, 5),)), "Generator depends_on_row_layout, but heads hold different numbers of rows"),
        (lambda: "tova:6/4", "tova:6/4 takes one decision for the layer; expected one per key/value head"),
        (lambda: "cam:8/9", "CaM merges values; expected an operator that only evicts rows"),
    ],
)
def test_operators_that_cannot_decide_per_head_are_refused(make, message):
    with refusing(message):
        check_operator(make())
