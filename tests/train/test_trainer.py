"""Gradients of a training step equal those of the plain step loop, for every operator."""

import math

import pytest
import torch
from support.tiny_models import random_tokens, retained_positions, tiny_cell
from support.training import DECODER, train_config, words
from support.transformers_reference import float64_reference, tiny_reference
from torch.nn.functional import cross_entropy

import converters
import msrnn
from msrnn.models.registry import build_random
from msrnn.train.data import IGNORED, TrainBatch, TrainData
from msrnn.train.trainer import BETAS, Trainer, bits_per_byte, chunk_loss, learning_rate

OPERATORS = ["full", "window:5", "window:1", "sinks:6:2", "tova:5", "tova-head:5", "h2o:6", "h2o-layer:6"]


@pytest.mark.parametrize("reduction", OPERATORS)
def test_gradient_of_a_chunk_equals_that_of_the_step_loop(reduction, figure):
    """The second chunk starts from the detached H of the first, so no gradient flows into the first chunk."""
    cell, text = tiny_cell(frozen=False), random_tokens(0, 2, 25)
    _, state = chunk_loss(cell, TrainBatch(text[:, :12], text[:, 1:13], True), None, reduction)
    state = state.detach()
    loss, after = chunk_loss(cell, TrainBatch(text[:, 12:24], text[:, 13:], False), state, reduction)
    found = torch.autograd.grad(loss, [*cell.parameters()])
    losses, stepped = [], state
    for t in range(12, 24):
        logits, stepped = cell.step(text[:, t], stepped)
        losses.append(cross_entropy(logits, text[:, t + 1]))
    expected = torch.autograd.grad(torch.stack(losses).mean(), [*cell.parameters()])
    assert abs(loss.item() - torch.stack(losses).mean().item()) < 1e-12
    assert retained_positions(after) == retained_positions(stepped)
    worst = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    assert worst < 1e-11
    assert min(float(x.abs().max()) for x in found) > 1e-6
    figure(f"truncated backpropagation through {reduction}: gradients differ from the step loop's by {worst:.1e}")


@pytest.mark.parametrize("fields", [{"persistent": 3, "memory_tokens": 2}, {"memory_tokens": 3, "recurrent": True}])
def test_learned_rows_receive_gradients_in_every_chunk(fields):
    """Learned rows of a carried state have no graph; they are recomputed or rewritten for each chunk."""
    torch.manual_seed(0)
    cell = build_random(train_config(model={**DECODER, "dropout": 0.0, **fields}).model_config(50)).double()
    text = random_tokens(0, 2, 25)
    _, state = chunk_loss(cell, TrainBatch(text[:, :12], text[:, 1:13], True), None, "tova:5")
    state = state.detach()
    with torch.no_grad():
        cell.memory += 0.5  # as an optimizer does
    loss, _ = chunk_loss(cell, TrainBatch(text[:, 12:24], text[:, 13:], False), state, "tova:5")
    stepped, losses = cell.next_segment(state) if "recurrent" in fields else cell.refresh_learned_rows(state), []
    for t in range(12, 24):
        logits, stepped = cell.step(text[:, t], stepped)
        losses.append(cross_entropy(logits, text[:, t + 1]))
    names = [name for name, _ in cell.named_parameters() if name != "memory" or "recurrent" not in fields]
    both = (torch.autograd.grad(x, [cell.get_parameter(name) for name in names]) for x in (loss, torch.stack(losses).mean()))
    for name, a, b in zip(names, *both, strict=True):
        assert torch.allclose(a, b, atol=1e-11), name
        assert a.abs().max() > 0, name


def test_state_is_carried_without_a_graph_and_reset_as_configured():
    settings = train_config(chunks_per_state=3, reduction="window:6")
    data = TrainData.of(words(), settings)
    trainer, clocks = Trainer(tiny_cell(frozen=False, vocab_size=256), settings), []
    for index in range(7):
        trainer.train_step(data.train[index])
        assert not trainer.state.requires_grad
        clocks.append(trainer.state.clock.tolist())
    assert clocks == [[10 * n] * 3 for n in (1, 2, 3, 1, 2, 3, 1)]
    assert trainer.state[0].keys.shape[2] == 6


def test_three_steps_equal_transformers_with_plain_adamw():
    """Compares losses and parameters in float64, with an unbounded H."""
    settings = train_config(reduction="full", chunks_per_state=1, warmup_steps=2, max_grad_norm=0.5, weight_decay=0.3, lr=0.02)
    model = tiny_reference(vocab_size=256).train()
    trainer, data = Trainer(converters.load(model), settings), TrainData.of(words(), settings)
    matrices, rest = ([x for x in model.parameters() if (x.ndim > 1) is many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.02, betas=BETAS)
    with float64_reference(model):
        for index, lr in enumerate((0.01, 0.02, 0.02)):
            batch = data.train[index]
            loss = cross_entropy(model(batch.tokens).logits.flatten(0, 1), batch.targets.flatten())
            reference.zero_grad()
            loss.backward()
            assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5  # the gradient is clipped
            for group in reference.param_groups:
                group["lr"] = lr
            reference.step()
            assert abs(trainer.train_step(batch) - loss.item()) < 1e-9
    after = converters.load(model)
    for (name, a), b in zip(trainer.cell.named_parameters(), after.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-9, name


def test_the_optimizer_is_adamw_with_decay_of_matrices_only():
    settings = train_config(weight_decay=0.3)
    trainer = Trainer(tiny_cell(frozen=False, vocab_size=256), settings)
    for group in trainer.optimizer.param_groups:
        assert group["betas"] == (0.9, 0.95)
        assert {x.ndim > 1 for x in group["params"]} == {group["weight_decay"] == 0.3}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.3}


def test_learning_rate_rises_linearly_and_falls_along_a_cosine():
    settings = train_config(steps=110, warmup_steps=10, lr=1.0)
    rates = [learning_rate(settings, step) for step in range(110)]
    assert rates[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
    assert rates[60] == pytest.approx(0.55)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 < rates[-1] < 0.101
    assert learning_rate(train_config(steps=5, warmup_steps=0, lr=1.0), 0) == 1.0
    assert learning_rate(train_config(steps=5, warmup_steps=9, lr=0.9), 4) == pytest.approx(0.5)  # warm-up longer than the run


@pytest.mark.parametrize("reduction", ["full", "tova:8", "h2o:8"])
def test_the_loss_goes_down(reduction):
    settings = train_config(
        steps=60, batch_size=4, chunk_length=16, reduction=reduction, chunks_per_state=2, lr=0.02, warmup_steps=5
    )
    data = TrainData.of("abcdefgh" * 100, settings)
    torch.manual_seed(0)
    trainer = Trainer(msrnn.models.Llama(settings.model_config(256)), settings)
    losses = [trainer.train_step(data.train[index]) for index in range(60)]
    assert losses[0] > 4
    assert losses[-1] < 0.15
    assert bits_per_byte(trainer.cell, data.val, data.tokenizer.n_bytes, reduction) < 0.3


def test_ignored_targets_do_not_enter_the_loss():
    cell, text = tiny_cell(frozen=False), random_tokens(0, 2, 9)
    targets = text[:, 1:].clone()
    targets[:, :5] = IGNORED
    loss, _ = chunk_loss(cell, TrainBatch(text[:, :8], targets, True), None, "full")
    logits, _ = cell(text[:, :8])
    assert loss.item() == pytest.approx(cross_entropy(logits[:, 5:].flatten(0, 1), text[:, 6:].flatten()).item())


def test_bits_per_byte_equal_the_step_loop():
    """Reads the validation streams token by token, with different numbers of bytes per token."""
    settings = train_config(model=DECODER, batch_size=2, chunk_length=7, chunks_per_state=2, reduction="tova:5")
    torch.manual_seed(0)
    cell = build_random(settings.model_config(256)).double().eval()  # without dropout
    data = TrainData.of(words(150), settings)
    n_bytes = torch.arange(256) ** 2 + 1
    streams, nats, n_total = data.val, 0.0, 0
    long = streams.n_chunks * 7
    for row in range(2):
        for t in range(long):
            if t % 14 == 0:
                state = cell.initial_state(1, "tova:5")
            here = row * long + t
            logits, state = cell.step(streams.ids[here : here + 1], state)
            target = streams.ids[here + 1]
            nats -= logits.log_softmax(-1)[0, target].item()
            n_total += int(n_bytes[target])
    cell.train()
    assert bits_per_byte(cell, streams, n_bytes, "tova:5") == pytest.approx(nats / math.log(2) / n_total, rel=1e-12)
    assert cell.training


def test_a_loss_that_is_not_finite_stops_before_any_update():
    settings = train_config()
    cell, data = tiny_cell(frozen=False, vocab_size=256), TrainData.of(words(), settings)
    with torch.no_grad():
        cell.norm.weight[0] = torch.nan
    before = cell.embed.weight.clone()
    with pytest.raises(msrnn.Error, match="step 1: the loss is nan"):
        Trainer(cell, settings).train_step(data.train[0])
    assert torch.equal(cell.embed.weight, before)
