"""Adapter folders: the same logits after a round trip, for PEFT's files of every kind that is read."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.adapter_folders import FIRST_TENSOR, edit_config, edit_tensors
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
    assert tensors[FIRST_TENSOR].shape == (3, 24)
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


def test_a_copy_of_a_base_weight_has_to_be_that_of_the_cell(folder):
    """PEFT writes the base weight of an adapted LM head too."""
    name, expected = "base_model.model.lm_head.base_layer.weight", lora.load_adapter(tiny_cell(), folder)(TEXT)[0]
    edit_tensors(folder, lambda x: x.update({name: tiny_cell().head.weight.clone()}))
    assert lora.load_adapter(tiny_cell(), folder)(TEXT)[0].equal(expected)
    edit_tensors(folder, lambda x: x[name].add_(1))
    with refusing(f"tensor '{name}' differs from the weight of this cell; expected an adapter of this model"):
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
