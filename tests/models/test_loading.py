"""Tests of model folders: save, load, and refusals of damaged configs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tiny_models import ROPES, random_tokens, tiny_cell

import converters
import msrnn
from msrnn.models.loading import build_frozen
from msrnn.models.registry import config_from_dict
from msrnn.storage.lazy_tensors import LazyTensor
from msrnn.storage.model_folder import VERSION

CELL = tiny_cell(dtype=torch.float32)


@pytest.fixture
def folder(tmp_path):
    CELL.save(tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_saved_cell_is_loaded(dtype, tmp_path):
    cell = tiny_cell(dtype=dtype, tied=True)
    cell.save(tmp_path / "own")
    for load in (msrnn.load, converters.load):
        again = load(tmp_path / "own")
        assert again.config == cell.config
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), cell.parameters(), strict=True))
        assert not again.training
        assert not any(p.requires_grad for p in again.parameters())
        text = random_tokens(1, 2, 5)
        assert torch.equal(again(text)[0], cell(text)[0])
        assert load(tmp_path / "own", dtype=torch.float64).embed.weight.dtype == torch.float64


@pytest.mark.parametrize("rope", ROPES.values() if isinstance(ROPES, dict) else ROPES)
def test_configs_survive_json(rope):
    config = replace(CELL.config, rope=rope, sliding_window=3, bos_token_id=1, eos_token_ids=(2, 3), family="mistral")
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a folder of this library"),
        ({"version": 1}, r"version is 1; expected 2 \(convert the model again from its source"),
        ({"width": None}, "width is None"),
        ({"width": 16.0}, "width is 16.0"),
        ({"colour": "red"}, "'colour' is not known"),
        ({"family": "banana"}, "banana"),
        ({"tied": "no"}, "tied"),
        ({"sliding_window": True}, "sliding_window is True"),
        ({"eos_token_ids": [True]}, "True"),
        ({"eos_token_ids": 3}, "eos_token_ids is 3"),
        ({"bos_token_id": 999}, "999"),
        ({"norm_eps": "small"}, "norm_eps is 'small'"),
        ({"rope": None}, "rope is None"),
        ({"rope": {"rope_type": ["x"]}}, "rope is"),
        ({"rope": {"rope_type": "spiral"}}, "spiral"),
        (
            {"rope": {"rope_type": "yarm"}},
            r"rope is {'rope_type': 'yarm'} \(did you mean 'yarn'\?\); expected a rope_type",
        ),
        ({"rope": {"rope_type": "default"}}, "'theta' is missing"),
        ({"rope": {"rope_type": "default", "theta": 9.0, "factor": 2.0}}, "'factor' is not known"),
        ({"n_layers": 3}, "missing"),
        ({"ffn_width": 8}, "shape"),
    ],
)
def test_damaged_configs_are_refused(change, message, folder):
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | change))
    with pytest.raises(msrnn.Error, match=message):
        msrnn.load(folder)


@pytest.mark.parametrize("path", [5, None, b"x", ""])
def test_folder_of_another_type_is_refused(path):
    with pytest.raises(msrnn.Error, match="expected a str or a Path"):
        msrnn.load(path)


def test_loading_does_not_import_the_compiler(folder):
    """Random numbers on the meta device would import it, some 800 modules."""
    code = f"import sys, msrnn; msrnn.load({str(folder)!r}); print('sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_missing_field_is_named(folder):
    facts = json.loads((folder / "config.json").read_text())
    del facts["head_dim"]
    (folder / "config.json").write_text(json.dumps(facts))
    with pytest.raises(msrnn.Error, match="'head_dim' is missing"):
        msrnn.load(folder)


@pytest.mark.parametrize("settings", [{"dtype": torch.int8}, {"dtype": "float32"}, {"device": "abacus"}])
def test_wrong_dtypes_and_devices_are_refused(settings, folder):
    for load in (msrnn.load, converters.load):
        with pytest.raises(msrnn.Error, match=next(iter(settings))):
            load(folder, **settings)


def test_extra_files_are_saved_after_their_folder_has_moved(folder, tmp_path):
    (folder / "tokenizer.json").write_text("{}")
    cell = msrnn.load(folder)
    folder.rename(tmp_path / "away")
    cell.save(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_text() == "{}"


def test_only_new_or_empty_targets_are_written(folder, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(msrnn.Error, match="exists already"):
        CELL.save(folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    CELL.save(tmp_path / "link")
    assert sorted(os.listdir(tmp_path / "empty")) == ["config.json", "model.safetensors"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(msrnn.Error, match="is the current folder; expected a new folder"):
        CELL.save(tmp_path / "here")
    with pytest.raises(msrnn.Error, match="cannot write"):
        CELL.save("/proc/nothing")
    assert sorted(os.listdir(tmp_path)) == ["empty", "here", "link", "own"]
    assert (tmp_path / "empty" / "model.safetensors").stat().st_mode == (tmp_path / "empty" / "config.json").stat().st_mode


def test_the_largest_tensors_are_read_first():
    """A tensor is in memory twice while it is copied, so the largest ones are read while few others are there."""
    read, shapes = [], {name: x.shape for name, x in CELL.state_dict().items()}

    def recorded(name, x):
        return LazyTensor(tuple(x.shape), x.dtype, lambda: read.append(name) or x)

    build_frozen(CELL.config, {name: recorded(name, x) for name, x in CELL.state_dict().items()})
    sizes = [shapes[name].numel() for name in read]
    assert sizes == sorted(sizes, reverse=True)
    assert sorted(read) == sorted(shapes)


def test_makefile_names_the_format_of_its_cached_model():
    """A model folder of an older format is refused, so the Makefile has to convert again when the format changes."""
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert f"$(CACHE)/format-{VERSION}/" in makefile
