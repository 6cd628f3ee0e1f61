"""``step``, calls and copies never modify a state; only ``step_`` does."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import assert_unchanged, cells, copy_tensors, examples
from support.tiny_models import random_tokens


@given(st.data())
@examples(30)
def test_states_are_modified_by_step_in_place_only(data):
    """Every state of a run is bit for bit the same after any operation on the states made from it."""
    cell, B, reduction = data.draw(cells())
    text = random_tokens(data.draw(st.integers(0, 99)), B, 12)
    states = [cell.initial_state(B, reduction)]
    copies = [copy_tensors(states[0])]
    for t in range(10):
        parent, token = states[-1], text[:, t]
        operations = {
            "step": lambda: cell.step(token, parent)[1],  # noqa: B023
            "step of some rows": lambda: cell.step(token, parent, active=torch.arange(B) % 2 == t % 2)[1],  # noqa: B023
            "call": lambda: cell(text[:, t : t + 3], parent, lengths=torch.arange(B) % 3)[1],  # noqa: B023
            "empty call": lambda: cell(text[:, :0], parent)[1],  # noqa: B023
            "clone": lambda: parent.clone(),  # noqa: B023
            "select": lambda: parent.select(slice(None)),  # noqa: B023
            "to": lambda: parent.to(torch.float32).to(torch.float64),  # noqa: B023
            "step_ of a clone": lambda: cell.step_(token, parent.clone())[1],  # noqa: B023
        }
        child = operations[data.draw(st.sampled_from(list(operations)))]()
        states.append(child)
        copies.append(copy_tensors(child))
        if data.draw(st.booleans()):  # modify a copy of the child in place
            makers = [lambda: cell.step(token, child)[1], child.clone, lambda: child.to(torch.float64)]  # noqa: B023
            branch = data.draw(st.sampled_from(makers))()
            for other in text[:, :3].T:
                cell.step_(other, branch)
        for state, copy in zip(states, copies, strict=True):
            assert_unchanged(state, copy)


@given(st.data())
@examples(20)
def test_step_in_place_on_a_result_leaves_the_argument_unchanged(data):
    cell, B, reduction = data.draw(cells())
    _, state = cell(random_tokens(1, B, data.draw(st.integers(0, 9))), cell.initial_state(B, reduction))
    copy = copy_tensors(state)
    token, inactive = random_tokens(0, B, 1)[:, 0], torch.zeros(B, dtype=torch.bool)
    makers = [
        lambda: cell(random_tokens(0, B, 0), state)[1],
        lambda: cell(random_tokens(0, B, 3), state, lengths=torch.zeros(B, dtype=torch.int64))[1],
        lambda: cell.step(token, state, active=inactive)[1],
        lambda: cell.step(token, state)[1],
        lambda: state.select(list(range(B))),
        lambda: state.clone(),
    ]
    for make in makers:
        child = make()
        for other in random_tokens(2, B, 4).T:
            cell.step_(other, child)
        assert_unchanged(state, copy)
