"""Every format of a model gives the config and, bit for bit, the parameters of its Hugging Face folder."""

import os
from dataclasses import replace

import pytest
import torch
from support.tiny_checkpoints import FAMILIES, PAIRS, SOURCES, make_checkpoint, to_msrnn
from support.transformers_reference import tiny_reference

import converters
import msrnn

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokenizer")
TOKENS = torch.randint(60, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """For each family: folder, model of transformers, tensors, config.json, and the cell of the folder."""
    found = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp("hf") / "hf"
        found[family] = (folder, *make_checkpoint(family, folder), converters.load(folder))
    return found


def assert_same_bits(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cell_of_the_folder_equals_the_model(family, models):
    _, model, _, fields, cell = models[family]
    with torch.no_grad():
        torch.testing.assert_close(cell(TOKENS)[0], model(TOKENS).logits, rtol=1e-4, atol=1e-5)
    assert cell.config.sliding_window == (5 if family == "mistral" else None)
    assert (cell.config.tied, cell.config.n_kv_heads) == (family == "tied", fields["num_key_value_heads"])


@pytest.mark.parametrize(("source", "family"), PAIRS)
def test_every_source_equals_the_folder(source, family, models, tmp_path):
    _, model, state, fields, expected = models[family]
    opened = SOURCES[source](tmp_path / "source", model, state, fields)
    cell = converters.load(opened)
    config = replace(expected.config, family="llama") if source == "gguf" else expected.config
    assert cell.config == config == converters.config(opened)
    assert_same_bits(cell, expected)
    assert torch.equal(cell(TOKENS)[0], expected(TOKENS)[0])
    assert not any(x.requires_grad for x in cell.parameters())

    converters.convert(opened, tmp_path / "own")
    own = msrnn.load(tmp_path / "own")
    assert own.config == config
    assert_same_bits(own, expected)
    converters.convert(opened, tmp_path / "hf", to="hf")
    back = type(model).from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert torch.equal(back(TOKENS).logits, model.eval()(TOKENS).logits)
    assert set(os.listdir(tmp_path)) <= {"source", "own", "hf"}


@pytest.mark.parametrize("family", FAMILIES)
def test_msrnn_names_and_config(family, models):
    *_, state, _, expected = models[family]
    assert_same_bits(converters.load((to_msrnn(state, family == "early yi"), expected.config)), expected)
    assert_same_bits(converters.load((state, expected.config)), expected)
    assert_same_bits(converters.load(expected), expected)


def test_a_live_model_is_copied():
    """Training the model later does not change the cell."""
    model = tiny_reference(dtype=torch.float32)
    cell = converters.load(model)
    before = {name: x.clone() for name, x in cell.state_dict().items()}
    storages = {x.untyped_storage().data_ptr() for x in model.state_dict().values()}
    assert not storages & {x.untyped_storage().data_ptr() for x in cell.parameters()}
    with torch.no_grad():
        for x in model.parameters():
            x.zero_()
    assert all(torch.equal(x, before[name]) for name, x in cell.state_dict().items())


def test_a_cell_is_converted(models, tmp_path):
    *_, expected = models["gqa"]
    converters.convert(expected, tmp_path / "hf", to="hf", dtype=torch.bfloat16)
    assert converters.load(tmp_path / "hf").embed.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("source", ["bin", "meta, 2 shards", "live", "gguf", "mistral"])
def test_parameters_are_converted_to_the_dtype(source, models, tmp_path):
    family = "mistral" if source == "mistral" else "gqa"
    _, model, state, fields, expected = models[family]
    opened = SOURCES[source](tmp_path / "source", model, state, fields)
    rounded = {name: x.to(torch.bfloat16) for name, x in expected.state_dict().items()}
    converters.convert(opened, tmp_path / "own", dtype=torch.bfloat16)
    for cell in (converters.load(opened, dtype=torch.bfloat16), msrnn.load(tmp_path / "own")):
        assert all(torch.equal(x, rounded[name]) for name, x in cell.state_dict().items())
