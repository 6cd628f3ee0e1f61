"""Configs of Meta's own folders."""

import pytest
from support.tiny_checkpoints import write_meta

import converters
import msrnn
from msrnn.layers.rotary import Llama3Rope, Rope


def test_missing_fields_follow_from_shapes_and_generation(tiny, tmp_path):
    config = converters.config(write_meta(tmp_path / "a", tiny, max_seq_len=..., rope_theta=..., n_layers=..., n_kv_heads=...))
    assert (config.n_layers, config.ffn_width, config.vocab_size, config.rope) == (2, 40, 60, Rope(10000.0))
    assert (config.n_kv_heads, config.context_length, config.bos_token_id, config.eos_token_ids) == (4, 4096, 1, (2,))
    generations = {"1": {"norm_eps": 1e-6, "rope_theta": ...}, "3": {"rope_theta": 5e5}, "code": {"rope_theta": 1e6}}
    for name, length in {"1": 2048, "3": 8192, "code": 16384}.items():
        folder = write_meta(tmp_path / name, tiny, max_seq_len=..., **generations[name])
        assert converters.config(folder).context_length == length


def test_scaled_rope(tiny, tmp_path):
    scaled = {"use_scaled_rope": True, "rope_theta": 5e5, "max_seq_len": ...}
    with pytest.raises(msrnn.Error, match=r"use_scaled_rope is true, but the factor is missing, .* 2 layers of width 24"):
        converters.load(write_meta(tmp_path / "no factor", tiny, **scaled))
    config = converters.config(write_meta(tmp_path / "factor", tiny, rope_scaling_factor=8, **scaled))
    assert (config.rope, config.context_length) == (Llama3Rope(5e5, 8.0, 1.0, 4.0, 8192), 131072)


REFUSED = {
    "vision": ({"vision_chunk_size": 448}, "vision_chunk_size is 448, which this library does not support"),
    "lora": ({"lora_args": {"rank": 16}}, "lora_args"),
    "no width": ({"dim": ...}, "dim is missing"),
    "no heads": ({"n_heads": "4"}, "n_heads is '4'"),
    "width": ({"dim": 25}, "dim 25 is no multiple of n_heads 4"),
    "layers": ({"n_layers": 10**12}, "n_layers is 1000000000000; expected an int"),
    "more layers than tensors": ({"n_layers": 40}, "n_layers is 40; expected at most"),
    "vocabulary": ({"vocab_size": 61}, "shape"),
    "eps": ({"norm_eps": None}, "norm_eps is missing"),
    "theta": ({"rope_theta": "big"}, "rope_theta is 'big'"),
    "groups": ({"n_kv_heads": 3}, "expected a multiple of n_kv_heads"),
}


@pytest.mark.parametrize(("more", "message"), REFUSED.values(), ids=REFUSED)
def test_other_params_are_refused_by_field(more, message, tiny, tmp_path):
    with pytest.raises(msrnn.Error, match=message):
        converters.load(write_meta(tmp_path / "x", tiny, **more))
