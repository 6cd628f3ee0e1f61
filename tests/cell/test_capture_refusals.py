"""States, cells, tokens and changes that a captured step refuses."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.cell_strategies import PeakWeight, assert_unchanged, copy_tensors
from support.tape import NothingRecorded, Tape
from support.tiny_models import random_tokens, tiny_cell

import msrnn
from msrnn.cell import capture
from msrnn.layers.rotary import LongRope


@pytest.fixture(autouse=True)
def tape(monkeypatch):
    monkeypatch.setitem(capture.GRAPHS, "cpu", Tape)


def full_state(cell, reduction="tova:4", B=2, T=11, seed=0):
    return cell(random_tokens(seed, B, T), cell.initial_state(B, reduction))[1]


@dataclass(frozen=True)
class Waiting(msrnn.TOVA):
    depends_on_row_layout: ClassVar[bool] = False

    def score(self, observation):
        scale = float(observation.weights.max())
        return observation.weights.mean((1, 2), keepdim=True)[:, :, 0] / scale


@pytest.mark.parametrize(
    ("reduction", "T", "text"),
    [
        ("full", 9, r"layer 0 is unbounded \(full\); expected a bounded operator"),
        (["tova:4", "full"], 9, r"layer 1 is unbounded"),
        ("tova:12", 9, "layer 0 holds 9 of 12 rows; expected a full state, so read more tokens first"),
        (PeakWeight(4), 9, "layer 0 has PeakWeight, which depends_on_row_layout"),
        (Waiting(4), 9, r"the step cannot be recorded \(_local_scalar_dense waits for the device\); use step_"),
    ],
)
def test_refused_states(reduction, T, text):
    cell = tiny_cell()
    state = full_state(cell, reduction, T=T)
    before = copy_tensors(state)
    with pytest.raises(msrnn.Error, match=f"^capture: {text}"):
        cell.capture(state)
    assert_unchanged(state, before)


def test_refused_cells_and_contexts(monkeypatch):
    cell = tiny_cell()
    state = full_state(cell)
    with pytest.raises(msrnn.Error, match=r"^capture: state is tuple; expected a State"):
        cell.capture(tuple(state))
    with pytest.raises(msrnn.Error, match=r"^state belongs to another model"):
        tiny_cell(seed=1).capture(state)
    with pytest.raises(msrnn.Error, match="autocast or a transform"), torch.autocast("cpu"):
        cell.capture(state)
    with pytest.raises(msrnn.Error, match="autocast or a transform"), torch.autograd.forward_ad.dual_level():
        cell.capture(state)
    hook = cell.layers[1].o.register_forward_hook(lambda *_: None)
    with pytest.raises(msrnn.Error, match=r"^capture: layers.1.o has a hook"):
        cell.capture(state)
    hook.remove()
    trainable = tiny_cell(frozen=False)
    with pytest.raises(msrnn.Error, match=r"^capture: the step would build an autograd graph"):
        trainable.capture(full_state(trainable).detach())
    with torch.no_grad():
        trainable.capture(full_state(trainable))
    monkeypatch.delitem(capture.GRAPHS, "cpu")
    with pytest.raises(msrnn.Error, match=r"^capture: the cell is on cpu; expected cuda, or step_ instead$"):
        cell.capture(state)


@pytest.mark.parametrize(
    ("token", "active", "text"),
    [
        (torch.tensor([[1], [2]]), None, "token is int64 of shape"),
        (torch.tensor([1]), None, r"token is int64 of shape \(1,\); the captured state has batch size 2"),
        (torch.tensor([1, 2]), torch.tensor([1, 0]), "active is int64"),
        (torch.tensor([1, 2], device="meta"), None, "token is on meta; expected cpu"),
    ],
)
def test_refused_tokens(token, active, text):
    cell = tiny_cell()
    captured = cell.capture(full_state(cell))
    before = copy_tensors(captured.state)
    with pytest.raises(msrnn.Error, match=f"^{text}"):
        captured(token, active=active)
    assert_unchanged(captured.state, before)


def test_recording_is_refused_after_changes():
    cell, token = tiny_cell(), torch.tensor([1, 2])
    captured = cell.capture(full_state(cell))
    cell.step_(token, captured.state)
    with pytest.raises(msrnn.Error, match=r"^step_ has changed the state of a captured step"):
        captured(token)
    changes = [
        lambda: cell.embed.weight.mul_(2),
        lambda: cell.load_state_dict({k: x.clone() for k, x in cell.state_dict().items()}, assign=True),
        cell.requires_grad_,
    ]
    for change in changes:
        captured = cell.capture(full_state(cell))
        with torch.no_grad():
            change()
        with pytest.raises(msrnn.Error, match=r"^the parameters have changed or moved"):
            captured(token)


def test_states_that_do_not_fit_are_refused():
    cell = tiny_cell()
    captured = cell.capture(full_state(cell, "tova:4"))
    before = copy_tensors(captured.state)
    remapped = cell(random_tokens(0, 2, 11), cell.initial_state(2, "tova:4", places="inside"))[1]
    for state, text in [
        (full_state(cell, "tova-head:4"), "copy_: layer 0 has tova-head:4 .*expected tova:4"),
        (full_state(cell, "tova:5"), r"copy_: layer 0 has tova:5 with keys float64 of shape \(2, 2, 5, 6\)"),
        (full_state(cell).to(torch.int8), "has tova:4 with keys int8 .*; expected tova:4 with keys float64 "),
        (remapped, "copy_: layer 0 has tova:4 .*the same places"),
        (full_state(cell, "tova:4", T=3), "copy_: layer 0 holds 3 of 4 rows"),
        (full_state(cell, "tova:4", B=3), "state has batch size 3"),
    ]:
        with pytest.raises(msrnn.Error, match=text):
            captured.copy_(state)
    assert_unchanged(captured.state, before)


def test_copies_from_the_cpu_are_refused(monkeypatch):
    """LongRoPE copies its divisors from the CPU in every step."""
    monkeypatch.setitem(capture.GRAPHS, "meta", NothingRecorded)
    cell = tiny_cell(rope=LongRope(100.0, (1.0, 2.0, 3.0), (2.0, 3.0, 4.0), 6, 1.1))
    state = full_state(cell)
    with pytest.raises(msrnn.Error, match=r"^capture: the step cannot be recorded \(\w*copy\w* copies between cpu and meta\)"):
        copy.deepcopy(cell).to("meta").capture(state.to("meta"))
