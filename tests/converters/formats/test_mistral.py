"""Configs of Mistral's own folders."""

import pytest
import torch
from support.tiny_checkpoints import mistral_params, write_folder

import converters
import msrnn
from converters.fields import Fields
from converters.formats import mistral
from msrnn.layers.rotary import YarnRope


def test_window_and_theta_of_the_published_models():
    """v0.1 has a window and no theta in its params.json; v0.2 and v0.3 have a theta and no window."""
    common = {"dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8}
    common["norm_eps"] = 1e-5
    published = {
        "MISTRAL_7B_V01": {"vocab_size": 32000, "sliding_window": 4096},
        "MISTRAL_7B_V02": {"vocab_size": 32000, "rope_theta": 1e6},
        "MISTRAL_7B_V03": {"vocab_size": 32768, "rope_theta": 1e6},
    }
    for name, more in published.items():
        assert mistral.config_from_params(Fields(common | more, "params.json")) == getattr(msrnn.models, name)
    assert (
        mistral.config_from_params(
            Fields(common | {"vocab_size": 32000, "sliding_window": "4096"}, "params.json")
        ).sliding_window
        == 4096
    )


NEWER = {
    **{
        "model_type": "transformer",
        "causal": True,
        "activation": "silu",
        "dtype": "bfloat16",
        "use_biases": False,
        "moe": None,
    },
    **{"max_position_embeddings": 262144, "tied_embeddings": True, "q_lora_rank": None, "vision_encoder": None},
    "yarn": {"original_max_position_embeddings": 16384, "factor": 16, "apply_scale": False, "beta": 32, "alpha": 1},
}
"""The fields of Ministral 3 (December 2025), without ``llama_4_scaling``."""


def folder_of(path, tiny, more, change=lambda tensors: None):
    tensors, config = tiny
    tensors = dict(tensors)
    change(tensors)
    params = mistral_params({**config, "sliding_window": None}, head_dim=6) | more
    return write_folder(path, {"params.json": params, "consolidated.safetensors": tensors})


@pytest.mark.parametrize("stored", ["none", "equal", "other"])
def test_newer_folders_are_read(stored, tiny, tmp_path):
    def change(tensors):
        head = tensors.pop("output.weight")
        if stored != "none":
            tensors["output.weight"] = head if stored == "other" else tensors["tok_embeddings.weight"].clone()

    folder = folder_of(tmp_path / "x", tiny, NEWER, change)
    config = converters.config(folder)
    assert (config.tied, config.context_length) == (True, 262144)
    assert config.rope == YarnRope(500.0, 16.0, 16384, 1.0, 32.0, 1.0)
    if stored == "other":
        with pytest.raises(msrnn.Error, match=r"ties the head to the embedding, but 'output\.weight' differs"):
            converters.load(folder)
    else:
        assert torch.equal(converters.load(folder).embed.weight, tiny[0]["tok_embeddings.weight"])


@pytest.mark.parametrize("scaled", [True, False])
def test_yarn_equals_transformers(scaled):
    """The mapping of names is that of vLLM; with ``apply_scale`` false the factor on cos and sin is 1."""
    from transformers import MistralConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 64}
    settings |= {"beta_fast": 8.0, "beta_slow": 2.0} | ({} if scaled else {"attention_factor": 1.0})
    reference = MistralConfig(head_dim=32, max_position_embeddings=1024, rope_parameters=settings)
    frequencies, gain = ROPE_INIT_FUNCTIONS["yarn"](reference, "cpu")
    yarn = {"original_max_position_embeddings": 64, "factor": 16, "apply_scale": scaled, "beta": 8, "alpha": 2}
    fields = {"dim": 64, "n_layers": 1, "head_dim": 32, "hidden_dim": 8, "n_heads": 2, "n_kv_heads": 1, "norm_eps": 1e-5}
    rope = mistral.config_from_params(Fields({**fields, "vocab_size": 9, "rope_theta": 1e6, "yarn": yarn}, "params.json")).rope
    assert torch.allclose(rope.frequencies(torch.zeros((), dtype=torch.int64), 32, torch.float32), frequencies, rtol=1e-6)
    assert rope.attention_scaling == pytest.approx(gain)


REFUSED = {
    "moe": ({"moe": {"num_experts": 8}}, "moe is"),
    "lora": ({"lora": {"rank": 64}}, "lora is"),
    "windows": ({"sliding_window": [4096, None]}, "sliding_window is"),
    "width": ({"dim": 0}, "dim is 0"),
    "kv": ({"n_kv_heads": None}, "n_kv_heads is missing"),
    "layers": ({"n_layers": 10**12}, "n_layers is 1000000000000; expected an int"),
    "more layers than tensors": ({"n_layers": 40}, "n_layers is 40; expected at most"),
    "query scale": ({"llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 16384}}, "llama_4_scaling is"),
    "activation": ({"activation": "gelu"}, "activation is 'gelu'"),
    "bidirectional": ({"causal": False}, "causal is False"),
    "biases": ({"use_biases": True}, "use_biases is True"),
    "latent attention": ({"q_lora_rank": 8}, "q_lora_rank is 8"),
    "quantised": ({"quantization": {"qformat_weight": "fp8_e4m3"}}, "quantization is"),
    "vision": ({"vision_encoder": {"hidden_size": 8}}, "vision_encoder is"),
    "mamba": ({"model_type": "mamba"}, "model_type is 'mamba'"),
    "tied": ({"tied_embeddings": 1}, "tied is 1"),
    "yarn": ({"yarn": {"factor": 4, "original_max_position_embeddings": 16}}, "yarn: apply_scale is missing; expected true"),
    "yarn setting": ({"yarn": {"factor": 4, "apply_scale": True, "gamma": 1}}, "yarn is .*; expected an object with alpha"),
    "yarn number": ({"yarn": 4}, "yarn is 4; expected an object"),
    "ffn": ({"hidden_dim": 41}, "shape"),
}


@pytest.mark.parametrize(("more", "message"), REFUSED.values(), ids=REFUSED)
def test_other_params_are_refused_by_field(more, message, tiny, tmp_path):
    tensors, config = tiny
    params = mistral_params({**config, "sliding_window": None}, head_dim=6) | more
    with pytest.raises(msrnn.Error, match=message):
        converters.load(write_folder(tmp_path / "x", {"params.json": params, "consolidated.safetensors": tensors}))
