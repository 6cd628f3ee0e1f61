"""Configs of the Decoder: written and read back, and refused by field."""

import json

import pytest
from support.tiny_models import DECODER_CONFIG, ROPES, tiny_decoder

import msrnn
from msrnn.models import DecoderConfig
from msrnn.models.decoder_config import POSITIONS
from msrnn.models.registry import build_on_meta, config_from_dict


@pytest.mark.parametrize("positions", [*POSITIONS, *ROPES.values()], ids=str)
def test_configs_survive_json(positions):
    config = DecoderConfig(
        **DECODER_CONFIG, positions=positions, norm="rms-outside", norm_eps=1e-3, norm_placement="post", bias=True, tied=True,
        fixnorm=True, small_init=False, dropout=0.5, ffn="geglu", bos_token_id=1, eos_token_ids=(2, 3),
    )  # fmt: skip
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"n_layers": 1001}, "n_layers is 1001"),
        ({"n_kv_heads": 3}, "n_heads is 4; expected a multiple of n_kv_heads, 3"),
        ({"ffn": "maxout"}, "ffn is 'maxout'"),
        ({"ffn": "swigl"}, r"ffn is 'swigl' \(did you mean 'swiglu' or 'silu'\?\); expected one of"),
        ({"positions": "allibi"}, r"positions are 'allibi' \(did you mean 'alibi'\?\); expected a Rope, or one of"),
        ({"ffn": ["relu"]}, "ffn is "),
        ({"ffn": "none"}, "ffn is none and ffn_width is 32; expected 0"),
        ({"ffn_width": 0}, "ffn_width is 0"),
        ({"positions": "absolute"}, "positions are 'absolute'"),
        ({"positions": None}, "positions are None"),
        ({"head_dim": 5}, "head_dim is 5; expected an even number"),
        ({"positions": "sinusoidal", "width": 25}, "width is 25; expected an even width"),
        ({"norm": "batch"}, "norm is 'batch'"),
        ({"norm_eps": 0}, "norm_eps is 0"),
        ({"norm_placement": "sandwich"}, "norm_placement is 'sandwich'"),
        ({"bias": 1}, "bias is 1"),
        ({"tied": None}, "tied is None"),
        ({"fixnorm": "yes"}, "fixnorm is 'yes'"),
        ({"small_init": 0}, "small_init is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": False}, "dropout is False;"),
        ({"bos_token_id": 50}, "special token id is 50"),
        ({"eos_token_ids": 3}, "eos_token_ids are 3; expected a tuple"),
    ],
)
def test_wrong_configs_are_refused_by_field(facts, message):
    with pytest.raises(msrnn.Error, match=message):
        DecoderConfig(**{**DECODER_CONFIG, **facts})


@pytest.mark.parametrize("field", [*tiny_decoder().config.to_dict()])
def test_a_damaged_field_is_refused_in_one_sentence_or_builds_a_cell(field):
    facts, messages = DecoderConfig(**DECODER_CONFIG).to_dict(), list[str]()
    damages = [
        None,
        -1,
        0,
        1,
        2**28,
        2**70,
        1.5,
        float("nan"),
        "",
        "rms",
        [],
        [1],
        {},
        {"rope_type": "default"},
        True,
        "decoder",
    ]
    for wrong in damages:
        try:
            build_on_meta(config_from_dict({**facts, field: wrong}))
        except msrnn.Error as error:
            messages.append(str(error))
    assert len(messages) >= 5
    assert all(len(text.splitlines()) == 1 for text in messages)


@pytest.mark.parametrize("head_dim", [1, 2, 5])
def test_rotary_positions_need_an_even_head_dim_of_at_least_4(head_dim):
    with pytest.raises(msrnn.Error, match=f"head_dim is {head_dim}; expected an even number of at least 4"):
        DecoderConfig(**{**DECODER_CONFIG, "head_dim": head_dim})
    assert DecoderConfig(**{**DECODER_CONFIG, "head_dim": 4}).head_dim == 4
