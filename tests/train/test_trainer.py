"""A step learns what autograd through the plain step loop would have it learn, whatever bounds H."""

import math

import pytest
import torch
from support.tiny_models import held, tiny_cell, tokens
from support.training import DECODER, recipe, words
from support.transformers_reference import float64_reference, tiny_reference
from torch.nn.functional import cross_entropy

import converters
import msrnn
from msrnn.models.registry import build_random
from msrnn.train.data import IGNORED, Data, Piece
from msrnn.train.trainer import BETAS, Run, bits_per_byte, chunk_loss, learning_rate

OPERATORS = ["full", "window:5", "window:1", "sinks:6:2", "tova:5", "tova-head:5", "h2o:6", "h2o-layer:6"]


@pytest.mark.parametrize("reduction", OPERATORS)
def test_the_gradient_of_a_chunk_is_that_of_its_steps(reduction, figure):
    """The second chunk, H coming from the first: nothing flows back into that."""
    cell, text = tiny_cell(frozen=False), tokens(0, 2, 25)
    _, state = chunk_loss(cell, Piece(text[:, :12], text[:, 1:13], True), None, reduction)
    state = state.detach()
    loss, after = chunk_loss(cell, Piece(text[:, 12:24], text[:, 13:], False), state, reduction)
    found = torch.autograd.grad(loss, [*cell.parameters()])
    losses, by_hand = [], state
    for t in range(12, 24):
        logits, by_hand = cell.step(text[:, t], by_hand)
        losses.append(cross_entropy(logits, text[:, t + 1]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), [*cell.parameters()])
    assert abs(loss.item() - torch.stack(losses).mean().item()) < 1e-12
    assert held(after) == held(by_hand)
    worst = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    assert worst < 1e-11
    assert min(float(x.abs().max()) for x in found) > 1e-6
    figure(f"truncated backpropagation through {reduction}: gradients differ from the step loop's by {worst:.1e}")


@pytest.mark.parametrize("facts", [{"persistent": 3, "memory_tokens": 2}, {"memory_tokens": 3, "recurrent": True}])
def test_learned_rows_go_on_learning_in_every_chunk(facts):
    """Those of the state that was carried have no graph; they are made anew, or written."""
    torch.manual_seed(0)
    cell = build_random(recipe(model={**DECODER, "dropout": 0.0, **facts}).config(50)).double()
    text = tokens(0, 2, 25)
    _, state = chunk_loss(cell, Piece(text[:, :12], text[:, 1:13], True), None, "tova:5")
    state = state.detach()
    with torch.no_grad():
        cell.memory += 0.5  # as an optimizer would
    loss, _ = chunk_loss(cell, Piece(text[:, 12:24], text[:, 13:], False), state, "tova:5")
    by_hand, losses = cell.carry(state) if "recurrent" in facts else cell.renew(state), []
    for t in range(12, 24):
        logits, by_hand = cell.step(text[:, t], by_hand)
        losses.append(cross_entropy(logits, text[:, t + 1]))
    names = [name for name, _ in cell.named_parameters() if name != "memory" or "recurrent" not in facts]
    both = (torch.autograd.grad(x, [cell.get_parameter(name) for name in names]) for x in (loss, torch.stack(losses).mean()))
    for name, a, b in zip(names, *both, strict=True):
        assert torch.allclose(a, b, atol=1e-11), name
        assert a.abs().max() > 0, name


def test_h_is_carried_without_its_graph_and_begins_anew_where_it_should():
    settings = recipe(carry=3, reduction="window:6")
    data = Data.of(words(), settings)
    run, clocks = Run(tiny_cell(frozen=False, vocab_size=256), settings), []
    for index in range(7):
        run.step(data.learnt[index])
        assert not run.state.carries_graph
        clocks.append(run.state.clock.tolist())
    assert clocks == [[10 * n] * 3 for n in (1, 2, 3, 1, 2, 3, 1)]
    assert run.state[0].keys.shape[2] == 6


def test_three_steps_are_those_of_transformers_and_plain_adamw():
    """Losses and parameters, in float64; nothing bounds H."""
    settings = recipe(reduction="full", carry=1, warmup=2, clip=0.5, weight_decay=0.3, lr=0.02)
    model = tiny_reference(vocab_size=256).train()
    run, data = Run(converters.load(model), settings), Data.of(words(), settings)
    matrices, rest = ([x for x in model.parameters() if (x.ndim > 1) is many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.02, betas=BETAS)
    with float64_reference(model):
        for index, lr in enumerate((0.01, 0.02, 0.02)):
            piece = data.learnt[index]
            loss = cross_entropy(model(piece.tokens).logits.flatten(0, 1), piece.targets.flatten())
            theirs.zero_grad()
            loss.backward()
            assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5  # or it was not clipped
            for group in theirs.param_groups:
                group["lr"] = lr
            theirs.step()
            assert abs(run.step(piece) - loss.item()) < 1e-9
    after = converters.load(model)
    for (name, a), b in zip(run.cell.named_parameters(), after.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-9, name


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine():
    settings = recipe(steps=110, warmup=10, lr=1.0)
    rates = [learning_rate(settings, step) for step in range(110)]
    assert rates[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
    assert rates[60] == pytest.approx(0.55)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 < rates[-1] < 0.101
    assert learning_rate(recipe(steps=5, warmup=0, lr=1.0), 0) == 1.0
    assert learning_rate(recipe(steps=5, warmup=9, lr=0.9), 4) == pytest.approx(0.5)  # a run that is all warm-up


@pytest.mark.parametrize("reduction", ["full", "tova:8", "h2o:8"])
def test_the_loss_goes_down(reduction):
    settings = recipe(steps=60, batch=4, chunk=16, reduction=reduction, carry=2, lr=0.02, warmup=5)
    data = Data.of("abcdefgh" * 100, settings)
    torch.manual_seed(0)
    run = Run(msrnn.models.Llama(settings.config(256)), settings)
    losses = [run.step(data.learnt[index]) for index in range(60)]
    assert losses[0] > 4
    assert losses[-1] < 0.15
    assert bits_per_byte(run.cell, data.held, data.vocabulary.n_bytes, reduction) < 0.3


def test_targets_that_are_ignored_teach_nothing():
    cell, text = tiny_cell(frozen=False), tokens(0, 2, 9)
    targets = text[:, 1:].clone()
    targets[:, :5] = IGNORED
    loss, _ = chunk_loss(cell, Piece(text[:, :8], targets, True), None, "full")
    logits, _ = cell(text[:, :8])
    assert loss.item() == pytest.approx(cross_entropy(logits[:, 5:].flatten(0, 1), text[:, 6:].flatten()).item())


def test_bits_per_byte_by_hand():
    """Streams of the held-out text, token by token; a token counts as many bytes as it stands for."""
    settings = recipe(model=DECODER, batch=2, chunk=7, carry=2, reduction="tova:5")
    torch.manual_seed(0)
    cell = build_random(settings.config(256)).double().eval()  # without dropout
    data = Data.of(words(150), settings)
    n_bytes = torch.arange(256) % 3 + 1
    streams, nats, many = data.held, 0.0, 0
    long = streams.n_chunks * 7
    for row in range(2):
        for t in range(long):
            if t % 14 == 0:
                state = cell.initial_state(1, "tova:5")
            here = row * long + t
            logits, state = cell.step(streams.ids[here : here + 1], state)
            target = streams.ids[here + 1]
            nats -= logits.log_softmax(-1)[0, target].item()
            many += int(n_bytes[target])
    cell.train()
    assert bits_per_byte(cell, streams, n_bytes, "tova:5") == pytest.approx(nats / math.log(2) / many, rel=1e-12)
    assert cell.training


def test_a_loss_that_is_no_number_ends_the_run_before_anything_changes():
    settings = recipe()
    cell, data = tiny_cell(frozen=False, vocab_size=256), Data.of(words(), settings)
    with torch.no_grad():
        cell.norm.weight[0] = torch.nan
    before = cell.embed.weight.clone()
    with pytest.raises(msrnn.Error, match="step 1: the loss is nan"):
        Run(cell, settings).step(data.learnt[0])
    assert torch.equal(cell.embed.weight, before)
