"""Sizes per head and shared budgets: spec strings and refusals."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.head_budgets import per_head
from support.tiny_models import random_tokens, tiny_cell

from msrnn import CAOTE, H2O, TOVA, AllLayers, CaM, Error, Full, Keyformer, Reduction, SharedBudget, Sinks, parse_reduction
from msrnn.eval.conditions import condition_name, parse_conditions, unaffected
from msrnn.eval.digests import code_digest
from msrnn.reductions.budgets import mean_size
from msrnn.reductions.head_budgets import HeadSizes
from msrnn.reductions.per_layer import format_operators, per_layer
from msrnn.reductions.spec_strings import is_writable


class OwnTOVA(TOVA):
    """A user-defined class with the safe flags."""


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        ("tova-head:64/32/16", TOVA(((64, 32, 16),), per_head=True)),
        ("tova-head:64/32,8,16/8", TOVA(((64, 32), 8, (16, 8)), per_head=True)),
        ("h2o:9/", H2O(((9,),))),
        ("sinks:full/64/64:8", Sinks(((None, 64, 64),), sinks=8)),
        ("h2o:full/", H2O(((None,),))),
        ("h2o:full/full,9", H2O(((None, None), 9))),
        ("h2o:9/7:recent=2", H2O([[9, 7]], recent=2)),
        ("shared:tova-head:8", SharedBudget(TOVA(8, per_head=True))),
        ("shared:floor=0.5:h2o:8,9:recent=2", SharedBudget(H2O((8, 9), recent=2), floor=0.5)),
        ("all-layers:shared:caote:8", AllLayers(SharedBudget(CAOTE(8)))),
    ],
)
def test_spec_strings(text, operator):
    assert parse_reduction(text) == operator
    assert parse_reduction(str(operator)) == operator
    assert str(operator) == text.replace("recent=", "")


def test_every_kind_can_be_written_and_is_one_operator_per_layer():
    for operator in per_head(((3, 5),)):
        assert is_writable(operator)
        assert all(x.sizes == (3, 5) and x.size == 5 for x in per_layer(operator, 2, Full()))
    shared = per_layer(SharedBudget(H2O((4, 6))), 2, Full())
    assert [(x.size, x.floor_rows, x.max_rows(3)) for x in shared] == [(4, 0, 12), (6, 1, 16)]
    assert format_operators(per_layer("keyformer:5/9", 2, Full())) == "keyformer:5/9"
    assert format_operators(per_layer(SharedBudget(Keyformer(9)), 2, Full())) == "shared:keyformer:9"
    assert mean_size(((2, 4), 6)) == 4.5
    assert mean_size(((None, 4), 6)) is None


def test_a_layer_with_an_unbounded_head_has_no_maximum():
    unbounded, full = per_layer("h2o:4/full,full/full", 2, Full())
    assert (unbounded.sizes, unbounded.size, unbounded.max_rows(2), unbounded.rows_before_eviction) == (
        (4, None),
        None,
        None,
        4,
    )
    assert not full.evicts(torch.tensor([10**9, 10**9])).any()


def test_a_budget_above_the_range_of_int64_evicts_none():
    """12 heads share more than 2**63 rows."""
    cell, tokens = tiny_cell(n_layers=1, n_heads=12, n_kv_heads=12, head_dim=4), random_tokens(1, 1, 3)
    state = cell.initial_state(1, f"shared:knorm:{10**18 - 1}")
    for end in (cell(tokens, state)[1], cell.step(tokens[:, 0], state)[1]):
        assert (end[0].positions >= 0).sum() == 12 * end.clock


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "tova:4/6", "sizes per head: tova:4/6 takes one decision for the layer; expected one per key/value head"),
        (lambda: "h2o-layer:4/6", "takes one decision for the layer"),
        (lambda: "caote-layer:4/6", "takes one decision for the layer"),
        (lambda: "cam:6/7", "CaM merges values"),
        (lambda: OwnTOVA(((4, 6),), per_head=True), "OwnTOVA depends_on_row_layout"),
        (lambda: "tova-head:4/6/3", "TOVA: 3 sizes for a layer of 2 key/value heads"),
        (lambda: "tova-head:4/6,3/3,2/2", "TOVA: 3 sizes for a cell of 2 layers"),
        (lambda: "tova-head:4/0", "TOVA: size is 0"),
        (lambda: "tova-head:full/0", "TOVA: size is 0"),
        (lambda: "tova:full/4", "takes one decision for the layer"),
        (lambda: "tova-head:full", "expected the form tova-head:<size: int>"),
        (lambda: TOVA((None, 4), per_head=True), "TOVA: size is None"),
        (lambda: SharedBudget(H2O(((4, None),))), "has one size per head"),
        (lambda: H2O(((4, 6), ())), r"H2O: size is \(\(4, 6\), \(\)\)"),
        (lambda: "sinks:4/6:4", "sinks is 4"),
        (lambda: SharedBudget(TOVA(4)), "SharedBudget: tova:4 takes one decision for the layer"),
        (lambda: SharedBudget(CaM(6)), "CaM merges values"),
        (lambda: SharedBudget(Full()), "Full retains all rows"),
        (lambda: "shared:tova-head:4/6", "has one size per head"),
        (lambda: "shared:floor=2:h2o:4", "floor is 2.0; expected a number from 0 to 1"),
        (lambda: "shared:floor=x:h2o:4", "floor is 'x'"),
        (
            lambda: "shared:",
            "reduction 'shared:' has no operator; expected one after the colon, such as 'shared:tova-head",
        ),
        (lambda: "shared:floor=0.5", "has no operator; expected one after the colon, such as 'shared:floor=0.5:tova-head:512'"),
        (
            lambda: " all-layers:",
            "reduction ' all-layers:' has no operator; expected one after the colon, such as",
        ),
        (lambda: "all-layers:shared:", "reduction 'all-layers:shared:' has no operator"),
        (lambda: "shared:shared:h2o:4", "expected a Reduction"),
        (lambda: SharedBudget("h2o:4"), "operator is 'h2o:4'; expected a Reduction"),
        (lambda: HeadSizes(H2O((4, 6))), r"HeadSizes: size is \(4, 6\); expected the sizes of the heads of one layer"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(Error, match=message):
        tiny_cell().initial_state(1, make())


def test_a_score_for_the_layer_is_refused_when_it_is_given():
    class ForLayer(Reduction):
        depends_on_row_layout = False

        def score(self, observation):
            return observation.weights.mean((1, 2))[:, None]

    cell = tiny_cell()
    with pytest.raises(Error, match=r"ForLayer.score returns shape \(5, 1, 5\); expected \(5, 2, 5\)"):
        cell(random_tokens(1, 1, 5), cell.initial_state(1, SharedBudget(ForLayer(4))))


def test_conditions_of_experiments():
    found = parse_conditions(["shared:tova-head", "shared:floor=0.5:h2o:SIZE", "tova-head:4/8", "shared:h2o:6"], [8, 16])
    assert [(str(c), c.size) for c in found] == [
        *(("shared:tova-head:8", 8), ("shared:tova-head:16", 16)),
        *(("shared:floor=0.5:h2o:8", 8), ("shared:floor=0.5:h2o:16", 16)),
        *(("tova-head:4/8", 6), ("shared:h2o:6", 6)),
    ]
    assert condition_name("shared:tova-head", 8) == "shared:tova-head:8"
    assert condition_name("tova-head:4/8", 6) == "tova-head:4/8"
    assert code_digest(SharedBudget(H2O(4))) == code_digest(H2O(4))
    (column,) = parse_conditions(["sinks:full/SIZE:1"], [8])
    assert (str(column), column.size) == ("sinks:full/8:1", 8)
    assert unaffected([column], 9) == ["sinks:full/8:1"]
    assert unaffected([column], 10) == []


def test_the_floor_is_rounded_down_as_decimals_are():
    assert [SharedBudget(H2O(100), floor=x).floor_rows for x in (0.29, 0.57, 0.999, 1)] == [29, 57, 99, 100]


@dataclass(frozen=True)
class Mistaken(Reduction):
    """An operator with a mistake in one method."""

    method: str
    answer: object = None
    stat_names: ClassVar[tuple[str, ...]] = ("seen",)
    depends_on_row_layout: ClassVar[bool] = False

    def update(self, observation):
        if self.method == "update":
            return self.answer
        return {"seen": observation.row_stats["seen"] + 1}

    def score(self, observation):
        if self.method == "values":
            return observation.values.sum(-1)
        seen = observation.row_stats["seen"].clone()
        if self.method == "edit":
            observation.row_stats["seen"].zero_()
        return seen


def read_by_steps(operator, size):
    cell = tiny_cell()
    state = cell.initial_state(1, SharedBudget(operator) if isinstance(size, int) else operator)
    for token in random_tokens(1, 8, 1):
        _, state = cell.step(token, state)
    return state


@pytest.mark.parametrize("size", [2, ((2, 3),)])
@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("update", None, "Mistaken.update returns NoneType"),
        ("update", {}, r"Mistaken.update returns {}; expected {'seen': \(\d, 2, \d\)}"),
        ("values", None, "Mistaken.score reads values, which is None; expected a class with needs_values = True"),
        ("edit", None, "Mistaken.score edits seen in place; expected a new tensor"),
    ],
)
def test_mistakes_of_the_operator_within_are_named(size, method, answer, message):
    with pytest.raises(Error, match=message):
        read_by_steps(Mistaken(size, method, answer), size)


def test_edits_in_inference_mode_reach_a_copy():
    with torch.inference_mode():
        found, expected = (read_by_steps(Mistaken(4, method), 4) for method in ("edit", ""))
        assert found[0].row_stats["seen"].equal(expected[0].row_stats["seen"])
