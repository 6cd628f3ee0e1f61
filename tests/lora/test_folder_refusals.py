"""Adapter folders that are refused, which leaves the cell unchanged."""

from dataclasses import replace

import pytest
import torch
from support.adapter_folders import FIRST_TENSOR, edit_config, edit_tensors
from support.refusals import refusing
from support.tiny_models import tiny_cell

from msrnn import lora
from msrnn.models.registry import build_random


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
        (lambda x: x.pop(FIRST_TENSOR), "has no lora_A for model.layers.0.self_attn.q_proj; expected both lora_A and lora_B"),
        (
            lambda x: [x.pop(name) for name in list(x) if "layers.1.self_attn.q_proj" in name],
            "has no adapter of model.layers.1.self_attn.q_proj; expected one for every module of target_modules in adapter_",
        ),
        (
            lambda x: x[FIRST_TENSOR][1].fill_(torch.nan),
            "lora_A of model.layers.0.self_attn.q_proj has NaN or infinite values; expected",
        ),
        (
            lambda x: x[FIRST_TENSOR][1].fill_(torch.inf),
            "lora_A of model.layers.0.self_attn.q_proj has NaN or infinite values; expected",
        ),
        (lambda x: x.clear(), "has no tensors; expected those of a LoRA adapter"),
        (
            lambda x: x.update({FIRST_TENSOR: torch.zeros(3, 25)}),
            "is torch.float32 (3, 25); expected (3, 24), for rank 3",
        ),
        (lambda x: x.update({FIRST_TENSOR: torch.zeros(3, 24, dtype=torch.int64)}), "is torch.int64 (3, 24); expected (3, 24)"),
        (
            lambda x: x.update({FIRST_TENSOR.replace("0", "7"): torch.zeros(1)}),
            "layers.7.self_attn.q_proj.lora_A.weight' belongs",
        ),
        (
            lambda x: x.update({FIRST_TENSOR.replace("q_proj", "qkv"): torch.zeros(1)}),
            "belongs to no linear map of this cell; expected",
        ),
        (lambda x: x.update({"transformer.h.0.lora_A.weight": torch.zeros(1)}), "belongs to no linear map of this cell"),
        (
            lambda x: x.update({FIRST_TENSOR.replace("lora_A", "lora_magnitude_vector"): torch.zeros(1)}),
            "is DoRA, which is not",
        ),
        (
            lambda x: x.update({FIRST_TENSOR.replace("A.weight", "B.bias"): torch.zeros(1)}),
            "is a bias of an adapter, which is not",
        ),
        (
            lambda x: x.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(1)}),
            "is an adapter of an embedding, which is not supported",
        ),
        (
            lambda x: x.update({FIRST_TENSOR.replace("model.layers", "model.language_model.layers"): torch.zeros(1)}),
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


def test_numbers_that_the_cell_cannot_hold_are_refused(folder):
    edit_tensors(folder, lambda x: x[FIRST_TENSOR].fill_(1e300))
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


def test_save_refuses_a_cell_without_adapters_and_an_occupied_folder(folder, tmp_path):
    with refusing("the cell has no LoRA adapters"):
        lora.save_adapter(tiny_cell(), tmp_path / "new")
    with refusing("exists already"):
        lora.save_adapter(lora.add(tiny_cell()), folder)
    phi = build_random(replace(tiny_cell().config, family="phi3"))
    with refusing("the cell is a phi3, and its Hugging Face model has q, k and v as one matrix"):
        lora.save_adapter(lora.add(phi), tmp_path / "new")
    assert not (tmp_path / "new").exists()
