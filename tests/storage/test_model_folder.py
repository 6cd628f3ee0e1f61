"""Tests of the model folder without a model: files, names and versions."""

import json
import os

import pytest
import torch

import msrnn
from msrnn.storage.lazy_tensors import LazyTensor
from msrnn.storage.model_folder import (
    VERSION,
    open_weights,
    read_config_fields,
    read_extra_files,
    write_extra_files,
    write_model_folder,
)

CONFIG = {"family": "llama", "width": 8}


def test_a_written_folder_is_read(tmp_path):
    write_model_folder(tmp_path, CONFIG, {"x": LazyTensor.of(torch.ones(2, 3))}, {"tokenizer.json": b"{}", "notes.txt": b"n"})
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors", "notes.txt", "tokenizer.json"]
    assert read_config_fields(tmp_path) == CONFIG
    assert open_weights(tmp_path)["x"].read().equal(torch.ones(2, 3))
    assert read_extra_files(tmp_path) == {"tokenizer.json": b"{}"}


def test_empty_extra_files_are_not_read(tmp_path):
    (tmp_path / "tokenizer.json").touch()
    (tmp_path / "chat_template.jinja").write_text("x")
    assert read_extra_files(tmp_path) == {"chat_template.jinja": b"x"}


@pytest.mark.parametrize("name", ["../up", "a/b", "config.json", "model.safetensors"])
def test_other_names_of_extra_files_are_refused(name, tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(msrnn.Error, match="extra file is named"):
        write_extra_files({name: b""}, tmp_path)


def test_a_failed_write_leaves_no_config(tmp_path):
    """``config.json`` is written last, so that an incomplete folder is not taken for a model."""
    with pytest.raises(msrnn.Error, match="complex64"):
        write_model_folder(tmp_path, CONFIG, {"x": LazyTensor.of(torch.ones(1, dtype=torch.complex64))}, {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format": "msrnn", "version": VERSION - 1}, r"version is 1; expected 2 \(convert the model again from its source"),
        ({"format": "msrnn"}, "version is None; expected 2"),
        ({"format": "other", "version": VERSION}, r"converters\.load reads other kinds"),
    ],
)
def test_other_formats_and_versions_are_refused(entries, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(entries | CONFIG))
    with pytest.raises(msrnn.Error, match=message):
        read_config_fields(tmp_path)
