"""The choice weights= of load and convert: kinds, sources, refusals, and folders that are converted again."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from support.packed_models import SHAPES, dequantised, packed_cell
from support.tiny_models import assert_close, random_tokens, tiny_cell
from support.transformers_reference import save_folder, tiny_reference

import converters
import msrnn
from converters import hub
from msrnn.layers.packed.modules import PackedModule

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokenizer")
HF_SHAPES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 50}
TEXT = random_tokens(3, 2, 9)


def assert_same(a, b):
    """Compare two cells bit for bit."""
    assert a.dtype == b.dtype
    tensors, others = a.state_dict(), b.state_dict()
    assert tensors.keys() == others.keys()
    for name, x in tensors.items():
        assert x.dtype == others[name].dtype, name
        assert torch.equal(x, others[name]), name
    assert torch.equal(a(TEXT)[0], b(TEXT)[0])


@pytest.fixture
def source(tmp_path):
    return save_folder(tiny_reference(dtype=torch.float32, **HF_SHAPES), tmp_path / "source")


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_convert_and_load_give_the_same_cell(weights, dtype, source, tmp_path):
    loaded = converters.load(source, weights=weights, dtype=dtype)
    assert loaded.dtype == (dtype or torch.bfloat16)
    converters.convert(source, tmp_path / "own", weights=weights, dtype=dtype)
    loaded.save(tmp_path / "saved")
    for folder in ("own", "saved"):
        assert_same(msrnn.load(tmp_path / folder), loaded)
        assert_same(converters.load(tmp_path / folder), loaded)
    assert (
        load_file(tmp_path / "own" / "model.safetensors").keys() == load_file(tmp_path / "saved" / "model.safetensors").keys()
    )


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_models_in_memory_are_packed_like_folders(weights, source):
    expected = converters.load(source, weights=weights)
    model = tiny_reference(dtype=torch.float32, **HF_SHAPES)
    cell = converters.load(source)
    for given in (
        model,
        (model.state_dict(), model.config),
        cell,
        (cell.state_dict(), cell.config),
        torch.nn.DataParallel(cell),
    ):
        assert_same(converters.load(given, weights=weights), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_packed_cell_in_memory_is_a_source(dtype, tmp_path):
    cell = packed_cell("int4", dtype)
    for given in (cell, (cell.state_dict(), cell.config), torch.nn.DataParallel(cell)):
        assert_same(converters.load(given), cell)
    converters.convert(cell, tmp_path / "own")
    assert_same(msrnn.load(tmp_path / "own"), cell)
    assert converters.config(cell) == cell.config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_transformers_loads_the_dequantised_model(weights, dtype, tmp_path):
    from transformers import AutoModelForCausalLM

    cell = packed_cell(weights, dtype)
    cell.save(tmp_path / "own")
    converters.convert(tmp_path / "own", tmp_path / "hf", to="hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    expected = dequantised(cell, torch.float32)(TEXT)[0]
    assert_close(model(TEXT).logits, expected, atol=1e-4)
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert {x.dtype for x in stored.values()} == {torch.float32}
    assert torch.equal(stored["model.layers.1.mlp.up_proj.weight"], cell.layers[1].up.matrix.dequantise())
    converters.convert(tmp_path / "own", tmp_path / "half", to="hf", dtype=torch.bfloat16)
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.equal(x, stored[name].bfloat16()) for name, x in half.items())


def test_packed_folders_are_converted_again(tmp_path):
    cell = packed_cell("int4", torch.bfloat16)
    cell.save(tmp_path / "int4")
    converters.convert(tmp_path / "int4", tmp_path / "copy")
    assert_same(msrnn.load(tmp_path / "copy"), cell)
    converters.convert(tmp_path / "int4", tmp_path / "float32", dtype=torch.float32)
    assert_same(msrnn.load(tmp_path / "float32"), cell.to(torch.float32))
    # the same bits again: nothing is rounded twice
    converters.convert(tmp_path / "int4", tmp_path / "again", weights="int4")
    assert_same(msrnn.load(tmp_path / "again"), msrnn.load(tmp_path / "int4"))
    # other bits: the dequantised numbers are quantised
    converters.convert(tmp_path / "int4", tmp_path / "int8", weights="int8")
    plain = dequantised(packed_cell("int4"), torch.float32)
    eight = converters.load((plain.state_dict(), plain.config), weights="int8")
    found = msrnn.load(tmp_path / "int8")
    assert {module.bits for module in found.modules() if isinstance(module, PackedModule)} == {8}
    for name, module in found.named_modules():
        if isinstance(module, PackedModule) and name not in ("embed", "head"):
            assert torch.equal(module.matrix.codes, eight.get_submodule(name).matrix.codes)
    assert torch.equal(found.embed.codes, cell.embed.codes)  # had 8 bits and keeps them
    converters.convert(tmp_path / "int8", tmp_path / "back", weights="int4")
    assert_close(msrnn.load(tmp_path / "back", dtype=torch.float64)(TEXT)[0], dequantised(cell)(TEXT)[0], atol=0.3)


def test_a_packed_folder_in_another_dtype_has_the_same_numbers(tmp_path):
    cell = packed_cell("int4", torch.bfloat16)
    cell.save(tmp_path / "own")
    for load in (msrnn.load, converters.load):
        wide = load(tmp_path / "own", dtype=torch.float64)
        assert_close(wide(TEXT)[0], dequantised(cell)(TEXT)[0])
        assert load(tmp_path / "own", dtype=torch.float16).dtype == torch.float16


def test_more_bits_are_nearer_to_the_float_model():
    cell = tiny_cell(dtype=torch.float32, **SHAPES)
    exact = cell(TEXT)[0]
    errors = [
        float((converters.load(cell, weights=weights, dtype=torch.float32)(TEXT)[0] - exact).norm() / exact.norm())
        for weights in ("int8", "int4")
    ]
    assert all(a < b for a, b in pairwise([1e-4, errors[0], 0.05, errors[1], 0.5])), errors


def test_command_line(source, tmp_path, capsys):
    from msrnn.cli.main import main

    assert main(["convert", str(source), str(tmp_path / "own"), "--weights", "int4"]) == 0
    assert_same(msrnn.load(tmp_path / "own"), converters.load(source, weights="int4"))
    assert main(["convert", str(source), str(tmp_path / "x"), "--weights", "packed"]) == 1
    assert "no matrices of type Q4_0 or Q4_1" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "own"), str(tmp_path / "hf"), "--to", "hf", "--dtype", "float16"]) == 0
    assert load_file(tmp_path / "hf" / "model.safetensors")["lm_head.weight"].dtype == torch.float16


def test_a_hub_id_is_packed_like_its_folder(source, monkeypatch, tmp_path):
    fetched = []
    monkeypatch.setattr(hub, "fetch", lambda id, revision, **options: fetched.append((id, revision)) or source)
    assert_same(converters.load("owner/name", weights="int8", revision="v2"), converters.load(source, weights="int8"))
    converters.convert("owner/name", tmp_path / "own", weights="int4")
    assert_same(msrnn.load(tmp_path / "own"), converters.load(source, weights="int4"))
    assert fetched == [("owner/name", "v2"), ("owner/name", None)]
