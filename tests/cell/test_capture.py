"""The captured step against ``step_``, with a recording on the CPU in place of a CUDA graph."""

import contextlib
import copy

import pytest
import torch
from support.captured_steps import assert_captured_steps_equal_steps
from support.tape import NothingRecorded, Tape
from support.tiny_models import ROPES, assert_close, assert_same, random_tokens, tiny_cell, tiny_decoder

import msrnn
from msrnn.cell import capture

OPERATORS = [
    *("window:4", "sinks:4:2", "h2o:4", "h2o-layer:4", "tova:4", "tova-head:4", "morphkv:6:2", "cam:6", "keydiff:4", "caote:4"),
    ["tova:3", "h2o:4"],
    ["tova:3", "tova:4"],
]


@pytest.fixture(autouse=True)
def tape(monkeypatch):
    monkeypatch.setitem(capture.GRAPHS, "cpu", Tape)


def full_state(cell, reduction="tova:4", B=2, T=11, seed=0):
    return cell(random_tokens(seed, B, T), cell.initial_state(B, reduction))[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_captured_step_equals_step(reduction, dtype):
    cell = tiny_cell(dtype=dtype)
    state = full_state(cell, reduction)
    assert_captured_steps_equal_steps(cell, state)


def assert_equals_step(cell, state):
    captured = cell.capture(state)
    for token in random_tokens(1, len(state.clock), 6).T:
        expected, state = cell.step(token, state)
        assert_close(captured(token)[0], expected, 0)
    assert_same(captured.state, state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reduction", ["tova:4", "h2o:4", "cam:6", "keydiff:4", ["tova:3", "h2o:4"]], ids=str)
def test_captured_step_of_8_bit_rows(reduction, dtype):
    cell = tiny_cell(dtype=dtype)
    assert_equals_step(cell, cell(random_tokens(0, 2, 11), cell.initial_state(2, reduction, dtype="int8"))[1])


@pytest.mark.parametrize(
    "cell",
    [
        tiny_cell(rope=ROPES["dynamic"]),
        tiny_decoder(positions="alibi"),
        tiny_decoder(memory_tokens=2),
        tiny_cell(n_layers=1, tied=True),
    ],
    ids=["dynamic rope", "alibi", "memory tokens", "one layer"],
)
def test_captured_step_of_other_families_and_positions(cell):
    assert_equals_step(cell, full_state(cell, "h2o:3", B=1))


def test_remapped_positions(monkeypatch):
    """On the CPU a step with remapped positions reads values; a GPU takes the other branch, which gives the same."""
    monkeypatch.setattr(capture, "RecordableOnly", contextlib.nullcontext)
    cell = tiny_cell()
    assert_equals_step(cell, cell(random_tokens(0, 2, 11), cell.initial_state(2, "tova:4", places="inside"))[1])


@pytest.mark.parametrize("reduction", ["h2o:4", ["tova:3", "h2o:4"]], ids=str)
def test_a_call_writes_into_the_same_tensors(reduction):
    cell = tiny_cell()
    captured = cell.capture(full_state(cell, reduction))

    def addresses():
        return [(name, x.data_ptr()) for H in captured.state for name, x in [*H.rows.items(), ("clock", H.clock)]]

    before, positions = addresses(), captured.state[0].positions.clone()
    captured(torch.tensor([1, 2]))
    assert addresses() == before
    assert not captured.state[0].positions.equal(positions)


def test_step_moves_only_the_clock_and_the_row_statistics():
    """These are copied to their fixed tensors; all other tensors of a full state stay where they are."""
    cell = tiny_cell()
    state = full_state(cell, "h2o:4")
    for _ in range(2):  # the first step allocates a spare row
        before = {name: x.data_ptr() for name, x in state[0].rows.items()}
        cell.step_(torch.tensor([1, 2]), state)
    after = {name: x.data_ptr() for name, x in state[0].rows.items()}
    assert [name for name in before if before[name] == after[name]] == ["keys", "values", "positions"]


@pytest.mark.parametrize("reduction", ["h2o:4", ["tova:4", "h2o:4"]], ids=str)
def test_the_recording_copies_no_keys_and_values(reduction):
    cell = tiny_cell()
    captured = cell.capture(full_state(cell, reduction, B=1))
    layer = captured.state[0].keys.shape
    written = [args[0] for func, args, _, _ in captured._graph.operations if func.overloadpacket.__name__ == "copy_"]
    assert written
    assert not [x for x in written if x.shape[-3:] == layer[-3:]]


def test_results_are_kept_by_copies():
    cell = tiny_cell()
    captured = cell.capture(full_state(cell))
    first, state = captured(torch.tensor([1, 2]))
    kept_logits, kept = first.clone(), state.clone()
    captured(torch.tensor([3, 4]))
    assert first.equal(kept_logits)
    expected, _ = cell.step(torch.tensor([3, 4]), kept)
    captured.copy_(kept)
    assert_same(captured.state, kept)
    assert_close(captured(torch.tensor([3, 4]))[0], expected, 0)


def test_decoding_continues_from_the_state_of_a_captured_step():
    cell = tiny_cell()
    start = full_state(cell, B=1)
    captured = cell.capture(start)
    logits, state = captured(torch.tensor([1]))
    plain_logits, plain = cell.step(torch.tensor([1]), start)
    for _ in range(2):
        found = msrnn.generate(cell, None, state, logits=logits, max_new_tokens=5)
        expected = msrnn.generate(cell, None, plain, logits=plain_logits, max_new_tokens=5)
        assert found.tokens.equal(expected.tokens)
        captured.copy_(found.state)
        assert captured.state.recent_tokens is None
        logits, state = captured(torch.tensor([2]))
        plain_logits, plain = cell.step(torch.tensor([2]), expected.state)


def test_recent_tokens_are_copied_and_end_with_the_next_token():
    cell = tiny_cell()
    state = full_state(cell, B=1)
    state.recent_tokens = torch.tensor([[7]])
    captured = cell.capture(state)
    assert captured.state.recent_tokens.tolist() == [[7]]
    captured(torch.tensor([1]))
    assert captured.state.recent_tokens is None


def test_inference_mode():
    cell = tiny_cell()
    state = full_state(cell)
    with torch.inference_mode():
        captured = cell.capture(full_state(cell))
        captured(torch.tensor([5, 6]))
    _, state = cell.step(torch.tensor([5, 6]), state)
    assert_close(captured(torch.tensor([1, 2]))[0], cell.step(torch.tensor([1, 2]), state)[0], 0)


def test_ragged_state_that_has_become_full():
    cell = tiny_cell()
    state = cell(random_tokens(0, 2, 12), cell.initial_state(2, "tova:4"), lengths=torch.tensor([12, 3]))[1]
    with pytest.raises(msrnn.Error, match=r"^capture: layer 0 has empty rows in some sequences; expected a full state"):
        cell.capture(state)
    for token in random_tokens(2, 2, 2).T:
        _, state = cell.step(token, state)
    captured = cell.capture(state)
    expected, state = cell.step(torch.tensor([1, 2]), state)
    assert_close(captured(torch.tensor([1, 2]))[0], expected, 1e-12)  # the step masks empty rows, which are not there
    assert_same(captured.state, state, 1e-12)


@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
@pytest.mark.parametrize("places", ["absolute", "inside", "compressed"])
def test_recording_on_another_device_neither_waits_nor_copies(reduction, places, monkeypatch):
    """The meta device stands for a device other than the CPU; :class:`RecordableOnly` watches the recording."""
    monkeypatch.setitem(capture.GRAPHS, "meta", NothingRecorded)
    cell = tiny_cell()
    start = cell.initial_state(2, "tova:4" if places != "absolute" and "keydiff:4" in reduction else reduction, places=places)
    state = cell(random_tokens(0, 2, 11), start)[1]
    captured = copy.deepcopy(cell).to("meta").capture(state.to("meta"))
    logits, after = captured(torch.zeros(2, dtype=torch.int64, device="meta"))
    assert logits.shape == (2, 50)
    assert [H.keys.shape for H in after] == [H.keys.shape for H in state]


def test_the_stand_in_repeats_operations_and_not_python_code():
    x, names = torch.zeros(2), {"x": torch.zeros(2)}

    def run():
        x.add_(1)
        names["x"] = names["x"] + 1

    tape = Tape()
    tape.record(run)
    recorded = names["x"]
    for _ in range(3):
        tape.replay()
    assert x.tolist() == [5, 5]
    assert names["x"] is recorded
    assert recorded.tolist() == [2, 2]  # 1 + 1, again and again
