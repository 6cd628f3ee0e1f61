"""Every way to write rope settings in config.json gives cos and sin of transformers, token by token."""

import json

import pytest
import torch
from support.transformers_reference import TINY_CONFIG
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import converters
import msrnn
from converters.formats.hf_config import config_from_hf

D, LENGTH = 6, 64
BASE = {**TINY_CONFIG, "model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": LENGTH}
ORIGINAL = "original_max_position_embeddings"
TYPES = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 16},
    "yarn": {"factor": 4.0, ORIGINAL: 16},
    "longrope": {"short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 4.0, 7.5], "factor": 4.0, ORIGINAL: 16},
}


def spellings(kind, settings):
    """Yield (name, fields of config.json)."""
    new, old = {"rope_type": kind, **settings}, {"type": kind, **settings}
    theta = {"rope_theta": 500.0}
    yield "nested", {"rope_parameters": new | theta}
    yield "nested, type", {"rope_parameters": old | theta}
    yield "scaling, rope_type", {**theta, "rope_scaling": new}
    yield "scaling, type", {**theta, "rope_scaling": old}
    yield "both types", {**theta, "rope_scaling": {**old, "rope_type": kind}}
    yield "theta in scaling", {"rope_scaling": new | theta}
    yield "theta twice", {**theta, "rope_parameters": new | theta}
    yield "top theta, parameters", {**theta, "rope_parameters": new}
    yield "null top theta", {"rope_theta": None, "rope_parameters": new | theta}
    yield "no theta", {"rope_scaling": new}
    yield "both objects", {**theta, "rope_scaling": old, "rope_parameters": new | theta}
    yield "null scaling", {"rope_scaling": None, "rope_parameters": new | theta}
    yield "null parameters", {**theta, "rope_scaling": old, "rope_parameters": None}
    yield "empty scaling", {"rope_scaling": {}, "rope_parameters": new | theta}
    if ORIGINAL in settings:
        inner = {name: value for name, value in new.items() if name != ORIGINAL}
        yield "top original", {**theta, ORIGINAL: 16, "rope_scaling": inner}
        yield "top original, parameters", {ORIGINAL: 16, "rope_parameters": inner | theta}
        yield "original twice", {**theta, ORIGINAL: 16, "rope_scaling": new}
        yield "no original", {**theta, "rope_scaling": inner}
    else:
        yield "unused original", {**theta, ORIGINAL: 16, "rope_scaling": new}


YARN, LONG = {"rope_type": "yarn", **TYPES["yarn"]}, {"rope_type": "longrope", **TYPES["longrope"]}
MORE = {
    "no settings": {},
    "theta only": {"rope_theta": 2000.0},
    "int theta and factor": {"rope_theta": 500, "rope_scaling": {"type": "linear", "factor": 2}},
    "linear by one": {"rope_scaling": {"type": "linear", "factor": 1.0}},
    "no length": {"max_position_embeddings": ..., "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "no length, yarn": {"max_position_embeddings": ..., "rope_scaling": {"type": "yarn", "factor": 4.0}},
    "null factor is the ratio": {"rope_scaling": {**YARN, "factor": None}},
    "null betas": {"rope_scaling": {**YARN, "beta_fast": None, "beta_slow": None}},
    "betas of 0": {"rope_scaling": {**YARN, "beta_fast": 0, "beta_slow": 0}},
    "other betas": {"rope_scaling": {**YARN, "beta_fast": 8.0, "beta_slow": 2}},
    "null attention factor": {"rope_scaling": {**YARN, "attention_factor": None}},
    "attention factor": {"rope_scaling": {**YARN, "attention_factor": 0.3}},
    "mscales": {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}},
    "one mscale": {"rope_scaling": {**YARN, "mscale": 0.7}},
    "mscale of 0": {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0}},
    "not truncated": {"rope_scaling": {**YARN, "truncate": False}},
    "a factor below 1": {"rope_scaling": {**YARN, "factor": 0.5}},
    "ramp beyond the last pair": {"rope_theta": 2.0, "rope_scaling": {**YARN, ORIGINAL: 4096}},
    "long: null factor is the ratio": {"rope_scaling": {**LONG, "factor": None}},
    "long: factor at most 1": {"rope_scaling": {**LONG, "factor": 0.9}},
    "long: attention factor": {"rope_scaling": {**LONG, "attention_factor": 1.2}},
    "partial of 1": {"partial_rotary_factor": 1.0, "rope_scaling": {**YARN, "partial_rotary_factor": 1.0}},
    "an unused setting": {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3.0, "finetuned": True}},
}
CASES = {f"{kind}: {name}": fields for kind, x in TYPES.items() for name, fields in spellings(kind, x)} | MORE


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_cos_and_sin_equal_transformers(fields):
    fields = {
        name: value for name, value in json.loads(json.dumps(BASE | fields, default=lambda _: "...")).items() if value != "..."
    }
    rope = config_from_hf(fields, {}).rope
    reference = LlamaRotaryEmbedding(LlamaConfig.from_dict(json.loads(json.dumps(fields))))
    for t in (0, 1, 15, 16, 17, 40, 63, 64, 65, 130, 3000):
        cos, sin = reference(torch.zeros(()), torch.tensor([[t]]))  # (1, 1, D)
        found_cos, found_sin = rope.cos_sin(torch.tensor([t]), D, torch.float32)  # (1, 1, D), sin negative in the first half
        assert torch.allclose(found_cos, cos, atol=3e-4), t
        assert torch.allclose(found_sin[..., D // 2 :], sin[..., D // 2 :], atol=3e-4), t


def test_there_are_enough_spellings():
    assert len(CASES) >= 60


YARN_WITHOUT = {name: value for name, value in YARN.items() if name not in ("factor", ORIGINAL)}
CONTRADICTIONS = {
    "two thetas": (
        {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 6.0}},
        "rope_theta is 5.0, and 6.0 in",
    ),
    "two lengths": ({ORIGINAL: 32, "rope_scaling": YARN}, f"{ORIGINAL} is 32, and 16 in the rope settings; expected one value"),
    "two objects": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        r"rope_scaling is LinearRope.*and rope_parameters is Rope.*; expected one rope",
    ),
    "a theta that transformers loses": (
        {
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "rope_parameters": {"type": "linear", "factor": 2.0, "rope_theta": 5.0},
        },
        "expected one rope",
    ),
    "per layer type": ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "'full_attention'"),
    "partial at the top": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "query scale": ({"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}}, "'llama_4_scaling_beta'"),
    "no factor": ({"rope_scaling": YARN_WITHOUT}, "factor is missing"),
    "short list": ({"rope_scaling": {**LONG, "long_factor": [1.0]}}, "LongRope.long_factor has 1 numbers; expected 3"),
    "no list": ({"rope_scaling": {**LONG, "long_factor": 2.0}}, "long_factor is 2.0; expected a list of numbers"),
    "negative divisor": ({"rope_scaling": {**LONG, "long_factor": [1.0, -1.0, 2.0]}}, "LongRope.long_factor is -1.0"),
    "text": ({ORIGINAL: "16", "rope_scaling": {"type": "yarn", "factor": 4.0}}, "original_length is '16'"),
}


@pytest.mark.parametrize(("fields", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_and_other_ropes_are_refused(fields, message):
    with pytest.raises(msrnn.Error, match=message):
        config_from_hf(BASE | fields, {})


def test_longrope_survives_both_folders(tmp_path):
    from support.transformers_reference import logits_by_steps, save_folder, tiny_reference

    model = tiny_reference(dtype=torch.float32, rope_parameters={**LONG, "rope_theta": 500.0})
    source = save_folder(model, tmp_path / "source")
    converters.convert(source, tmp_path / "own")
    converters.convert(tmp_path / "own", tmp_path / "hf", to="hf")
    tokens = torch.randint(0, 61, (1, 40), generator=torch.Generator().manual_seed(0))  # over the original length of 16
    expected = logits_by_steps(model, tokens)
    for folder in ("source", "own", "hf"):
        cell = converters.load(tmp_path / folder)
        assert torch.allclose(cell(tokens)[0], expected, atol=2e-3)
        state, steps = None, []
        for token in tokens.T:
            logits, state = cell.step(token, state)
            steps.append(logits)
        assert torch.allclose(torch.stack(steps, 1), expected, atol=2e-3)
