"""Names of wrappers and stored buffers in checkpoints of transformers and of this library."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.refusals import refusing
from support.tiny_models import tiny_cell
from support.transformers_reference import save_folder, tiny_reference
from torch import nn

import converters


@pytest.fixture(scope="module")
def model():
    return tiny_reference(dtype=torch.float32)


@pytest.fixture(scope="module")
def expected(model):
    return converters.load(model).state_dict()


def assert_equal(source, expected):
    found = converters.load(source).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def in_layers(name):
    return name.replace(".self_attn.", "._orig_mod.self_attn.").replace(".mlp.", "._checkpoint_wrapped_module.mlp.")


WRAPPERS = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled layers": in_layers,
    "data parallel": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "both, inverted": lambda name: f"_orig_mod.module.{name}",
    "twice": lambda name: f"module.module.{name}",
    "merged by peft": lambda name: f"base_model.model.{name}",
    "Lightning": lambda name: f"model.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}",
    "DeepSpeed": lambda name: f"_forward_module.{name}",
    "without the head class": lambda name: name.removeprefix("model."),
    "all": lambda name: f"module.base_model.model.{in_layers(name)}",
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_removed(wrap, model, expected, tmp_path):
    state = {wrap(name): x for name, x in model.state_dict().items()}
    assert state.keys() != model.state_dict().keys()
    assert_equal((state, model.config), expected)
    folder = save_folder(model, tmp_path)
    save_file(state, folder / "model.safetensors")
    assert_equal(folder, expected)
    (folder / "model.safetensors").unlink()
    checkpoint = {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    torch.save(checkpoint, folder / "pytorch_model.bin")
    assert_equal(folder, expected)


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda model: nn.DataParallel(compiled(model))])
def test_live_wrappers_are_removed(wrap, model, expected):
    assert_equal(wrap(model), expected)
    cell = tiny_cell(dtype=torch.float32)
    assert_equal(wrap(cell), cell.state_dict())
    assert converters.config(wrap(cell)) == cell.config


@pytest.mark.parametrize("entry", ["model", "state_dict", "module", "model_state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_in_a_training_checkpoint_is_read(entry, zipped, model, expected, tmp_path):
    state, folder = model.state_dict(), save_folder(model, tmp_path)
    assert_equal(({entry: state, "step": 7}, model.config), expected)
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save({entry: state, "step": 7}, path, _use_new_zipfile_serialization=zipped)
    assert_equal(folder, expected)
    torch.save({entry: state, "ema": state}, path, _use_new_zipfile_serialization=zipped)
    with refusing(f"holds several state dicts, '{entry}', 'ema'; expected one"):
        converters.load(folder)
    torch.save({"ema": state}, path, _use_new_zipfile_serialization=zipped)
    with refusing("'ema' is a "):
        converters.load(folder)


def test_two_models_in_one_state_dict_are_refused(model):
    state = model.state_dict()
    twice = {**state, **{f"module.{name}": x for name, x in state.items()}}
    with refusing("tensors 'model.embed_tokens.weight' and 'module.model.embed_tokens.weight' are both"):
        converters.load((twice, model.config))
    halves = {f"module.{name}" if "layers.1" in name else name: x for name, x in state.items()}
    with refusing("have different prefixes; expected the tensors of one model"):
        converters.load((halves, model.config))
    own = tiny_cell(dtype=torch.float32)
    with refusing("names in the state dict differ only by a prefix"):
        converters.load(({**own.state_dict(), **{f"module.{k}": x for k, x in own.state_dict().items()}}, own.config))


BUFFERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3),
    "model.layers.1.self_attn.rotary_emb.cos_cached": torch.ones(1, 1, 64, 6),
    "model.layers.1.self_attn.rotary_emb.sin_cached": torch.ones(1, 1, 64, 6),
    "model.rotary_emb.inv_freq": torch.ones(3),
    "model.layers.0.self_attn.bias": torch.ones(1, 1, 64, 64).tril().bool(),
    "model.layers.0.self_attn.masked_bias": torch.tensor(-1e9),
    "model.causal_mask": torch.ones(64, 64),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_of_old_conversions_are_skipped(name, model, expected, tmp_path):
    state = {**model.state_dict(), name: BUFFERS[name]}
    assert_equal((state, model.config), expected)
    folder = save_folder(model, tmp_path)
    model.save_pretrained(folder, max_shard_size="8KB")
    (folder / "model.safetensors").unlink()
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][name] = sorted(index["weight_map"].values())[0]
    path.write_text(json.dumps(index))
    assert_equal(folder, expected)  # in the index, not in the shard
    shard = folder / index["weight_map"].pop(name)
    path.write_text(json.dumps(index))
    save_file({**load_file(shard), name: BUFFERS[name]}, shard)
    assert_equal(folder, expected)  # in the shard, not in the index


def test_an_index_may_list_a_tied_head(tmp_path):
    model = tiny_reference(dtype=torch.float32, tie_word_embeddings=True)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = sorted(index["weight_map"].values())[0]
    path.write_text(json.dumps(index))
    assert_equal(tmp_path, converters.load(model).state_dict())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with refusing("tensor 'head.weight' missing"):
        converters.load(tmp_path)


Q = "model.layers.0.self_attn.q_proj"
OTHERS = {
    "adapter": ({f"base_model.model.{Q}.lora_A.default.weight": torch.zeros(2, 24)}, "merge_and_unload()"),
    "base layer": ({f"{Q}.base_layer.weight": torch.zeros(2, 24)}, "merge_and_unload()"),
    "gptq": ({f"{Q}.qweight": torch.zeros(2, 24, dtype=torch.int32)}, "take the original model, or a GGUF file of it"),
    "bitsandbytes": ({f"{Q}.weight.absmax": torch.zeros(2)}, "take the original model, or a GGUF file of it"),
    "fp8": ({f"{Q}.weight_scale_inv": torch.zeros(2)}, "take the original model, or a GGUF file of it"),
    "bias": ({f"{Q}.bias": torch.zeros(24)}, "q_proj.bias' is not part of this architecture"),
    "value head": ({"v_head.summary.weight": torch.zeros(1, 24)}, "'v_head.summary.weight' is not part of this architecture"),
    "vision": ({"vision_tower.norm.weight": torch.zeros(24)}, "'vision_tower.norm.weight' is not part of this architecture"),
}


@pytest.mark.parametrize(("more", "message"), OTHERS.values(), ids=OTHERS)
def test_other_tensors_are_refused_with_the_next_step(more, message, model):
    with refusing(message):
        converters.load(({**model.state_dict(), **more}, model.config))


def test_a_name_table_maps_parameters_that_are_no_weight_of_a_module():
    from converters.source import NameTable

    names = NameTable({"norm": "norm"}, {"a.q": "q"}, "model.layers", {"a.q.bias": "q_bias", "a.sinks": "sinks"})
    for hf, own in (("a.q.weight", "q.weight"), ("a.q.bias", "q_bias"), ("a.sinks", "sinks")):
        assert names.to_msrnn(f"model.layers.12.{hf}") == f"layers.12.{own}"
        assert names.from_msrnn(f"layers.12.{own}") == f"model.layers.12.{hf}"
    for wrong in ("model.layers.12.a.q_bias", "model.layers.12.a.sinks.weight", "a.sinks", "model.layers.12.a.q"):
        with refusing("is not part of this architecture"):
            names.to_msrnn(wrong)
