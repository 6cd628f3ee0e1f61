"""Training configurations: presets, files, and fields that depend on the tokenizer or on the model."""

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
from support.training import DECODER, MODEL, train_config

import msrnn
from msrnn.train.config import PRESETS, read_train_config


def test_fields_are_checked_against_the_tokenizer_and_the_memory():
    """Special tokens are checked against the vocabulary, learned positions against the tokens that one state reads."""
    assert train_config(tokenizer="bpe:400", model={**MODEL, "eos_token_ids": [300]}).model_config(400).eos_token_ids == (300,)
    with pytest.raises(msrnn.Error, match="special token id is 300; expected an id of the vocabulary of 256"):
        train_config(model={**MODEL, "eos_token_ids": [300]})
    learned = {**DECODER, "positions": "learned", "context_length": 10, "memory_tokens": 2, "recurrent": True}
    assert train_config(model=MappingProxyType(learned)).model == learned


def test_a_config_is_a_preset_or_a_file(tmp_path):
    assert read_train_config("tiny") == PRESETS["tiny"]
    (tmp_path / "c.json").write_text(json.dumps({"preset": "tiny-bounded", "steps": 7, "model": {"n_layers": 3}}))
    expected = PRESETS["tiny-bounded"]
    assert read_train_config(str(tmp_path / "c.json")) == replace(expected, steps=7, model={**expected.model, "n_layers": 3})
    with pytest.raises(msrnn.Error, match=r"--config is 'huge'; expected one of tiny, .*, or a \.json file"):
        read_train_config("huge")


def steps(out):
    try:
        return len(dict(msrnn.storage.safetensors_io.read_tensors(out / "training.safetensors"))["losses"])
    except msrnn.Error:
        return -1
