"""The captured step with uneven heads against ``step_``, with a recording on the CPU in place of a CUDA graph."""

import copy
import operator

import pytest
import torch
from support.captured_steps import assert_captured_steps_equal_steps
from support.cell_strategies import assert_unchanged, copy_tensors
from support.refusals import refusing
from support.tape import Tape
from support.tiny_models import assert_close, assert_same, random_tokens, tiny_cell

from msrnn import H2O
from msrnn.cell import capture
from msrnn.cell.recordable import RecordableOnly
from msrnn.reductions.head_budgets import HeadSizes, of_heads

SIZES = ["tova-head:4/7", "h2o:7/4", "keydiff:5/3", "caote:4/5", "last-queries:7/4:2", "tova-head:5/5"]
SHARED = ["shared:tova-head:4", "shared:floor=0.5:h2o:6", "shared:floor=0.0:last-queries:5:2"]
FOUR_HEADS = ["h2o:4/7/4/5", "shared:h2o:5"]
"""The first and the third head have one size."""


@pytest.fixture(autouse=True)
def tape(monkeypatch):
    monkeypatch.setitem(capture.GRAPHS, "cpu", Tape)


def full_state(cell, reduction, B=2, T=15, seed=0, **more):
    return cell(random_tokens(seed, B, T), cell.initial_state(B, reduction, **more))[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", SIZES + SHARED)
def test_captured_step_equals_step(reduction, dtype):
    cell = tiny_cell(dtype=dtype)
    state = full_state(cell, reduction)
    assert_captured_steps_equal_steps(cell, state)


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("reduction", FOUR_HEADS)
def test_heads_of_one_size_need_not_be_neighbours(reduction, kv_dtype):
    cell = tiny_cell(n_kv_heads=4)
    state = full_state(cell, reduction, dtype=kv_dtype)
    captured = cell.capture(state)
    for token in random_tokens(1, 2, 6).T:
        expected, state = cell.step(token, state)
        assert_close(captured(token)[0], expected, 0)
    assert_same(captured.state, state)


@pytest.mark.parametrize("reduction", ["h2o:7/4", "shared:h2o:6"])
def test_another_state_is_copied_into_the_recording(reduction):
    cell = tiny_cell()
    captured = cell.capture(full_state(cell, reduction))
    held = [x.data_ptr() for H in captured.state._held for x in H.rows.values()]
    others = [full_state(cell, reduction, seed=seed, T=T) for seed, T in ((5, 15), (6, 40), (7, 23))]
    if reduction.startswith("shared"):
        assert len({other[0].keys.shape[2] for other in [captured.state, *others]}) > 1  # rows of the fullest head
    for other in [*others, cell.step(torch.tensor([3, 4]), others[0])[1]]:
        captured.copy_(other)
        assert_same(captured.state, other)
        expected, after = cell.step(torch.tensor([1, 2]), other)
        assert_close(captured(torch.tensor([1, 2]))[0], expected, 0)
        assert_same(captured.state, after)
    assert [x.data_ptr() for H in captured.state._held for x in H.rows.values()] == held


@pytest.mark.parametrize("reduction", FOUR_HEADS)
def test_the_step_neither_waits_nor_copies_on_another_device(reduction):
    """The meta device stands for a device other than the CPU."""
    cell = tiny_cell(n_kv_heads=4)
    captured = cell.capture(full_state(cell, reduction))
    meta, move = copy.deepcopy(cell).to("meta"), operator.methodcaller("to", "meta")
    state = captured.state._with_held([H.map(move) for H in captured.state._held], move)
    token = torch.zeros(2, dtype=torch.int64, device="meta")
    meta.step_(token, state)  # a copy has no spare row yet
    with RecordableOnly():
        x, _ = meta.step_layers(token, state, torch.ones(2, dtype=torch.bool, device="meta"), in_place=True, writes=[])
    assert x.shape == (2, cell.config.width)


SAME = "all layers have the same operator (random ones differ)"
OWN = "each head decides from its own rows (reads_heads = 'own'), and positions are absolute; found"
READS = "its operator reads neither keys, values nor the attention output, and positions are absolute; found"


@pytest.mark.parametrize(
    ("reduction", "T", "message"),
    [
        ("tova-head:4/7", 6, "capture: layer 0 holds [4, 6, 4, 6] of [4, 7, 4, 7] rows; expected a full state"),
        ("shared:tova-head:7", 6, "capture: layer 0 holds [12, 12] of [14, 14] rows; expected a full state"),
        ("sinks:full/4:2", 15, "capture: layer 0 is unbounded (sinks:full/4:2); expected a bounded operator"),
        ("tova-head:4/7,5/3", 15, f"{OWN} tova-head:4/7 in 1 layers, tova-head:5/3 in 1, places absolute"),
        (["tova:4", "tova-head:5/3"], 15, f"{OWN} tova:4 in 1 layers, tova-head:5/3 in 1"),
        ("random:4/7", 15, f"capture: sizes per head are recorded if {SAME}, {OWN} random:4/7"),
        ("shared:random:4", 15, f"capture: a shared budget is recorded if {SAME}, {READS} shared:random:4"),
        ("shared:keydiff:4", 15, f"{READS} shared:keydiff:4, places absolute"),
        ("shared:h2o:4,6", 15, f"{READS} shared:h2o:4 in 1 layers, shared:h2o:6 in 1"),
    ],
    ids=str,
)
def test_refused_states(reduction, T, message):
    cell = tiny_cell()
    state = full_state(cell, reduction, T=T)
    before = copy_tensors(state)
    with refusing(message):
        cell.capture(state)
    assert_unchanged(state, before)


@pytest.mark.parametrize("reduction", ["tova-head:4/7", "shared:tova-head:5"])
def test_remapped_positions_and_other_states_are_refused(reduction):
    cell = tiny_cell()
    with refusing(f"positions are absolute; found {reduction}, places inside"):
        cell.capture(full_state(cell, reduction, places="inside"))
    captured = cell.capture(full_state(cell, reduction))
    before = copy_tensors(captured.state)
    with refusing("copy_: layer 0 has tova-head:7/4 with keys"):
        captured.copy_(full_state(cell, "tova-head:7/4"))
    with refusing("copy_: layer 0 holds ["):
        captured.copy_(full_state(cell, reduction, T=4))
    with refusing("with keys int8"):
        captured.copy_(full_state(cell, reduction).to(torch.int8))
    assert_unchanged(captured.state, before)


def test_heads_are_taken_without_an_index():
    """An index that is a list of Python becomes a tensor on the CPU, which is copied to the device."""
    x, operator = torch.randn(2, 4, 3), HeadSizes(H2O(((4, 7, 4, 5),)))
    tape = Tape()
    with tape:
        parts = [of_heads(x, heads) for _, heads in operator.groups]
        again = operator.in_order(parts)
    assert {func.overloadpacket.__name__ for func, *_ in tape.operations} <= {"slice", "cat", "split", "alias"}
    assert [part.equal(x[:, list(heads)]) for part, (_, heads) in zip(parts, operator.groups, strict=True)] == [True] * 3
    assert again.equal(x)
