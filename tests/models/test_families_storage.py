"""Tests that cells and states of every family can be saved and loaded without a change of one bit."""

import json

import pytest
import torch
from support.tiny_families import CONFIGS, MIXED, NEW, A, tiny_family
from support.tiny_models import assert_close, assert_same, random_tokens

import msrnn
from msrnn.models.registry import config_from_dict


@pytest.mark.parametrize("family", CONFIGS)
def test_a_config_equals_itself_after_json(family):
    values = CONFIGS[family].to_dict()
    assert config_from_dict(values) == CONFIGS[family]
    assert config_from_dict(json.loads(json.dumps(values))) == CONFIGS[family]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", NEW)
def test_a_saved_cell_is_loaded_bit_for_bit(family, dtype, tmp_path):
    cell, text = tiny_family(family, dtype=dtype), random_tokens(1, 2, 12)
    cell.save(tmp_path / "model")
    loaded = msrnn.load(tmp_path / "model", dtype=dtype)
    assert type(loaded) is type(cell)
    assert loaded.config == cell.config
    assert loaded.state_dict().keys() == cell.state_dict().keys()
    assert all(x.equal(loaded.state_dict()[name]) for name, x in cell.state_dict().items())
    assert loaded(text)[0].equal(cell(text)[0])


@pytest.mark.parametrize("family", NEW)
@pytest.mark.parametrize("spec", [None, "h2o:6", "all-layers:tova:5", ["tova:4", "full", "sinks:5:1"]])
def test_a_saved_state_continues_bit_for_bit(family, spec, tmp_path):
    cell, text = tiny_family(family), random_tokens(2, 2, 20)
    logits, state = cell(text[:, :11], cell.initial_state(2, spec), last_only=True)
    state.save(tmp_path / "state", logits=logits)
    loaded, same = msrnn.load_state(tmp_path / "state", logits=True)
    assert_same(loaded, state)
    assert same.equal(logits)
    assert [str(H.reduction) for H in loaded] == [str(H.reduction) for H in state]
    assert [H.n_learned for H in loaded] == [H.n_learned for H in state]
    assert cell(text[:, 11:], loaded)[0].equal(cell(text[:, 11:], state)[0])


@pytest.mark.parametrize(("family", "fields"), [("gemma3", {}), ("smollm3", {}), ("smollm3", {"layer_ropes": (None, A, A)})])
@pytest.mark.parametrize("places", ["inside", "compressed"])
def test_a_remapped_state_keeps_the_rope_of_each_layer(family, fields, places, tmp_path):
    cell, text = tiny_family(family, **fields), random_tokens(3, 1, 20)
    _, state = cell(text[:, :11], cell.initial_state(1, "tova:5", places=places))
    state.save(tmp_path / "state")
    loaded = msrnn.load_state(tmp_path / "state")
    assert [H.places for H in loaded] == [H.places for H in state]
    assert [H.places.rope for H in loaded] == list(cell.config.ropes)
    assert loaded.places is not None
    assert loaded.places.rule == places
    assert_close(cell(text[:, 11:], loaded)[0], cell(text[:, 11:], state)[0], 0)


@pytest.mark.parametrize("family", NEW)
def test_8_bit_states_are_saved(family, tmp_path):
    cell, text = tiny_family(family), random_tokens(4, 1, 20)
    _, state = cell(text[:, :11], cell.initial_state(1, "tova:5", dtype=torch.int8))
    state.save(tmp_path / "state")
    loaded = msrnn.load_state(tmp_path / "state")
    assert_same(loaded, state)
    assert cell(text[:, 11:], loaded)[0].equal(cell(text[:, 11:], state)[0])


@pytest.mark.parametrize("family", NEW)
def test_a_state_of_another_family_is_refused(family):
    other = tiny_family("granite" if family != "granite" else "olmo2")
    with pytest.raises(msrnn.Error, match="state belongs to another model"):
        other.step(torch.zeros(1, dtype=torch.int64), tiny_family(family).initial_state(1))


@pytest.mark.parametrize("family", MIXED)
def test_the_signature_does_not_depend_on_windows_but_on_positions(family):
    """A state says itself which layers are bounded, so a cell with other windows can continue it."""
    cell = tiny_family(family)
    assert "layer_windows" not in cell.signature
    assert ("layer_ropes" in cell.signature) == bool(cell.config.layer_ropes)
