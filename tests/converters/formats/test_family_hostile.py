"""Fields of any value in a config.json are refused in one sentence, or the config can be saved and written."""

import copy
import json
from functools import lru_cache

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from support.hostile_values import JSON, MANY, accepted
from support.tiny_references import CASES, FULL, SLIDING
from support.transformers_reference import tiny_reference

from converters.formats.hf_config import config_from_hf, config_to_hf
from msrnn.models.registry import config_from_dict

KINDS = sorted({kind: name for name, (kind, _) in CASES.items()}.values())
LISTS = st.lists(st.sampled_from([FULL, SLIDING, 0, 1, 2.5, -1, "conv", None]), max_size=4)


@lru_cache
def written(name):
    """Return the fields of config.json that transformers writes."""
    kind, fields = CASES[name]
    return tiny_reference(kind, **fields).config.to_dict()


def places(fields, prefix=()):
    """Return the paths of all fields, also of those in objects."""
    inner = [path for name, x in fields.items() if isinstance(x, dict) for path in places(x, (*prefix, name))]
    return [(*prefix, name) for name in fields] + inner


@settings(MANY, max_examples=1500)
@given(st.sampled_from(KINDS), st.one_of(JSON, LISTS), st.data())
def test_any_field_of_a_file(name, value, data):
    fields = copy.deepcopy(written(name))
    path = data.draw(st.sampled_from([*places(fields), ("sliding_window_pattern",), ("rope_scaling",), ("text_config",)]))
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    if data.draw(st.booleans()):
        inner[path[-1]] = value
    else:
        inner.pop(path[-1], None)
    config = accepted(lambda: config_from_hf(fields, {}))
    if config is not None:
        assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
        again = accepted(lambda: config_to_hf(config, torch.float32))
        assert again is None or config_from_hf(json.loads(json.dumps(again)), {}) == config


LISTED = {"layer_types": KINDS, "no_rope_layers": [x for x in KINDS if "smollm3" in x]}
LISTED["layer_rope_theta"] = [x for x in KINDS if "granite_swa" in x]


@MANY
@given(st.sampled_from(sorted(LISTED)), st.data())
def test_any_entry_of_a_list_with_one_for_each_layer(field, data):
    fields = copy.deepcopy(written(data.draw(st.sampled_from(LISTED[field]))))
    given = list(fields.get(field) or [FULL] * fields["num_hidden_layers"])
    given[data.draw(st.integers(0, len(given) - 1))] = data.draw(JSON)
    accepted(lambda: config_from_hf(fields | {field: given}, {}))


@MANY
@given(st.sampled_from(["gemma3", "mistral3"]), JSON, st.sampled_from(["text_config", "architectures", "tie_word_embeddings"]))
def test_any_field_outside_of_the_text(kind, value, field):
    text = written(next(name for name in KINDS if name.startswith("gemma3" if kind == "gemma3" else "ministral3")))
    accepted(lambda: config_from_hf({"model_type": kind, "text_config": text, field: value}, {}))
