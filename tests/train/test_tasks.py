"""The tasks copy and reverse: episodes, gradients through both chunks, accuracy."""

import pytest
import torch
from support.training import DECODER, train_config
from torch.nn.functional import cross_entropy

from msrnn.models.registry import build_random
from msrnn.train import tasks


def cell(**fields):
    torch.manual_seed(0)
    return build_random(train_config(model={**DECODER, "dropout": 0.0, **fields}).model_config(tasks.SYMBOLS + 1)).double()


def test_episode_targets_are_the_first_chunk_in_order_or_reversed():
    for task in tasks.TASKS:
        first, second, answer = tasks.episodes(task, 5, 7, torch.Generator().manual_seed(1))
        assert first.shape == second.shape == answer.shape == (7, 5)
        assert torch.equal(answer, first if task == "copy" else first.flip(1))
        assert (second[:, 0] == tasks.MARKER).all()
        assert torch.equal(second[:, 1:], answer[:, :-1])
    assert set(tasks.episodes("copy", 50, 50, torch.Generator())[0].unique().tolist()) == set(range(tasks.SYMBOLS))


@pytest.mark.parametrize("fields", [{}, {"memory_tokens": 2}, {"memory_tokens": 2, "recurrent": True}])
def test_gradients_flow_through_both_chunks(fields):
    """Compares with the step loop; a recurrent memory is the only state that is carried between the chunks."""
    network = cell(**fields)
    first, second, answer = tasks.episodes("copy", 5, 3, torch.Generator().manual_seed(1))
    loss = tasks.episode_loss(network, first, second, answer, "window:4")
    state, losses = network.initial_state(3, "window:4"), []
    for token in first.T:
        _, state = network.step(token, state)
    if fields.get("recurrent"):
        state = network.next_segment(state)
    for token, target in zip(second.T, answer.T, strict=True):
        logits, state = network.step(token, state)
        losses.append(cross_entropy(logits, target))
    found, expected = (torch.autograd.grad(x, [*network.parameters()]) for x in (loss, torch.stack(losses).mean()))
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(found, expected, strict=True))
    assert min(float(x.abs().max()) for x in found) > 0


def test_accuracy_is_the_fraction_of_correct_symbols(monkeypatch):
    network = cell()
    for off, expected in ((0, 1.0), (1, 0.0)):

        def one_hot(_, first, second, reduction, off=off):
            return torch.nn.functional.one_hot((first.flip(1) + off) % tasks.SYMBOLS, 11).double()

        monkeypatch.setattr(tasks, "second_logits", one_hot)
        assert tasks.accuracy(network, "reverse", 5, "full") == expected
    monkeypatch.undo()
    assert 0 <= tasks.accuracy(network.train(), "copy", 5, "full") < 0.4
    assert network.training


def test_accuracy_is_measured_on_episodes_of_a_seed_that_no_run_has(monkeypatch):
    seeds, episodes = [], tasks.episodes
    monkeypatch.setattr(tasks, "episodes", lambda *args: seeds.append(args[-1].initial_seed()) or episodes(*args))
    assert tasks.accuracy(cell(), "copy", 5, "full") == tasks.accuracy(cell(), "copy", 5, "full")
    assert seeds[0] == seeds[1]
    assert seeds[0] not in range(1000)
