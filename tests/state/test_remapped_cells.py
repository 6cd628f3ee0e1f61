"""Cells with position remapping against a decoder that rotates all rows at every token, and transformers."""

from itertools import pairwise

import pytest
import torch
from support.eviction_rules import full, h2o, sinks, tova, tova_head, window
from support.remapped_decoder import remap, remapped_decoder
from support.tiny_models import ROPES, assert_close, random_tokens, retained_positions, step_loop, tiny_cell
from support.transformers_reference import float64_reference, tiny_reference

import converters
from msrnn.state.position_remapping import RULES

EVICTION_RULES = {
    "full": full,
    "window:5": lambda: window(5),
    "sinks:6:2": lambda: sinks(6, 2),
    "tova:6": lambda: tova(6),
    "tova-head:5": lambda: tova_head(5),
    "h2o:7": lambda: h2o(7, 3),
    "h2o-layer:7": lambda: h2o(7, 3, True),
}


@pytest.mark.parametrize("rope", ["default", "dynamic"])
@pytest.mark.parametrize("places", RULES)
@pytest.mark.parametrize("operator", EVICTION_RULES)
def test_steps_equal_a_decoder_that_rotates_all_rows_at_every_token(operator, places, rope):
    cell, text = tiny_cell(rope=ROPES[rope]), random_tokens(3, 1, 30)
    state, logits, retained = cell.initial_state(1, operator, places=places), [], []
    for token in text.T:
        out, state = cell.step(token, state)
        logits.append(out[0])
        retained.append([layer[0] for layer in retained_positions(state)])
    expected, after = remapped_decoder(cell, text[0].tolist(), lambda l: EVICTION_RULES[operator](), places)
    assert retained == after
    assert_close(torch.stack(logits), expected)
    if operator not in ("full", "window:5"):  # these two leave no gaps between positions
        for other in ({"absolute", *RULES}) - {places}:
            logits, _ = cell(text, cell.initial_state(1, operator, places=other))
            assert (logits[0] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("places", RULES)
@pytest.mark.parametrize("operator", ["sinks:5:2", "tova:5", "h2o-layer:5"])
def test_one_layer_equals_transformers_on_the_retained_tokens(operator, places):
    """In one layer a key depends on its token only. So transformers reads the retained tokens at the remapped positions."""
    model = tiny_reference(num_hidden_layers=1)
    cell, text = converters.load(model), random_tokens(2, 1, 40, 61)
    state, widest_gap = cell.initial_state(1, operator, places=places), 0
    with float64_reference(model), torch.no_grad():
        for t, token in enumerate(text.T):
            rows = [*retained_positions(state)[0][0][0], t]
            widest_gap = max([widest_gap, *(b - a for a, b in pairwise(rows))])
            positions = torch.tensor([remap(places, rows)], dtype=torch.float64)
            expected = model(text[:, rows], position_ids=positions).logits[:, -1]
            logits, state = cell.step(token, state)
            assert_close(logits, expected)
    assert widest_gap > 10


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_remapping_does_not_change_an_unbounded_cell(rope):
    cell, text = tiny_cell(rope=rope), random_tokens(3, 2, 20)
    expected, _ = cell(text, cell.initial_state(2, "full"))
    for places in RULES:
        logits, state = cell(text, cell.initial_state(2, "full", places=places))
        assert_close(logits, expected)
        assert_close(step_loop(cell, text, cell.initial_state(2, "full", places=places))[0], expected)
        assert state[0].positions[0, 0].tolist() == list(range(20))


def test_bfloat16_stays_bfloat16():
    cell, wide, text = tiny_cell(dtype=torch.bfloat16), tiny_cell(), random_tokens(3, 1, 20)
    logits, state = cell(text, cell.initial_state(1, "sinks:6:2", places="inside"))
    expected, _ = wide(text, wide.initial_state(1, "sinks:6:2", places="inside"))
    assert logits.dtype == state[0].keys.dtype == torch.bfloat16
    assert (logits - expected).abs().mean() < 0.1
