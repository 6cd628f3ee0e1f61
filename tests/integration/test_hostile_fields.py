"""Fields of any value in configs and saved states are refused, or the model and the state work."""

import json
import math
from dataclasses import fields

import hypothesis.strategies as st
import torch
from hypothesis import given
from safetensors.torch import load_file, safe_open, save_file
from support.hostile_values import CELL, JSON, MANY, TENSORS, accepted, assert_steps
from support.tiny_models import CONFIG, assert_same, random_tokens, tiny_cell

import msrnn
import msrnn.cli.main
from msrnn import H2O, Full
from msrnn.models import Config
from msrnn.models.registry import config_from_dict


@MANY
@given(
    st.sampled_from([f.name for f in fields(Config)] + ["rope.theta", "rope.factor", "rope.original_length", "rope.rope_type"]),
    JSON,
)
def test_any_field_of_a_config(name, value):
    values = CELL.config.to_dict()
    if name.startswith("rope."):
        values["rope"] = {"rope_type": "dynamic", "theta": 100.0, "factor": 2.0, "original_length": 8, name[5:]: value}
    else:
        values[name] = value
    config = accepted(lambda: config_from_dict(values))
    if config is not None:
        again = config_from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert all(math.isfinite(x) for x in (*vars(config).values(), *vars(config.rope).values()) if isinstance(x, float))
        if all(
            getattr(config, key) == value for key, value in CONFIG.items() if key not in ("rope", "norm_eps", "context_length")
        ):
            assert_steps(
                tiny_cell(norm_eps=config.norm_eps, rope=config.rope).initial_state(1),
                tiny_cell(norm_eps=config.norm_eps, rope=config.rope),
            )


_, STATE = CELL(random_tokens(1, 2, 9), CELL.initial_state(2, [H2O(4), Full()]))


def reloaded(path, change):
    """Save a state, change the file, and load it. A state that is accepted has to take steps and print."""
    STATE.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    state = accepted(lambda: msrnn.load_state(path))
    if state is not None:
        assert_steps(state)
        assert str(state)
    return state


@MANY
@given(st.data())
def test_any_tensor_of_a_saved_state(tmp_path_factory, data):
    def change(tensors, metadata):
        name = data.draw(st.sampled_from(sorted(tensors)))
        kinds.append(tensors[name])
        values = (
            [-1, 0, 3, 8, 2**62, 2**63 - 1, -(2**63)] if name.endswith(("clock", "positions")) else [math.nan, math.inf, -1, 0]
        )
        full = st.sampled_from(values).map(lambda x: torch.full_like(kinds[0], x))
        tensors[name] = data.draw(st.one_of(TENSORS.filter(lambda x: not x.is_complex()), full))
        kinds.append(tensors[name])

    kinds = []
    if reloaded(tmp_path_factory.getbasetemp() / "state", change) is not None:
        old, new = kinds
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


@MANY
@given(st.sampled_from(["operators", "cell", "format", "version"]), st.data())
def test_any_metadata_of_a_saved_state(tmp_path_factory, name, data):
    def change(tensors, metadata):
        content = json.loads(metadata[name]) if name in ("operators", "cell") else metadata[name]
        if name == "operators":
            content[0][data.draw(st.sampled_from(["operator", "size", "recent", "per_head", "colour"]))] = data.draw(JSON)
        elif name == "cell":
            content[data.draw(st.sampled_from(["signature", "dtype", "values", "colour"]))] = data.draw(JSON)
        text = st.text(alphabet=st.characters(codec="utf-8"), max_size=5)
        metadata[name] = data.draw(st.one_of(st.just(json.dumps(content)), text))

    state = reloaded(tmp_path_factory.getbasetemp() / "state", change)
    if state is not None and name != "operators":
        assert_same(state, STATE)
