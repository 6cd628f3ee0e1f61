"""Arguments and states that a cell refuses."""

import copy
from dataclasses import replace

import pytest
import torch
from support.refusals import refusing
from support.tiny_models import assert_same, random_tokens, tiny_cell

import msrnn
from msrnn import TOVA


def zeros(dtype=torch.int64, B=2):
    return torch.zeros(B, dtype=dtype)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (torch.zeros(2, 1, dtype=torch.int64), r"int64 of shape \(2, 1\); expected int64 of shape \(B,\)"),
        (torch.tensor(3), r"int64 of shape \(\); expected int64 of shape \(B,\)"),
        (zeros(torch.int32), r"int32 of shape \(2,\); expected int64"),
        (zeros(torch.float64), r"float64 of shape \(2,\); expected int64"),
        (3, "int 3; expected int64"),
        ([3, 4], r"list \[3, 4\]; expected int64"),
        (torch.tensor([3, 50]), "50 is outside the vocabulary of 50"),
        (torch.tensor([-1, 3]), "-1 is outside the vocabulary of 50"),
        (torch.tensor([1, 3]).to_sparse(), r"token is torch.sparse_coo; expected a dense tensor"),
        (torch.tensor([1, 3], device="meta"), r"token is on meta; expected cpu, as the cell"),
    ],
)
def test_step_refuses_other_tokens(token, message):
    cell = tiny_cell()
    for state in (None, cell.initial_state(2)):
        with pytest.raises(msrnn.Error, match=message):
            cell.step(token, state)
    state = cell.initial_state(2)
    with pytest.raises(msrnn.Error, match=message):
        cell.step_(token, state)
    assert state.clock.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), None, r"int64 of shape \(3,\); expected int64 of shape \(B, T\)"),
        (torch.zeros(2, 3), None, r"float32 of shape \(2, 3\); expected int64"),
        (torch.tensor([[1, 99]]), None, "99 is outside the vocabulary of 50"),
        (torch.tensor([[1, -100]]), torch.tensor([2]), "-100 is outside the vocabulary of 50"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([4, 1]), r"lengths are \[4, 1\]; expected 0 to 3"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, -1]), r"lengths are \[3, -1\]; expected 0 to 3"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3]), r"int64 of shape \(1,\); expected int64 of shape \(2,\)"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3.0, 1.0]), r"float32 of shape \(2,\); expected int64"),
        (torch.zeros(2, 3, dtype=torch.int64), [3, 1], r"list \[3, 1\]; expected int64"),
        (torch.ones(2, 3, dtype=torch.int64).to_sparse(), None, r"tokens are torch.sparse_coo; expected a dense tensor"),
        (torch.zeros(2, 3, dtype=torch.int64, device="meta"), None, "on the meta device, which has no values; expected"),
    ],
)
def test_call_refuses_other_texts_and_lengths(tokens, lengths, message):
    with pytest.raises(msrnn.Error, match=message):
        tiny_cell()(tokens, lengths=lengths)


def test_a_cell_on_meta_refuses_tokens_of_another_device():
    cell, text = tiny_cell().to("meta"), random_tokens(1, 2, 3)
    calls = (lambda text: cell.step(text[:, 0]), lambda text: msrnn.generate(cell, text, max_new_tokens=1))
    for read in (cell, cell.scan, *calls):
        with pytest.raises(msrnn.Error, match=r"on cpu; expected meta, as the cell"):
            read(text)


@pytest.mark.parametrize("active", [zeros(torch.int64), zeros(torch.bool, B=3), zeros(torch.bool)[:, None], [True, False]])
def test_active_is_one_bool_per_row(active):
    with pytest.raises(msrnn.Error, match=r"active is .*; expected bool of shape \(2,\)"):
        tiny_cell().step(zeros(), active=active)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"n_layers": 3}, "(n_layers 3, n_heads 4"),
        (
            {"rope": replace(tiny_cell().config.rope, theta=200.0)},
            "(rope Rope(theta=200.0); this cell has rope Rope(theta=100.0))",
        ),
        ({"norm_eps": 2e-5}, "(norm_eps 2e-05, "),
        ({"seed": 1}, "(other parameters of the same config)"),
    ],
    ids=["layers", "rope", "norm_eps", "parameters"],
)
def test_state_of_another_model_is_refused(other, named):
    cell = tiny_cell()
    state = tiny_cell(**other).initial_state(2)
    for read in (cell.step, cell.step_, lambda token, state: cell(token[:, None], state)):
        with pytest.raises(msrnn.Error, match="another model") as refusal:
            read(zeros(), state)
        assert named in str(refusal.value)


def test_state_from_before_an_edit_of_the_parameters_is_refused():
    cell = tiny_cell()
    before = cell.initial_state(2)
    with torch.no_grad():
        cell.layers[0].q.weight.neg_()
    with pytest.raises(msrnn.Error, match="another model"):
        cell.step(zeros(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_state_of_the_same_model_in_another_dtype_is_accepted(dtype):
    cell = tiny_cell()
    cell.step(zeros(), copy.deepcopy(cell).initial_state(2))
    narrow = tiny_cell(dtype=torch.float32).to(dtype)
    narrow.step(zeros(), tiny_cell(dtype=torch.float32).initial_state(2).to(dtype))
    cell.step(zeros(), narrow.initial_state(2).to(torch.float64))


def test_state_of_another_batch_size_or_dtype_is_refused():
    cell = tiny_cell()
    for B in (1, 3):
        with pytest.raises(msrnn.Error, match=f"batch size {B}; the tokens have 2"):
            cell.step(zeros(), cell.initial_state(B))
    with pytest.raises(msrnn.Error, match=r"float32 on cpu; expected torch.float64"):
        cell.step(zeros(), cell.initial_state(2).to(torch.float32))
    with pytest.raises(msrnn.Error, match="expected a State"):
        cell.step(zeros(), cell.initial_state(2)[0])
    with pytest.raises(msrnn.Error, match="expected a State"):
        cell.step_(zeros(), None)


def test_refusal_is_a_value_error_and_leaves_the_state_unchanged():
    cell = tiny_cell()
    _, state = cell(random_tokens(1, 2, 5), cell.initial_state(2, TOVA(3)))
    before = state.clone()
    for token in (torch.tensor([3, 50]), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"50|int64|batch"):
            cell.step_(token, state)
    with pytest.raises(ValueError, match="lengths"):
        cell(random_tokens(1, 2, 4), state, lengths=torch.tensor([3, 9]))
    assert_same(state, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"batch_size": True}, "batch_size is True"), ({"batch_size": 0}, "batch_size is 0"), ({"dtype": torch.int64}, "int64")],
)
def test_initial_state_refuses_other_types(arguments, message):
    with pytest.raises(msrnn.Error, match=message):
        tiny_cell().initial_state(**arguments)


def test_ids_that_are_not_read_may_be_any_number():
    """Padding, and the tokens of inactive sequences."""
    cell, active = tiny_cell(), torch.tensor([True, False])
    state = cell(random_tokens(0, 2, 5), cell.initial_state(2, "tova:4"))[1]
    for other in (-100, 999, 2**40):
        token = torch.tensor([7, other])
        logits, after = cell.step(token, state, active=active)
        expected, end = cell.step(torch.tensor([7, 3]), state, active=active)
        assert logits[0].equal(expected[0])
        assert_same(after, end)
        text = torch.tensor([[7, 8, 9], [5, other, other]])
        logits, after = cell(text, state, lengths=torch.tensor([3, 1]))
        expected, end = cell(text.clamp(0, 49), state, lengths=torch.tensor([3, 1]))
        assert logits.nan_to_num().equal(expected.nan_to_num())
        assert_same(after, end)
        assert cell.scan(text, state, lengths=torch.tensor([3, 1]))[0].nan_to_num().equal(expected.nan_to_num())


def test_lengths_and_active_rows_on_another_device_are_refused():
    cell, text = tiny_cell(), random_tokens(1, 2, 3)
    for read in (cell, cell.scan):
        with refusing("lengths are"):
            read(text, lengths=torch.tensor([1, 2], device="meta"))
    with refusing("active is on meta; expected cpu"):
        cell.step(text[:, 0], active=torch.tensor([True, False], device="meta"))


def test_the_refusal_of_another_model_names_the_first_field_that_differs():
    ropes = tuple(replace(tiny_cell().config.rope, theta=100.0 + layer) for layer in range(2))
    other = tiny_cell(layer_ropes=ropes, norm_eps=2e-5)
    with pytest.raises(msrnn.Error) as refusal:
        other.step(torch.tensor([1]), tiny_cell().initial_state(1))
    message = str(refusal.value)
    assert message.startswith("state belongs to another model (norm_eps 1e-05, ")
    assert "; this cell has norm_eps 2e-05, " in message
    assert len(message) < 400
    with pytest.raises(msrnn.Error, match=r"another model \(other parameters of the same config\)"):
        tiny_cell(seed=1).step(torch.tensor([1]), tiny_cell().initial_state(1))
