"""Tests of every family against plain loops that evict explicitly (``support/naive_families.py``)."""

import pytest
import torch
from support import eviction_rules
from support.naive_families import naive_decoder
from support.tiny_families import CONFIGS, MIXED, A, B, tiny_family
from support.tiny_models import assert_close, random_tokens, retained_positions, step_loop

import msrnn

T = 16
OPERATORS = {
    "full": eviction_rules.full,
    "tova:5": lambda: eviction_rules.tova(5),
    "tova-head:5": lambda: eviction_rules.tova_head(5),
    "h2o:6": lambda: eviction_rules.h2o(6, 3),
    "h2o-layer:6": lambda: eviction_rules.h2o(6, 3, layerwise=True),
    "sinks:5:2": lambda: eviction_rules.sinks(5, 2),
}
"""The rule of each operator. A rule of H2O has memory, so each layer gets a new one."""


def rules(config, spec):
    """Return one rule per layer: the windows of the published model, and the operator in the other layers, or in all."""
    everywhere, operator = spec.startswith("all-layers:") or None not in config.windows, spec.removeprefix("all-layers:")
    found = []
    for window in config.windows:
        published = eviction_rules.full if window is None else lambda window=window: eviction_rules.window(window - 1)
        found.append((published if operator == "default" or (window is not None and not everywhere) else OPERATORS[operator])())
    return found


def assert_equals_naive(cell, spec, seed=1, places="absolute"):
    text, reduction = random_tokens(seed, 1, T), None if spec == "default" else spec
    expected, after, _ = naive_decoder(cell, text[0].tolist(), rules(cell.config, spec), places)
    logits, state = step_loop(cell, text, cell.initial_state(1, reduction, places=places))
    assert_close(logits[0], expected)
    found = [[[p for p in head if p >= 0] for head in layer[0]] for layer in retained_positions(state)]
    assert found == after[-1]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("spec", ["default", "tova:5", "h2o:6", "sinks:5:2"])
def test_steps_equal_naive_loops(family, spec):
    assert_equals_naive(tiny_family(family), spec)


@pytest.mark.parametrize("family", MIXED)
@pytest.mark.parametrize("spec", ["full", "tova-head:5", "h2o-layer:6", "all-layers:tova:5", "all-layers:h2o:6"])
def test_an_operator_replaces_the_windows_only_with_all_layers(family, spec):
    assert_equals_naive(tiny_family(family), spec)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3"])
@pytest.mark.parametrize("places", ["inside", "compressed"])
@pytest.mark.parametrize("spec", ["tova:5", "sinks:5:2"])
def test_remapped_positions_equal_naive_loops(family, places, spec):
    """In SmolLM3 the layers without positions rotate nothing."""
    assert_equals_naive(tiny_family(family), spec, places=places)


@pytest.mark.parametrize("places", ["absolute", "inside", "compressed"])
def test_the_first_layer_may_have_no_positions(places):
    assert_equals_naive(tiny_family("smollm3", layer_ropes=(None, A, B)), "tova:5", places=places)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_field_takes_effect(family):
    """A window that evicts nothing, or a softcap that bounds nothing, would not be tested."""
    cell = tiny_family(family)
    text = random_tokens(1, 1, T)
    with torch.no_grad():
        whole, _ = cell(text, cell.initial_state(1, "all-layers:full"))
        published, _ = cell(text)
    assert (whole != published).any() == any(W is not None for W in cell.config.windows)


def test_sizes_per_layer_and_lists():
    cell, text = tiny_family("gemma3"), random_tokens(2, 1, T)
    reduction = ["tova:5", msrnn.H2O(6), "sinks:5:2"]
    expected, after, _ = naive_decoder(
        cell, text[0].tolist(), [eviction_rules.tova(5), eviction_rules.h2o(6, 3), eviction_rules.sinks(5, 2)]
    )
    logits, state = cell(text, cell.initial_state(1, reduction))
    assert_close(logits[0], expected)
    assert retained_positions(state) == [[layer] for layer in after[-1]]


@pytest.mark.parametrize("places", ["inside", "compressed"])
def test_remapped_positions_are_refused_where_queries_depend_on_the_text(places):
    cell = tiny_family("ministral3")
    match = f"places are '{places}'; expected 'absolute', because the queries of this cell grow with the position in the text"
    with pytest.raises(msrnn.Error, match=match):
        cell.initial_state(1, places=places)
    assert tiny_family("ministral3", query_beta=0.0).initial_state(1, places=places).places is not None
