"""Values of weights= and sources that are refused, and runs that are interrupted: no files are left."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.packed_models import SHAPES, packed_cell
from support.tiny_models import tiny_cell, tiny_decoder
from support.transformers_reference import save_folder, tiny_reference

import converters
import msrnn
from msrnn.storage.lazy_tensors import LazyTensor

pytestmark = pytest.mark.filterwarnings("ignore:the model has no tokenizer")
HF_SHAPES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 50}


@pytest.fixture
def source(tmp_path):
    return save_folder(tiny_reference(dtype=torch.float32, **HF_SHAPES), tmp_path / "source")


REFUSALS = [
    ({"weights": "int3"}, "weights is 'int3'; expected None, 'int4', 'int8', 'packed'"),
    ({"weights": np.array(["int4", "int8"])}, r"weights is array"),
    ({"weights": torch.int8}, r"weights is torch\.int8; expected None"),
    ({"weights": ["int4"]}, r"weights is \['int4'\]; expected None"),
    (
        {"weights": "packed"},
        "weights is 'packed', but the source has no matrices of type Q4_0 or Q4_1; expected 'int4' or 'int8'",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS)
def test_kinds_that_do_not_fit_are_refused(options, message, source, tmp_path):
    with pytest.raises(msrnn.Error, match=message):
        converters.load(source, **options)
    with pytest.raises(msrnn.Error, match=message):
        converters.convert(source, tmp_path / "target", **options)
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_other_refusals(source, tmp_path):
    with pytest.raises(
        msrnn.Error, match="weights is 'int4', but to is 'hf', which has float weights; expected None or to='msrnn'"
    ):
        converters.convert(source, tmp_path / "target", weights="int4", to="hf")
    packed_cell("int8", None).save(tmp_path / "packed")
    for call in (converters.load, lambda x, **options: converters.convert(x, tmp_path / "target", **options)):
        with pytest.raises(msrnn.Error, match="weights is 'packed', but the weights of the source are packed already"):
            call(tmp_path / "packed", weights="packed")
    tiny_decoder().save(tmp_path / "decoder")
    for weights in ("int4", "int8", "packed"):
        with pytest.raises(msrnn.Error, match="weights= is given for a decoder"):
            converters.convert(tmp_path / "decoder", tmp_path / "target", weights=weights)
    assert sorted(os.listdir(tmp_path)) == ["decoder", "packed", "source"]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["embed.weight", "layers.1.down.weight"])
def test_numbers_that_are_not_finite_are_refused(name, bad, tmp_path):
    cell = tiny_cell(dtype=torch.float32, **SHAPES)
    cell.get_parameter(name).view(-1)[70] = bad
    for weights in ("int4", "int8"):
        with pytest.raises(msrnn.Error, match=f"tensor '{name}' has numbers that are NaN, infinite or too large"):
            converters.load((cell.state_dict(), cell.config), weights=weights)
        with pytest.raises(msrnn.Error, match=f"tensor '{name}'"):
            converters.convert(cell, tmp_path / "target", weights=weights)
    assert os.listdir(tmp_path) == []


def test_a_group_of_numbers_that_bfloat16_cannot_hold_is_refused():
    cell = tiny_cell(dtype=torch.float32, **SHAPES)
    cell.layers[0].q.weight[0] = 3.4e38  # the range of the group, and so its scale, is 0
    with pytest.raises(msrnn.Error, match=r"'layers\.0\.q\.weight' has numbers that are NaN, infinite or too large"):
        converters.load((cell.state_dict(), cell.config), weights="int4")


def test_damaged_packed_folders_are_refused_before_they_are_dequantised(tmp_path):
    packed_cell("int4", None).save(tmp_path / "own")
    path = tmp_path / "own" / "model.safetensors"
    good = load_file(path)
    for change in (
        lambda t: t.pop("layers.0.q.zeros"),
        lambda t: t.update({"embed.codes": t["embed.codes"].flatten()}),
        lambda t: t.update({"layers.0.o.codes": t["layers.0.o.codes"].view(torch.int8)}),
        lambda t: t.update({"norm.codes": torch.zeros(64, dtype=torch.int8)}),
    ):
        tensors = dict(good)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})
        for options in ({"to": "hf"}, {"weights": "int8"}, {"weights": "int4"}, {}):
            with pytest.raises(msrnn.Error, match="tensor '"):
                converters.convert(tmp_path / "own", tmp_path / "target", **options)
    assert os.listdir(tmp_path) == ["own"]


@pytest.mark.parametrize("moment", [1, 5, 12])
@pytest.mark.parametrize("options", [{"weights": "int4"}, {"weights": "int8"}, {"to": "hf"}])
def test_ctrl_c_leaves_no_target(moment, options, source, tmp_path, monkeypatch):
    given = source
    if options == {"to": "hf"}:
        packed_cell("int4", None).save(given := tmp_path / "packed")
    before = sorted(os.listdir(tmp_path))
    reads, read = [], LazyTensor.read

    def interrupted(x):
        reads.append(x)
        if len(reads) == moment:
            raise KeyboardInterrupt
        return read(x)

    monkeypatch.setattr(LazyTensor, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converters.convert(given, tmp_path / "target", **options)
    assert len(reads) == moment
    assert sorted(os.listdir(tmp_path)) == before
