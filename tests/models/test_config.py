"""Tests of the signatures of configs, which decide if a saved state fits a cell."""

from dataclasses import fields, replace

import pytest
from support.tiny_models import tiny_cell, tiny_decoder

from msrnn.layers.rotary import LinearRope, Rope
from msrnn.models import EncoderDecoderConfig

CONFIG = tiny_cell().config
DECODER = tiny_decoder().config
PAIR = EncoderDecoderConfig(width=24, n_layers=2, n_heads=4, ffn_width=32, vocab_size=50)


@pytest.mark.parametrize(
    "other",
    [
        {"family": "mistral", "sliding_window": 9},
        {"context_length": 4096},
        {"bos_token_id": 1, "eos_token_ids": (2, 3)},
        {"norm_eps": 9.999999747378752e-06},  # 1e-5 in float32, as in a GGUF file
    ],
)
def test_fields_that_do_not_enter_a_step_are_not_in_the_signature(other):
    assert replace(CONFIG, **other).signature() == CONFIG.signature()


@pytest.mark.parametrize("other", [{"tied": True}, {"norm_eps": 1e-6}, {"rope": Rope(99.0)}, {"rope": LinearRope(100.0, 2.0)}])
def test_fields_that_enter_a_step_are_in_the_signature(other):
    assert replace(CONFIG, **other).signature() != CONFIG.signature()


@pytest.mark.parametrize("config", [CONFIG, DECODER, PAIR], ids=lambda config: type(config).__name__)
def test_optional_fields_with_default_values_are_omitted(config):
    names = [part.split()[0] for part in config.signature().split(", ")]
    optional = {f.name: f.default for f in fields(config) if f.name not in config.not_in_signature}
    assert set(names) >= {name for name, default in optional.items() if getattr(config, name) != default}
    assert not any(getattr(config, name) == default for name, default in optional.items() if name in names)


OTHER = {
    **{"vocab_size": 60, "width": 32, "n_layers": 3, "n_heads": 8, "n_kv_heads": 4, "head_dim": 8, "ffn_width": 40},
    **{"context_length": 99, "ffn": "geglu", "positions": "alibi", "norm": "layer", "norm_eps": 1e-3, "norm_placement": "post"},
    **{"bias": True, "tied": True, "fixnorm": True, "memory_tokens": 3, "persistent": 2},
}


@pytest.mark.parametrize("name", [*OTHER, "recurrent"])
def test_every_field_of_a_decoder_that_enters_a_step_is_in_the_signature(name):
    base = replace(DECODER, memory_tokens=1 if name == "recurrent" else 0)
    assert base.signature() != replace(base, **{name: True if name == "recurrent" else OTHER[name]}).signature()
    others = {field.name for field in fields(DECODER)} - OTHER.keys() - {"recurrent"}
    assert others == {"dropout", "small_init", "bos_token_id", "eos_token_ids"}


def test_dropout_and_initialization_of_a_decoder_are_not_in_the_signature():
    assert replace(DECODER, dropout=0.5, small_init=False).signature() == DECODER.signature()
    assert replace(PAIR, dropout=0.5).signature() == PAIR.signature()
    assert replace(DECODER, context_length=41).signature() != DECODER.signature()
