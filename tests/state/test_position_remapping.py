"""The rules of position remapping, rotation of rows, the cells that have them, and saved states.

``test_remapped_cells.py`` compares cells.
"""

import math

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from support.tiny_models import ROPES, assert_close, assert_same, random_tokens, step_loop, tiny_cell, tiny_decoder

import msrnn
from msrnn.layers.rotary import Rope, YarnRope
from msrnn.state.position_remapping import RULES, PositionRemapping


def test_remapped_positions_follow_the_rules():
    """Gaps of 16 and 459 are shortened to ln ln gap (arXiv:2401.06104); the gap of 10 stays."""
    positions = torch.tensor([[[30, -1, 3, 14, 4, 500, 40, -1, 41]]])
    found = PositionRemapping("compressed", Rope(100.0)).remapped_positions(positions, torch.float64)[0, 0].tolist()
    first, second = (math.log(math.log(gap)) for gap in (16, 459))  # 14 to 30, 41 to 500
    expected = [11 + first, 0, 11, 1, 22 + first + second, 21 + first, 22 + first]
    assert [p for p, row in zip(found, positions[0, 0].tolist(), strict=True) if row >= 0] == pytest.approx(expected)
    inside = PositionRemapping("inside", Rope(100.0)).remapped_positions(positions, torch.float64)[0, 0]
    assert inside[positions[0, 0] >= 0].tolist() == [3, 0, 2, 1, 6, 4, 5]
    assert RULES["compressed"](torch.tensor([10.0, 11.0])).tolist() == pytest.approx([10, math.log(math.log(11))])


@pytest.mark.parametrize("places", RULES)
def test_learned_rows_are_not_rotated_and_have_no_position(places):
    remapping = PositionRemapping(places, ROPES["yarn"])
    generator = torch.Generator().manual_seed(0)
    positions = torch.tensor([[-2, -2, 20, -1, 4, 5]]).expand(2, 2, 6)
    q, keys = (torch.randn(shape, generator=generator).double() for shape in ((2, 4, 6), (2, 2, 6, 6)))
    rotated_q, rotated = remapping.rotate(q, keys, positions, n_learned=2)
    assert rotated[:, :, :2].equal(keys[:, :, :2])
    expected_q, expected = remapping.rotate(q, keys[:, :, 2:], positions[:, :, 2:])
    assert rotated_q.equal(expected_q)
    assert rotated[:, :, 2:].equal(expected)


def test_cached_key_does_not_contain_the_gain_of_yarn():
    """YaRN multiplies cos and sin by a gain. Cached keys are not rotated, so they have no gain yet."""
    keys = []
    for gain in (1.1, 1.0):
        cell = tiny_cell(rope=YarnRope(100.0, 4.0, 16, gain, 2.0, 0.5))
        keys.append(cell.step(torch.tensor([3]), cell.initial_state(1, places="inside"))[1][0].keys)
    assert keys[0].equal(keys[1])


# Names and cells.


@pytest.mark.parametrize("places", ["outside", "", "Inside", None, 3, ["inside"], True])
def test_unknown_places_are_refused(places):
    with pytest.raises(msrnn.Error, match=r"places are .*; expected one of absolute, inside, compressed"):
        tiny_cell().initial_state(1, places=places)


def test_places_are_refused_for_a_cell_without_rotary_positions():
    for positions in ("alibi", "learned", "sinusoidal"):
        cell = tiny_decoder(positions=positions)
        assert cell.initial_state(1).places is None
        with pytest.raises(msrnn.Error, match="no rotary positions"):
            cell.initial_state(1, places="inside")


def test_decoder_with_rotary_positions_has_places():
    cell, text = tiny_decoder(positions=ROPES["default"]), random_tokens(3, 1, 20)
    logits, _ = step_loop(cell, text, cell.initial_state(1, "full", places="inside"))
    assert_close(logits, cell(text)[0])
    start = cell.initial_state(1, "tova:5", places="compressed")
    assert_close(cell(text, start)[0], step_loop(cell, text, start)[0], 1e-8)


# Saved states.


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_saved_state_keeps_its_places(rope, tmp_path):
    cell, text = tiny_cell(rope=rope), random_tokens(3, 2, 16)
    _, state = cell(text, cell.initial_state(2, "h2o:5", places="compressed"))
    state.save(tmp_path / "state")
    loaded = msrnn.load_state(tmp_path / "state")
    assert loaded.places == state.places == PositionRemapping("compressed", rope)
    assert_same(loaded, state)
    assert cell.step(text[:, 0], loaded)[0].equal(cell.step(text[:, 0], state)[0])
    assert "places compressed" in repr(loaded)
    assert "places" not in repr(cell.initial_state(1))


@pytest.mark.parametrize(
    "content",
    [
        *("[", "3", "{}", '{"rule": "inside"}'),
        '{"rule": "outside", "rope": {"rope_type": "default", "theta": 100.0}}',
        '{"rule": "inside", "rope": {"rope_type": "default", "theta": -1}}',
        '{"rule": "inside", "rope": {"rope_type": "spiral"}}',
    ],
)
def test_damaged_places_are_refused(content, tmp_path):
    tiny_cell().initial_state(1, places="inside").save(tmp_path / "state")
    with safe_open(tmp_path / "state", "pt") as file:
        metadata = file.metadata()
    save_file(load_file(tmp_path / "state"), tmp_path / "state", {**metadata, "places": content})
    with pytest.raises(msrnn.Error):
        msrnn.load_state(tmp_path / "state")
