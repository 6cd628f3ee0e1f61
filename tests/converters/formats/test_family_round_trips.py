"""Every family from Hugging Face to msrnn and back: equal bytes, a config that transformers reads alike, equal logits."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_references import CASES
from support.transformers_reference import save_folder, tiny_reference

import converters
import msrnn
from converters.formats.hf_config import config_from_hf, config_to_hf
from msrnn.layers.rotary import LinearRope, Rope
from msrnn.models.registry import config_from_dict

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokenizer")
TOKENS = torch.randint(0, 61, (1, 21), generator=torch.Generator().manual_seed(0))
LLAMAS = {"llama": ("llama", {}), "llama, tied": ("llama", {"tie_word_embeddings": True}), "mistral": ("mistral", {})}
ROUND_TRIPS = {**CASES, **LLAMAS}
NOT_COMPARED = {"transformers_version", "architectures", "dtype", "id2label", "label2id", "_name_or_path", "pad_token_id"}
INFERRED = {"max_window_layers", "no_rope_layer_interval"}
"""Fields that count only where ``layer_types`` and ``no_rope_layers`` are missing, which are written."""


def tensor_bytes(folder):
    return {name: x.view(torch.uint8) for name, x in load_file(folder / "model.safetensors").items()}


def comparable(config):
    """Return the fields of a config of transformers; the attention factor of YaRN is given by several settings."""
    fields = {k: v for k, v in config.to_dict().items() if k not in NOT_COMPARED | INFERRED}
    rope = fields.pop("rope_parameters")
    ropes = {kind: x for kind, x in rope.items() if isinstance(x, dict)} or {"": rope}
    names = ("rope_type", "rope_theta", "factor", "llama_4_scaling_beta", "original_max_position_embeddings")
    return fields, {kind: [x.get(name) for name in names] for kind, x in ropes.items()}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*product(ROUND_TRIPS, (torch.float32, torch.bfloat16)), *((name, torch.float16) for name in LLAMAS)],
)
def test_round_trip_is_bit_exact(name, dtype, tmp_path):
    kind, fields = ROUND_TRIPS[name]
    model = tiny_reference(kind, dtype=dtype, **fields)
    source = save_folder(model, tmp_path / "source")
    converters.convert(source, tmp_path / "own")
    converters.convert(tmp_path / "own", tmp_path / "back", to="hf")
    original, back = tensor_bytes(source), tensor_bytes(tmp_path / "back")
    assert original.keys() == back.keys()
    assert all(torch.equal(original[name], back[name]) for name in original)
    attention = model.config._attn_implementation
    again = type(model).from_pretrained(tmp_path / "back", attn_implementation=attention)
    assert again.dtype == dtype
    found, expected = comparable(again.config), comparable(model.config)
    assert found[1] == expected[1]
    assert {k: v for k, v in found[0].items() if k in expected[0]} == expected[0]
    with torch.no_grad():
        first = type(model).from_pretrained(source, attn_implementation=attention)(TOKENS).logits
        assert torch.equal(first, again(TOKENS).logits)


@pytest.mark.parametrize("name", CASES)
def test_models_in_memory_are_those_of_the_folder(name, tmp_path):
    kind, fields = CASES[name]
    model = tiny_reference(kind, dtype=torch.float32, **fields)
    cell = converters.load(save_folder(model, tmp_path / "hf"))
    for source in (model, (model.state_dict(), model.config), (model.state_dict(), model.config.to_dict())):
        live = converters.load(source)
        assert live.config == cell.config
        assert all(torch.equal(x, live.state_dict()[name]) for name, x in cell.state_dict().items())
    assert config_from_dict(json.loads(json.dumps(cell.config.to_dict()))) == cell.config


@pytest.mark.parametrize("name", ["gemma2", "gemma3, layer_types, not tied", "ministral", "granite_swa", "qwen3, windows"])
def test_a_model_without_its_windows_is_read_by_transformers(name, tmp_path):
    """transformers makes the mask of the layers with a window in most of these families, also if no layer has one."""
    kind, fields = CASES[name]
    model = tiny_reference(kind, **{**fields, "layer_types": ["full_attention"] * fields["num_hidden_layers"]})
    converters.convert(save_folder(model, tmp_path / "source"), tmp_path / "back", to="hf")
    attention = model.config._attn_implementation
    first, again = (type(model).from_pretrained(tmp_path / x, attn_implementation=attention) for x in ("source", "back"))
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits, first(TOKENS).logits, rtol=0, atol=1e-12)


def read(name, **more):
    kind, fields = CASES[name]
    return replace(config_from_hf(tiny_reference(kind, **fields).config.to_dict(), {}), **more)


UNWRITABLE = {
    "two windows": (lambda: read("ministral", layer_windows=(None, 6, 6, 7)), "layer_windows has the sizes"),
    "a layer without positions": (lambda: read("qwen3", layer_ropes=(Rope(2.0), None)), "ropes .* Qwen3 cannot have"),
    "a rope for each layer": (lambda: read("gemma2", layer_ropes=(Rope(2.0),) * 4), "ropes .* Gemma 2 cannot have"),
    "windows of a family without them": (lambda: read("olmo2", sliding_window=4), "windows .* OLMo 2 cannot have"),
    "some windows of a family with the same in all": (
        lambda: read("phi3", sliding_window=None, layer_windows=(4, None)),
        "windows .* Phi-3 cannot have",
    ),
    "a softcap that transformers does not use": (
        lambda: read("gemma3, layer_types, not tied", attention_softcap=5.0),
        "attn_logit_softcapping is 5.0; expected None",
    ),
    "another rope of some layers": (
        lambda: read("granite_swa", layer_ropes=(LinearRope(2.0, 3.0), None, Rope(2.0), None, None)),
        "ropes .* Granite with windows cannot have",
    ),
    "another length": (lambda: read("ministral3", query_length=5), "original_max_position_embeddings|query_length|rope"),
}


@pytest.mark.parametrize(("make", "message"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_a_config_that_transformers_cannot_have_is_refused(make, message):
    with pytest.raises(msrnn.Error, match=message):
        config_to_hf(make(), torch.float32)


def test_a_config_that_cannot_be_written_leaves_no_files(tmp_path):
    cell = msrnn.models.registry.build_random(read("olmo2", sliding_window=4))
    with pytest.raises(msrnn.Error, match="windows"):
        converters.convert(cell, tmp_path / "hf", to="hf")
    assert not list(tmp_path.iterdir())
