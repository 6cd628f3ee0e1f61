"""A state in several processes: each process has its own rows, however the state got there."""

import copy
import io
import pickle
from itertools import product

import pytest
import torch
import torch.multiprocessing as multiprocessing
from support.tiny_models import assert_same, random_tokens, step_loop, tiny_cell

TEXT, OTHER = random_tokens(1, 2, 17), random_tokens(2, 2, 3)
REDUCTIONS = {"full": "full", "stacked": "tova:4", "mixed": ["full", "h2o:4"]}


def state_after(cell, reduction):
    """Return a state with spare rows behind its rows."""
    _, state = cell(TEXT[:, :-1], cell.initial_state(2, reduction))
    return cell.step(TEXT[:, -1], state)[1]


def child(connection, state, in_place):
    """Receive a state, step, wait until the parent has stepped too, and send the logits of the next token."""
    torch.set_num_threads(1)
    cell = tiny_cell()
    state = connection.recv() if state is None else state
    step = cell.step_ if in_place else cell.step
    _, state = step(torch.tensor([7, 8]), state)
    connection.send("stepped")
    connection.recv()
    connection.send(step(torch.tensor([5, 6]), state)[0].numpy())


@pytest.mark.parametrize(
    ("method", "how"),
    [("fork", "argument"), ("fork", "queue"), ("fork", "share_memory_"), ("spawn", "argument"), ("spawn", "queue")],
)
def test_steps_in_two_processes_do_not_touch_each_other(method, how):
    context, cell, processes = multiprocessing.get_context(method), tiny_cell(), []
    cases = list(product(REDUCTIONS.values(), (False, True)))
    for reduction, in_place in cases if method == "fork" else (cases[0], cases[-1]):  # to spawn takes seconds
        state = state_after(cell, reduction)
        if how == "share_memory_":
            for H in state:
                for x in H.rows.values():
                    x.share_memory_()
        here, there = context.Pipe()
        process = context.Process(target=child, args=(there, None if how == "queue" else state, in_place))
        process.start()
        if how == "queue":
            here.send(state)
        processes.append((reduction, state, here, process))
    token = torch.tensor([9, 10])
    for reduction, state, here, _ in processes:
        expected = cell.step(token, state_after(cell, reduction))[1]
        if how != "share_memory_":
            assert here.recv() == "stepped"
        assert_same(state, state_after(cell, reduction))
        _, mine = cell.step(token, state)
        assert_same(mine, expected)
        if how == "share_memory_":
            assert here.recv() == "stepped"
        here.send("go on")
        logits = torch.from_numpy(here.recv())
        alone = step_loop(cell, torch.tensor([[7, 5], [8, 6]]), state_after(cell, reduction))[0][:, -1]
        assert (logits - alone).abs().max() < 1e-9
        assert_same(mine, expected)
        assert_same(state, state_after(cell, reduction))
    for *_, process in processes:
        process.join(30)
        assert process.exitcode == 0


def torch_saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), torch_saved])
@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_copies_own_their_rows(reduction, copied):
    cell = tiny_cell()
    state = state_after(cell, reduction)
    other = copied(state)
    layer = copied(state[0])
    for H in [*other, layer]:
        assert H.buffer is None
        assert all(x.untyped_storage().nbytes() <= 2 * x.nbytes for x in H.rows.values())  # stacked layers share a storage
    ours = {x.untyped_storage().data_ptr() for H in state for x in H.rows.values()}
    assert not ours & {x.untyped_storage().data_ptr() for H in [*other, layer] for x in H.rows.values()}
    for token in OTHER.T:
        cell.step_(token, other)
    assert_same(state, state_after(cell, reduction))
    assert_same(other, step_loop(cell, OTHER, state)[1], 1e-12)


def test_pickle_has_no_spare_rows_and_each_row_once():
    cell = tiny_cell()
    for reduction in REDUCTIONS.values():
        state = state_after(cell, reduction)
        _ = state[0]  # makes the layers of a stacked state
        rows = sum(x.nbytes for H in state for x in H.rows.values())
        assert len(pickle.dumps(state)) < rows + 6000
