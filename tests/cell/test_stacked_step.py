"""The stacked step against its definition, the plain loop over ``layer.step``."""

import pickle

import pytest
import torch
from support.plain_loops import plain_loop
from support.tiny_models import assert_close, assert_same, random_tokens, tiny_cell

import msrnn
from msrnn.cell.stacked_step import stacked_step

OPERATORS = ["window:3", "sinks:4:2", "h2o:4", "h2o-layer:4", "tova:3", "tova-head:3", "caote:3"]
OF_HEADS = ["tova-head:2/4", "h2o:full/3", "caote:4/full", "sinks:5/3:1", "last-queries:4/4:2"]
"""Operators with sizes per head, of which the heads of each size are stacked."""


@pytest.mark.parametrize("reduction", OPERATORS + OF_HEADS)
@pytest.mark.parametrize("in_place", [False, True])
def test_stacked_step_equals_the_plain_loop(reduction, in_place):
    cell = tiny_cell(n_layers=3)
    plain = cell.initial_state(2, reduction)
    stacked = plain.clone()
    for t, token in enumerate(random_tokens(1, 2, 9).T):
        active = None if t % 4 else torch.tensor([True, t % 8 == 0])
        expected, plain = plain_loop(cell, token, plain, active)
        logits, stacked = (cell.step_ if in_place else cell.step)(token, stacked, active=active)
        rows = slice(None) if active is None else active
        assert_close(logits[rows], expected[rows], 1e-12)
    assert_same(stacked, plain, 1e-12)


def three_heads(spec):
    """Return a cell with three heads, of which the first and the last are in one group, and a state after some tokens."""
    cell = tiny_cell(n_layers=2, n_heads=3, n_kv_heads=3)
    return cell, cell(random_tokens(3, 2, 7), cell.initial_state(2, spec), lengths=torch.tensor([7, 4]))[1]


@pytest.mark.parametrize("spec", ["tova-head:2/4/2", "sinks:full/4/full:1", "tova-head:2/4/6"])
def test_groups_of_heads_continue_a_ragged_batch_and_its_branches(spec):
    cell, state = three_heads(spec)
    first, second, third = random_tokens(4, 2, 3).T
    _, one = cell.step(first, state)
    branches = [cell.step(token, one) for token in (second, third)]  # the rows of unbounded heads share a buffer
    _, plain = plain_loop(cell, first, state)
    for (logits, after), token in zip(branches, (second, third), strict=True):
        expected, end = plain_loop(cell, token, plain)
        assert_close(logits, expected, 1e-12)
        assert_same(after, end, 1e-12)
    stacked, _ = one.stacked()
    assert len(stacked.parts) == len(set(spec.split(":")[1].split("/")))
    assert_same(one.select([1, 0]).select([1, 0]), one)
    assert_same(one.clone(), one)
    assert_same(one.sorted_by_position(), one)
    assert_same(pickle.loads(pickle.dumps(one)), one)
    assert one[1].positions.equal(list(one)[1].positions)


def test_groups_of_heads_hold_one_spare_row_per_bounded_head():
    cell, state = three_heads("tova-head:2/4/2")
    for token in random_tokens(4, 2, 6).T:
        _, state = cell.step_(token, state)
    row = 2 * cell.config.head_dim * 8 + 8
    assert state.nbytes == 2 * 2 * (3 + 5 + 3) * row + state.clock.nbytes
    cell, state = three_heads("sinks:full/2/2:1")
    for token in random_tokens(4, 2, 60).T:
        _, state = cell.step_(token, state)
    rows = 67 + 3 + 3  # of which the unbounded head may have 1/16 more
    assert rows * row <= (state.nbytes - state.clock.nbytes) / 4 <= (rows + 67 / 16 + 1) * row


@pytest.mark.parametrize("reduction", ["full", ["tova:3", "window:3"], ["tova:3", "tova:4"], "random:2/3", "h2o:full/full"])
def test_unbounded_layers_and_layers_that_differ_are_not_stacked(reduction):
    cell = tiny_cell()
    state = cell.initial_state(2, reduction)
    for token in random_tokens(1, 2, 5).T:
        _, state = cell.step(token, state)
    x = cell.embed_tokens(token, state.clock)
    prepared = cell.prepare_positions(state.clock, x.dtype)
    assert stacked_step(list(cell.layers), x, state, prepared, None, in_place=False) is None


@pytest.mark.parametrize("reduction", ["tova:3", "h2o:full/3"])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_graph_that_begins_in_a_later_layer_is_recorded_and_each_layer_runs_once(first, reduction):
    """A hook may bring in a trainable tensor in the middle of the network."""
    cell, shift = tiny_cell(n_layers=3), torch.zeros(24, dtype=torch.float64, requires_grad=True)
    calls = [0, 0, 0]

    def count(i):
        def hook(*_):
            calls[i] += 1

        return hook

    for i, layer in enumerate(cell.layers):
        layer.o.register_forward_hook(count(i))
    text = random_tokens(1, 2, 6)
    state = cell.initial_state(2, reduction)
    for token in text.T[:5]:
        _, state = cell.step(token, state)
    expected, end = plain_loop(cell, text[:, 5], state)
    cell.layers[first].q.register_forward_hook(lambda _, __, out: out + shift)
    calls[:] = [0, 0, 0]
    logits, after = cell.step(text[:, 5], state)
    assert calls == [1, 1, 1]
    assert_close(logits.detach(), expected, 1e-12)
    assert_same(after.detach(), end, 1e-12)
    logits.sum().backward()
    assert bool(shift.grad.abs().sum() > 0)


def test_stacked_step_of_a_frozen_cell_builds_no_graph():
    cell = tiny_cell()
    logits, state = cell.step(random_tokens(1, 2, 1)[:, 0], cell.initial_state(2, msrnn.TOVA(3)))
    assert not logits.requires_grad
    assert not state.requires_grad
