"""Configs of Mistral's own folders."""

import pytest
from support.tiny_checkpoints import mistral_params, write_folder

import converters
import msrnn
from converters.fields import Fields
from converters.formats import mistral


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


REFUSED = {
    "moe": ({"moe": {"num_experts": 8}}, "moe is"),
    "lora": ({"lora": {"rank": 64}}, "lora is"),
    "windows": ({"sliding_window": [4096, None]}, "sliding_window is"),
    "width": ({"dim": 0}, "dim is 0"),
    "kv": ({"n_kv_heads": None}, "n_kv_heads is missing"),
    "layers": ({"n_layers": 10**12}, "n_layers is 1000000000000; expected an int"),
    "more layers than tensors": ({"n_layers": 40}, "n_layers is 40; expected at most"),
    "ffn": ({"hidden_dim": 41}, "shape"),
}


@pytest.mark.parametrize(("more", "message"), REFUSED.values(), ids=REFUSED)
def test_other_params_are_refused_by_field(more, message, tiny, tmp_path):
    tensors, config = tiny
    params = mistral_params({**config, "sliding_window": None}, head_dim=6) | more
    with pytest.raises(msrnn.Error, match=message):
        converters.load(write_folder(tmp_path / "x", {"params.json": params, "consolidated.safetensors": tensors}))
