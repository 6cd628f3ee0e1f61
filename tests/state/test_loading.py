"""Logits and recent tokens in a saved state, and in copies of a state."""

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from support.tiny_models import random_tokens, tiny_cell

import msrnn

CELL = tiny_cell()
RECENT = torch.tensor([[-1, 7], [3, 4]])


@pytest.fixture
def read():
    logits, state = CELL(random_tokens(1, 2, 9), CELL.initial_state(2, "tova:4"), last_only=True)
    state.recent_tokens = RECENT
    return logits, state


def test_saved_logits_are_returned_bit_for_bit(read, tmp_path):
    logits, state = read
    for dtype in (torch.float64, torch.bfloat16):
        state.save(tmp_path / "state", logits=logits.to(dtype))
        again, same = msrnn.load_state(tmp_path / "state", logits=True)
        assert same.dtype == dtype
        assert same.equal(logits.to(dtype))
        assert again.recent_tokens.equal(RECENT)
    assert isinstance(msrnn.load_state(tmp_path / "state"), msrnn.State)
    assert CELL.step(torch.tensor([1, 2]), again)[0].equal(CELL.step(torch.tensor([1, 2]), state)[0])


def test_a_file_without_logits_is_still_read(read, tmp_path):
    _, state = read
    state.recent_tokens = None
    state.save(tmp_path / "state")
    assert set(load_file(tmp_path / "state")) >= {"clock"}
    assert msrnn.load_state(tmp_path / "state").recent_tokens is None
    with pytest.raises(msrnn.Error, match=r"holds no logits; expected a file of state.save\(path, logits=logits\)"):
        msrnn.load_state(tmp_path / "state", logits=True)


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(1, 50), torch.zeros(2), torch.zeros(2, 1, 50), torch.zeros(2, 50).long(), torch.zeros(2, 0), [1.0], 3],
)
def test_logits_of_another_shape_are_refused_before_the_file_is_written(logits, read, tmp_path):
    with pytest.raises(msrnn.Error, match=r"logits are .*; expected floating-point numbers of shape \(2, V\)"):
        read[1].save(tmp_path / "state", logits=logits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("logits", torch.zeros(3, 50)),
        ("logits", torch.zeros(2, 50).long()),
        ("recent_tokens", torch.zeros(2)),
        ("recent_tokens", torch.zeros(3, 1).long()),
        ("recent_tokens", torch.full((2, 1), -2)),
        ("recent_tokens", torch.zeros(2, 0).long()),
    ],
)
def test_damaged_logits_and_recent_tokens_are_refused(name, tensor, read, tmp_path):
    logits, state = read
    state.save(path := tmp_path / "state", logits=logits)
    with safe_open(path, "pt") as file:
        entries = file.metadata()
    save_file({**load_file(path), name: tensor}, path, entries)
    with pytest.raises(msrnn.Error, match=name.replace("_", " ")):
        msrnn.load_state(path)


@pytest.mark.parametrize("reduction", ["tova:4", ("tova:4", "window:3")])
def test_copies_hold_the_recent_tokens_and_steps_drop_them(reduction):
    _, state = CELL.step(torch.tensor([1, 2]), CELL.initial_state(2, reduction))
    state.recent_tokens = RECENT
    for copy in (state.clone(), state.detach(), state.to(torch.float32), state.to("cpu"), state.select(slice(0, 2))):
        assert copy.recent_tokens.equal(RECENT)
    assert state.select([1, 0, 1]).recent_tokens.tolist() == [[3, 4], [-1, 7], [3, 4]]
    assert CELL.step(torch.tensor([1, 2]), state)[1].recent_tokens is None
    assert CELL(random_tokens(1, 2, 3), state)[1].recent_tokens is None
    CELL.step_(torch.tensor([1, 2]), state)
    assert state.recent_tokens is None
