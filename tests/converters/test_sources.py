"""Every source is the Hugging Face folder of the same model: the same facts, bit for bit the same parameters; in and out."""

import os
from dataclasses import replace

import pytest
import torch
from support.tiny_checkpoints import FAMILIES, PAIRS, SOURCES, make_checkpoint, to_msrnn
from support.transformers_reference import tiny_reference

import converters
import msrnn

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokenizer")  # these GGUF files have none
TOKENS = torch.randint(60, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each family's model, made once: folder, model of transformers, tensors, config.json, and our cell of the folder."""
    found = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp("hf") / "hf"
        found[family] = (folder, *make_checkpoint(family, folder), converters.load(folder))
    return found


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_the_model(family, models):
    _, model, _, facts, cell = models[family]
    with torch.no_grad():
        torch.testing.assert_close(cell(TOKENS)[0], model(TOKENS).logits, rtol=1e-4, atol=1e-5)
    assert cell.config.window == (5 if family == "mistral" else None)
    assert (cell.config.tied, cell.config.n_kv_heads) == (family == "tied", facts["num_key_value_heads"])


@pytest.mark.parametrize(("source", "family"), PAIRS)
def test_every_source_is_the_folder(source, family, models, tmp_path):
    _, model, state, facts, expected = models[family]
    thing = SOURCES[source](tmp_path / "source", model, state, facts)
    cell = converters.load(thing)
    config = replace(expected.config, family="llama") if source == "gguf" else expected.config
    assert cell.config == config == converters.config(thing)
    same(cell, expected)
    assert torch.equal(cell(TOKENS)[0], expected(TOKENS)[0])
    assert not any(x.requires_grad for x in cell.parameters())

    converters.convert(thing, tmp_path / "own")
    own = msrnn.load(tmp_path / "own")
    assert own.config == config
    same(own, expected)
    converters.convert(thing, tmp_path / "hf", to="hf")
    back = type(model).from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert torch.equal(back(TOKENS).logits, model.eval()(TOKENS).logits)
    assert set(os.listdir(tmp_path)) <= {"source", "own", "hf"}


@pytest.mark.parametrize("family", FAMILIES)
def test_our_names_and_our_config(family, models):
    *_, state, _, expected = models[family]
    same(converters.load((to_msrnn(state, family == "early yi"), expected.config)), expected)
    same(converters.load((state, expected.config)), expected)
    same(converters.load(expected), expected)


def test_a_live_model_is_copied():
    """So that training it later leaves the cell as it was, and the other way round; the tests of memory say what it costs."""
    model = tiny_reference(dtype=torch.float32)
    cell = converters.load(model)
    before = {name: x.clone() for name, x in cell.state_dict().items()}
    storages = {x.untyped_storage().data_ptr() for x in model.state_dict().values()}
    assert not storages & {x.untyped_storage().data_ptr() for x in cell.parameters()}
    with torch.no_grad():
        for x in model.parameters():
            x.zero_()
    assert all(torch.equal(x, before[name]) for name, x in cell.state_dict().items())


def test_a_cell_of_ours_goes_out(models, tmp_path):
    *_, expected = models["gqa"]
    converters.convert(expected, tmp_path / "hf", to="hf", dtype=torch.bfloat16)
    assert converters.load(tmp_path / "hf").embed.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("source", ["bin", "meta, 2 shards", "live", "gguf", "mistral"])
def test_dtypes(source, models, tmp_path):
    family = "mistral" if source == "mistral" else "gqa"
    _, model, state, facts, expected = models[family]
    thing = SOURCES[source](tmp_path / "source", model, state, facts)
    rounded = {name: x.to(torch.bfloat16) for name, x in expected.state_dict().items()}
    converters.convert(thing, tmp_path / "own", dtype=torch.bfloat16)
    for cell in (converters.load(thing, dtype=torch.bfloat16), msrnn.load(tmp_path / "own")):
        assert all(torch.equal(x, rounded[name]) for name, x in cell.state_dict().items())
