"""Recurrent memory: the outputs of the write tokens of a segment are the memory of the next."""

import pytest
import torch
from support.naive_learned_rows import naive_layers
from support.tiny_models import ROPES, assert_close, assert_same, random_tokens, tiny_decoder

from msrnn.reductions.contract import LEARNED

TEXT = random_tokens(1, 3, 20)
POSITIONS = [ROPES["default"], "alibi", "learned", "sinusoidal"]


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
def test_recurrent_memory(positions):
    """Three segments equal naive attention over [memory, segment, write tokens]; write outputs are the next memory."""
    cell = tiny_decoder(positions=positions, memory_tokens=2, recurrent=True, persistent=1, frozen=False)
    state, memory, logits, expected = cell.initial_state(3), cell.memory.expand(3, -1, -1), [], []
    for chunk in TEXT.split([7, 9, 4], dim=1):
        T = chunk.shape[1]
        position = torch.cat((torch.full((2,), torch.nan), torch.arange(T + 2)))
        x = torch.cat(
            (memory, cell.embed_tokens(chunk, torch.arange(T).expand(3, -1)), cell.write_tokens.expand(3, -1, -1)), dim=1
        )
        x = cell.norm(naive_layers(cell, x, position))
        memory = x[:, -2:]
        expected.append(x[:, 2:-2] @ cell.head.weight.T)
        read, state = cell(chunk, state)
        logits.append(read)
        state = cell.next_segment(state)
    assert_close(torch.cat(logits, 1), torch.cat(expected, 1), 1e-11)
    gradients = []
    for x in (logits, expected):
        cell.zero_grad()
        torch.cat(x, 1).tanh().sum().backward(retain_graph=True)
        gradients.append({name: p.grad.clone() for name, p in cell.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_close(gradient, gradients[1][name], 1e-8)
    assert gradients[0]["write_tokens"].abs().min() > 0


def test_the_next_segment_has_only_the_memory():
    cell = tiny_decoder(memory_tokens=2, recurrent=True)
    for state in (cell.initial_state(3, "tova:4"), cell.initial_state(3)):
        _, read = cell(TEXT, state, lengths=torch.tensor([20, 9, 0]))
        kept = read.clone()
        begun = cell.next_segment(read)
        assert_same(read, kept)
        assert begun.clock.tolist() == [0, 0, 0]
        assert [H.reduction for H in begun] == [H.reduction for H in read]
        assert all(H.positions.eq(LEARNED).all() and H.keys.shape[2] == 2 for H in begun)
        alone = cell.next_segment(cell(TEXT[1:2, :9], state.select([1]))[1])
        assert_same(begun.select([1]), alone, 1e-12)


def test_dropout_of_memory_tokens(monkeypatch):
    """Memory and write tokens have dropout at the input as other tokens; none in eval mode."""
    entered, cell = [], tiny_decoder(memory_tokens=2, recurrent=True, dropout=0.5)
    run_layers = cell.run_layers
    monkeypatch.setattr(cell, "run_layers", lambda x, *more: entered.append(x) or run_layers(x, *more))
    for training in (False, True):
        cell.train(training)
        cell.next_segment(cell.initial_state(9))
    assert [x.eq(0).any().item() for x in entered] == [False, False, False, True, True, True]
    for x, whole in zip(entered, [cell.memory, cell.write_tokens, None] * 2, strict=True):
        if whole is not None:
            left = x != 0
            assert_close(x[left], (whole * (1 if left.all() else 2)).expand_as(x)[left], 0)
