"""Adapter folders: the same logits after a round trip, and refusals that leave the cell unchanged."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import TARGETS, adapt
from support.gguf_files import METADATA, to_gguf, write
from support.refusals import refusing
from support.tiny_models import assert_close, random_tokens, tiny_cell

import converters
import msrnn
from converters.formats import hf_families
from msrnn import lora
from msrnn.lora.names import FUSED_FAMILIES, PROJECTIONS
from msrnn.models.registry import build_random

TEXT = random_tokens(1, 2, 9)
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def folder(tmp_path):
    """The folder of an adapter of q and down with rank 3."""
    lora.save_adapter(adapt(tiny_cell(), r=3, lora_alpha=5, target_modules=("q", "down")), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_names_are_those_of_every_family():
    for family in hf_families.ALL:
        if family.family not in FUSED_FAMILIES:
            for own, name in PROJECTIONS.items():
                assert family.names.from_msrnn(f"layers.3.{own}.weight") == f"model.layers.3.{name}.weight"


def test_the_files_are_those_of_peft(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA"
    assert (fields["r"], fields["lora_alpha"], fields["target_modules"]) == (3, 5, ["down_proj", "q_proj"])
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 8
    assert tensors[FIRST].shape == (3, 24)
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"].shape == (24, 3)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": TARGETS},
        {"target_modules": ("layers.1.q", "v"), "r": 2, "lora_alpha": 7.5, "use_rslora": True, "lora_dropout": 0.25},
    ],
)
def test_a_saved_adapter_is_loaded(settings, tmp_path):
    cell = adapt(tiny_cell(), **settings)
    lora.save_adapter(cell, tmp_path / "adapter", base_model="owner/name")
    loaded = lora.load_adapter(tiny_cell(), tmp_path / "adapter")
    assert loaded(TEXT)[0].equal(cell(TEXT)[0])
    assert not any(x.requires_grad for x in loaded.parameters())
    assert [repr(x) for x in loaded.adapters.values()] == [repr(x) for x in cell.adapters.values()]
    trainable = lora.load_adapter(tiny_cell(), tmp_path / "adapter", is_trainable=True)
    assert {name for name, x in trainable.named_parameters() if x.requires_grad} == lora.adapter_parameters(cell).keys()


@torch.no_grad()
def test_a_cell_of_a_gguf_file_has_the_row_order_of_adapters(tmp_path):
    """Rows of q and k are interleaved in the file, and half-split in the cell as in the models that PEFT adapts."""
    cell = tiny_cell(dtype=torch.float32)
    path = write(tmp_path / "model.gguf", {**METADATA, "llama.rope.freq_base": 100.0}, to_gguf(cell))
    lora.save_adapter(adapt(cell, target_modules=("q", "k")), tmp_path / "adapter")
    loaded = converters.load(path)
    assert (loaded(TEXT)[0] - cell(TEXT)[0]).abs().max() > 0.01
    assert_close(lora.load_adapter(loaded, tmp_path / "adapter")(TEXT)[0], cell(TEXT)[0], 1e-4)


def test_ranks_and_scales_that_differ_are_saved_as_patterns(tmp_path):
    cell = adapt(tiny_cell(), r=3, lora_alpha=5)
    other = adapt(tiny_cell(), r=2, lora_alpha=9)
    name = "layers.1.q"
    cell.adapters[name] = cell.layers[1].q = other.adapters[name]
    lora.save_adapter(cell, tmp_path / "adapter")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"]) == (3, 5)
    key = r"model\.layers\.1\.self_attn\.q_proj"
    assert (fields["rank_pattern"], fields["alpha_pattern"]) == ({key: 2}, {key: 9})
    assert_close(lora.load_adapter(tiny_cell(), tmp_path / "adapter")(TEXT)[0], cell(TEXT)[0].detach())


def test_a_family_of_this_library_has_its_own_names(tmp_path):
    torch.manual_seed(0)
    fields = {"ffn": "relu", "ffn_width": 20, "positions": "alibi"}
    shape = {"vocab_size": 50, "width": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "context_length": 40}
    config = msrnn.models.DecoderConfig(**shape, **fields)
    cell = build_random(config).eval()
    plain = build_random(config).eval()
    plain.load_state_dict(cell.state_dict())
    adapt(cell, target_modules=("up", "head"))
    lora.save_adapter(cell, tmp_path / "adapter")
    assert "base_model.model.layers.1.up.lora_A.weight" in load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert lora.load_adapter(plain, tmp_path / "adapter")(TEXT)[0].equal(cell(TEXT)[0])


def edit_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; expected 'LORA'"),
        ({"use_dora": True}, "use_dora is True, DoRA, which is not supported; expected a plain LoRA adapter"),
        ({"bias": "all"}, "bias is 'all'; expected 'none', because trained biases of the base are not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head'], whole modules next to the adapters, which is not"),
        ({"lora_bias": True}, "lora_bias is True, biases of adapters, which is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True, transposed weights, which is not supported"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is [1], trained rows of the embedding, which is not"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is [[0, 2]], repeated layers, which is not supported"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens is [3], adapters that a token switches on, which"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base model"),
        ({"init_lora_weights": 1.5}, "init_lora_weights is 1.5, which changes"),
        ({"a_new_feature": {"on": True}}, "a_new_feature is {'on': True}, which is not supported"),
        ({"r": 4}, "lora_A of model.layers.0.self_attn.q_proj is torch.float64 (3, 24); expected (4, 24), for rank 4"),
        ({"r": "3"}, "r is '3'; expected an int from 1 to 65536"),
        ({"lora_alpha": None}, "lora_alpha is None; expected a number above 0"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'; expected a bool"),
        ({"lora_dropout": False}, "lora_dropout is False; expected a number of at least 0"),
        ({"lora_dropout": 2}, "lora_dropout is 2; expected a number of at least 0 and at most 0.99"),
        (
            {"rank_pattern": {"q_proj": 2}},
            "lora_A of model.layers.0.self_attn.q_proj is torch.float64 (3, 24); expected (2,",
        ),
        ({"rank_pattern": {"(": 2}}, "rank_pattern has '('; expected a regular expression"),
        ({"rank_pattern": {"q": "2"}}, "rank_pattern of 'q' is '2'; expected an int"),
        ({"alpha_pattern": [2]}, "alpha_pattern is [2]; expected an object"),
        (
            {"target_modules": ["q_proj", "o_proj", "down_proj"]},
            "has no adapter of model.layers.0.self_attn.o_proj; expected one",
        ),
        ({"target_modules": "all-linear"}, "has no adapter of model.layers.0.self_attn.k_proj; expected one"),
        (
            {"target_modules": ["query_key_value"]},
            "has an adapter of model.layers.0.mlp.down_proj, which target_modules in adapter_config.json do not select",
        ),
        ({"target_modules": ["q_proj"]}, "has an adapter of model.layers.0.mlp.down_proj, which target_modules"),
        ({"layers_to_transform": 0}, "has an adapter of model.layers.1.mlp.down_proj, which target_modules"),
        ({"exclude_modules": ["q_proj"]}, "has an adapter of model.layers.0.self_attn.q_proj, which target_modules"),
        ({"target_modules": {"q": 1}}, "target_modules is {'q': 1}; expected a list of names or a regular expression"),
        ({"target_modules": "("}, "target_modules is '('; expected a regular expression"),
        ({"layers_pattern": ["layers", "("]}, "layers_pattern is '('; expected a regular expression"),
        ({"layers_to_transform": "1"}, "layers_to_transform is '1'; expected an int or a list of ints"),
    ],
)
def test_adapters_of_other_kinds_are_refused(fields, message, folder):
    edit_config(folder, **fields)
    cell = tiny_cell()
    with refusing(message):
        lora.load_adapter(cell, folder)
    assert cell.state_dict().keys() == tiny_cell().state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop(FIRST), "has no lora_A for model.layers.0.self_attn.q_proj; expected both lora_A and lora_B"),
        (
            lambda x: [x.pop(name) for name in list(x) if "layers.1.self_attn.q_proj" in name],
            "has no adapter of model.layers.1.self_attn.q_proj; expected one for every module of target_modules in adapter_",
        ),
        (
            lambda x: x[FIRST][1].fill_(torch.nan),
            "lora_A of model.layers.0.self_attn.q_proj has NaN or infinite values; expected",
        ),
        (
            lambda x: x[FIRST][1].fill_(torch.inf),
            "lora_A of model.layers.0.self_attn.q_proj has NaN or infinite values; expected",
        ),
        (lambda x: x.clear(), "has no tensors; expected those of a LoRA adapter"),
        (
            lambda x: x.update({FIRST: torch.zeros(3, 25)}),
            "is torch.float32 (3, 25); expected (3, 24), for rank 3",
        ),
        (lambda x: x.update({FIRST: torch.zeros(3, 24, dtype=torch.int64)}), "is torch.int64 (3, 24); expected (3, 24)"),
        (
            lambda x: x.update({FIRST.replace("0", "7"): torch.zeros(1)}),
            "layers.7.self_attn.q_proj.lora_A.weight' belongs",
        ),
        (
            lambda x: x.update({FIRST.replace("q_proj", "qkv"): torch.zeros(1)}),
            "belongs to no linear map of this cell; expected",
        ),
        (lambda x: x.update({"transformer.h.0.lora_A.weight": torch.zeros(1)}), "belongs to no linear map of this cell"),
        (lambda x: x.update({FIRST.replace("lora_A", "lora_magnitude_vector"): torch.zeros(1)}), "is DoRA, which is not"),
        (lambda x: x.update({FIRST.replace("A.weight", "B.bias"): torch.zeros(1)}), "is a bias of an adapter, which is not"),
        (
            lambda x: x.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(1)}),
            "is an adapter of an embedding, which is not supported",
        ),
        (
            lambda x: x.update({FIRST.replace("model.layers", "model.language_model.layers"): torch.zeros(1)}),
            "occurs under two names; expected one",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message, folder):
    edit_tensors(folder, change)
    cell = tiny_cell()
    with refusing(message):
        lora.load_adapter(cell, folder)
    assert cell.state_dict().keys() == tiny_cell().state_dict().keys()


def test_a_copy_of_a_base_weight_has_to_be_that_of_the_cell(folder):
    """PEFT writes the base weight of an adapted LM head too."""
    name, expected = "base_model.model.lm_head.base_layer.weight", lora.load_adapter(tiny_cell(), folder)(TEXT)[0]
    edit_tensors(folder, lambda x: x.update({name: tiny_cell().head.weight.clone()}))
    assert lora.load_adapter(tiny_cell(), folder)(TEXT)[0].equal(expected)
    edit_tensors(folder, lambda x: x[name].add_(1))
    with refusing(f"tensor '{name}' differs from the weight of this cell; expected an adapter of this model"):
        lora.load_adapter(tiny_cell(), folder)


def test_numbers_that_the_cell_cannot_hold_are_refused(folder):
    edit_tensors(folder, lambda x: x[FIRST].fill_(1e300))
    assert lora.load_adapter(tiny_cell(), folder).dtype == torch.float64
    with refusing("lora_A of model.layers.0.self_attn.q_proj has NaN or infinite values; expected"):
        lora.load_adapter(tiny_cell(dtype=torch.float32), folder)
    edit_config(folder, lora_alpha=10**400)
    with refusing("lora_alpha is 1000"):
        lora.load_adapter(tiny_cell(), folder)


def test_missing_and_damaged_files_are_refused(folder, tmp_path):
    cell = tiny_cell()
    with refusing("is_trainable is 'yes'; expected a bool"):
        lora.load_adapter(cell, folder, is_trainable="yes")
    assert not cell.adapters
    with refusing("has no adapter_config.json; expected the folder of a LoRA adapter"):
        lora.load_adapter(tiny_cell(), tmp_path)
    with refusing("folder is 3; expected a str or a Path"):
        lora.load_adapter(tiny_cell(), 3)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with refusing("has adapter_model.bin, a pickle, which is not executed; expected adapter_model.safetensors"):
        lora.load_adapter(tiny_cell(), folder)
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    with refusing("safetensors"):
        lora.load_adapter(tiny_cell(), folder)
    (folder / "adapter_config.json").write_text("{")
    with refusing("is not JSON"):
        lora.load_adapter(tiny_cell(), folder)


def test_the_text_part_of_a_model_with_images_has_the_same_adapters(folder):
    expected = lora.load_adapter(tiny_cell(), folder)(TEXT)[0]
    for text_part in ("model.language_model.", "language_model.model."):
        edit_tensors(folder, lambda x, part=text_part: _rename(x, part))
        assert lora.load_adapter(tiny_cell(), folder)(TEXT)[0].equal(expected)
        edit_config(folder, target_modules=rf".*{text_part.replace('.', '[.]')}layers.*(q_proj|down_proj)")
        assert lora.load_adapter(tiny_cell(), folder)(TEXT)[0].equal(expected)
        edit_config(folder, target_modules=["q_proj", "down_proj"])


def test_a_file_without_target_modules_is_read(folder):
    expected = lora.load_adapter(tiny_cell(), folder)(TEXT)[0]
    edit_config(folder, target_modules=None)
    assert lora.load_adapter(tiny_cell(), folder)(TEXT)[0].equal(expected)


def _rename(tensors, part):
    for name in list(tensors):
        rest = name[name.index("layers.") :]
        tensors[f"base_model.model.{part}{rest}"] = tensors.pop(name)


def test_save_refuses_a_cell_without_adapters_and_an_occupied_folder(folder, tmp_path):
    with refusing("the cell has no LoRA adapters"):
        lora.save_adapter(tiny_cell(), tmp_path / "new")
    with refusing("exists already"):
        lora.save_adapter(lora.add(tiny_cell()), folder)
    phi = build_random(replace(tiny_cell().config, family="phi3"))
    with refusing("the cell is a phi3, and its Hugging Face model has q, k and v as one matrix"):
        lora.save_adapter(lora.add(phi), tmp_path / "new")
    assert not (tmp_path / "new").exists()
