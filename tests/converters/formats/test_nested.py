"""Checkpoints with text and images: the text part is read from every spelling of tensor names."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.transformers_reference import TINY_CONFIG, float64_reference
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Mistral3Config, Mistral3ForConditionalGeneration

import converters
import msrnn
from converters.formats.nested import text_fields

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokenizer")
TOKENS = torch.randint(3, 61, (2, 21), generator=torch.Generator().manual_seed(1))
TEXT = {**TINY_CONFIG, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 7}
MODELS = {
    "gemma3": (
        Gemma3ForConditionalGeneration,
        lambda: Gemma3Config(
            text_config={**TEXT, "sliding_window": 5, "sliding_window_pattern": 2, "model_type": "gemma3_text"},
            vision_config={**VISION, "image_size": 14, "model_type": "siglip_vision_model"},
            mm_tokens_per_image=4,
            image_token_index=60,
            eos_token_id=[1, 4],
        ),
    ),
    "mistral3": (
        Mistral3ForConditionalGeneration,
        lambda: Mistral3Config(
            text_config={**TEXT, "model_type": "ministral3", "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.2}},
            vision_config={**VISION, "head_dim": 8, "image_size": 14, "model_type": "pixtral"},
            image_token_index=60,
            tie_word_embeddings=False,
        ),
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    kind, make_config = MODELS[request.param]
    torch.manual_seed(0)
    model = kind(make_config()).double().eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            if "language_model" in name or "lm_head" in name:
                x.normal_(0, 0.3) if x.ndim == 2 else x.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def cell(model):
    return converters.load(model)


def test_the_text_part_equals_transformers(model, cell, figure):
    text = model.model.language_model
    with float64_reference(text), torch.no_grad():
        hidden = text(TOKENS).last_hidden_state
    worst = (cell(TOKENS)[0] - model.lm_head(hidden)).abs().max().item()
    figure(f"{worst:.1e} from transformers in float64: the text part of {model.config.model_type}")
    assert worst <= 1e-9


@pytest.mark.parametrize(("outside", "expected"), [({}, True), ({"tie_word_embeddings": False}, False)])
@pytest.mark.parametrize("inside", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
def test_the_head_is_tied_by_the_outer_field_which_is_true_if_missing(outside, expected, inside):
    fields = text_fields({"model_type": "mistral3", "text_config": inside, **outside})
    assert fields["tie_word_embeddings"] is expected


def test_fields_outside_of_the_text_count(model, cell):
    if model.config.model_type == "gemma3":
        assert cell.config.eos_token_ids == (1, 4)
        assert cell.config.tied
        assert cell.config.windows == (5, None)
    else:
        assert not cell.config.tied
        assert cell.config.family == "ministral3"


SPELLINGS = {
    "on the hub": lambda name: name.replace("model.language_model.", "language_model.model."),
    "in memory": lambda name: name,
    "before version 4.52": lambda name: (
        f"language_model.{name}"
        if name.startswith("lm_head")
        else name.replace("model.language_model.", "language_model.model.")
    ),
    "without the head class": lambda name: name.removeprefix("model."),
    "compiled, parallel": lambda name: f"module._orig_mod.{name}",
}


@pytest.mark.parametrize("rename", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings_of_names(rename, model, cell, tmp_path):
    state = {rename(name): x for name, x in model.state_dict().items()}
    found = converters.load((state, model.config)).state_dict()
    assert found.keys() == cell.state_dict().keys()
    assert all(torch.equal(found[name], x) for name, x in cell.state_dict().items())


def test_folders_are_read_and_the_text_model_is_written(model, cell, tmp_path):
    model.save_pretrained(tmp_path / "hf")
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert any("vision" in name for name in stored)
    assert converters.config(tmp_path / "hf") == cell.config
    converters.convert(tmp_path / "hf", tmp_path / "text", to="hf")
    fields = json.loads((tmp_path / "text" / "config.json").read_text())
    assert fields["model_type"] == {"gemma3": "gemma3_text", "mistral3": "ministral3"}[model.config.model_type]
    assert torch.equal(converters.load(tmp_path / "text")(TOKENS)[0], cell(TOKENS)[0])


def test_damaged_nested_configs_are_refused(model, tmp_path):
    fields = model.config.to_dict()
    for change, message in (
        ({"text_config": None}, "text_config is None; expected an object"),
        ({"text_config": [1]}, r"text_config is \[1\]; expected an object"),
        ({"architectures": ["Gemma3ForSequenceClassification"]}, "architecture 'Gemma3ForSequenceClassification'"),
        ({"text_config": {**fields["text_config"], "model_type": "gemma3n_text"}}, "share keys and values"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is 'fp8'"),
    ):
        with pytest.raises(msrnn.Error, match=message):
            converters.load((model.state_dict(), {**fields, **change}))


def test_two_text_models_are_refused(model):
    state = model.state_dict()
    name = next(name for name in state if name.endswith("layers.0.mlp.up_proj.weight"))
    twice = {**state, name.replace("model.language_model.", "language_model.model."): state[name]}
    with pytest.raises(msrnn.Error, match=r"are both 'model\.layers\.0\.mlp\.up_proj\.weight'"):
        converters.load((twice, model.config))


def test_tensors_of_images_in_a_text_model_are_refused(tmp_path):
    from support.transformers_reference import save_folder, tiny_reference

    folder = save_folder(tiny_reference("gemma3_text", dtype=torch.float32), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "vision_tower.norm.weight": torch.zeros(24)}, folder / "model.safetensors")
    with pytest.raises(msrnn.Error, match=r"'vision_tower\.norm\.weight' is not part of this architecture"):
        converters.load(folder)
