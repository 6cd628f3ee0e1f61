"""Detection of sources and formats."""

import json

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_checkpoints import gguf_file, make_checkpoint, meta_params, to_meta, write_folder
from support.transformers_reference import save_folder, tiny_reference

import converters
import msrnn


def test_truncated_and_missing_files_are_refused(tmp_path):
    folder = save_folder(tiny_reference(dtype=torch.float32), tmp_path / "source")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(msrnn.Error, match="safetensors"):
        converters.load(folder)
    weights.unlink()
    with pytest.raises(msrnn.Error, match=r"holds config\.json, generation_config\.json; expected config\.json and model"):
        converters.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(msrnn.Error, match="not JSON"):
        converters.load(folder)


@pytest.mark.parametrize("source", ["no/such/folder", "nowhere", "/nowhere/at/all", "x.gguf"])
def test_a_missing_source_is_refused(source):
    with pytest.raises(msrnn.Error, match="does not exist"):
        converters.load(source)


def test_a_revision_requires_a_hub_id(tmp_path):
    model = tiny_reference()
    for call in (converters.load, converters.config):
        for source in (save_folder(model, tmp_path), model):
            with pytest.raises(msrnn.Error, match="expected a revision with a hub id only"):
                call(source, revision="main")


def test_safetensors_are_preferred_to_pickles_and_hugging_face_to_others(tmp_path):
    hf = tmp_path / "hf"
    _, state, fields = make_checkpoint("gqa", hf)
    native = to_meta(state, fields)
    other = {name: torch.zeros_like(x) for name, x in native.items()}
    write_folder(hf, {"params.json": meta_params(fields), "consolidated.00.pth": other, "consolidated.safetensors": other})
    torch.save({name: torch.zeros_like(x) for name, x in state.items()}, hf / "pytorch_model.bin")
    assert converters.load(hf).norm.weight.any()  # Hugging Face's safetensors
    (hf / "model.safetensors").unlink()
    save_file(native, hf / "consolidated.safetensors")
    assert converters.load(hf).norm.weight.any()  # Meta's safetensors before Hugging Face's pickle
    (hf / "consolidated.safetensors").unlink()
    torch.save(state, hf / "pytorch_model.bin")
    assert converters.load(hf).norm.weight.any()
    (hf / "pytorch_model.bin").unlink()
    assert not converters.load(hf).norm.weight.any()
    (hf / "params.json").unlink()
    wanted = "expected config.json and model.safetensors or pytorch_model.bin .or an index of shards., or params.json and"
    with pytest.raises(msrnn.Error, match=f"hf holds config.json, consolidated.00.pth, generation_config.json; {wanted}"):
        converters.load(hf)
    (tmp_path / "empty").mkdir()
    with pytest.raises(msrnn.Error, match="holds nothing; expected"):
        converters.load(tmp_path / "empty")


@pytest.mark.parametrize("source", [None, 3, {}, (1, 2), ({}, None), (None, {}), torch.nn.Linear(2, 2)])
def test_other_objects_are_refused(source):
    for call in (converters.load, converters.config, lambda x: converters.convert(x, "never")):
        with pytest.raises(msrnn.Error, match=r"source is .*; expected a hub id"):
            call(source)
    with pytest.raises(msrnn.Error, match="has no tokenizer file"):
        converters.tokenizer(source)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", '{"base_model_name_or_path": "owner/base", "peft_type": "LORA"}'),
        ("adapter_config.json", "{"),
        ("adapter_model.safetensors", ""),
        ("adapter_model.bin", ""),
    ],
)
def test_an_adapter_is_refused_alone_and_with_full_weights(name, content, alone, tmp_path):
    folder = tmp_path / "x"
    folder.mkdir() if alone else save_folder(tiny_reference(dtype=torch.float32), folder)
    (folder / name).write_text(content)
    base = r" of 'owner/base'" if "owner" in content else ""
    for call in (converters.load, converters.config, lambda x: converters.convert(x, tmp_path / "never")):
        with pytest.raises(msrnn.Error, match=rf"has {name}, so it is an adapter \(LoRA\){base}; .*merge_and_unload\(\)"):
            call(folder)
    assert not (tmp_path / "never").exists()


def test_the_folder_of_a_run_names_its_last_checkpoint(tmp_path):
    for n in (9, 100, 20):
        save_folder(tiny_reference(dtype=torch.float32), tmp_path / "run" / f"checkpoint-{n}")
    with pytest.raises(msrnn.Error, match=r"did you mean .*/run/checkpoint-100\?$"):
        converters.load(tmp_path / "run")
    (tmp_path / "outer" / "original").mkdir(parents=True)
    (tmp_path / "outer" / "original" / "params.json").write_text("{}")
    (tmp_path / "outer" / "notes").mkdir()
    with pytest.raises(msrnn.Error, match=r"did you mean .*/outer/original\?$"):
        converters.load(tmp_path / "outer")


def test_a_folder_of_gguf_files(tmp_path):
    model, state, fields = make_checkpoint("gqa", tmp_path / "hf")
    gguf_file(tmp_path / "one", state, fields)
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.allclose(converters.load(tmp_path / "one")(tokens)[0], model(tokens).logits, atol=1e-3)
    (tmp_path / "one" / "config.json").write_text(json.dumps(fields))  # many repositories of GGUF files have one
    (tmp_path / "one" / "mmproj-x.gguf").touch()
    assert converters.config(tmp_path / "one") == converters.config(tmp_path / "one" / "x.gguf")
    (tmp_path / "one" / "x.gguf").rename(tmp_path / "one" / "b.Q4_0.gguf")
    (tmp_path / "one" / "a.gguf").touch()
    for call in (converters.load, converters.config, converters.tokenizer):
        with pytest.raises(msrnn.Error, match=r"one has several GGUF files; expected one of a\.gguf, b\.Q4_0\.gguf; choose"):
            call(tmp_path / "one")
    assert converters.load(tmp_path / "one" / "b.Q4_0.gguf").config.n_layers == 2
    (tmp_path / "hf" / "a.gguf").touch()  # other weights are preferred
    assert converters.load(tmp_path / "hf").config.n_layers == 2


@pytest.mark.parametrize("content", ["", "[1]", '{"lr": 0.1, "scheduler": "cosine"}'])
def test_a_params_file_of_a_training_run_is_not_read(content, tmp_path):
    """The name params.json is common; with Hugging Face's weights it means nothing."""
    save_folder(tiny_reference(dtype=torch.float32), tmp_path)
    (tmp_path / "params.json").write_text(content)
    assert converters.load(tmp_path).config == converters.config(tmp_path)
