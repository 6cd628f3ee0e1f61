"""Tensor files, of safetensors and GGUF, that contradict themselves."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from fuzzing.corruptions import gguf_header, safetensors_header
from safetensors.torch import load_file, save_file
from support.tiny_models import tiny_cell

import converters
import msrnn


def test_duplicate_tensor_in_safetensors_is_refused(made):
    path = made("own") / "model.safetensors"

    def twice(header):
        return f'{{"norm.weight": {json.dumps(header["norm.weight"])}, {json.dumps(header)[1:]}'

    safetensors_header.edit_header(path, twice)
    assert "norm.weight" in load_file(path)  # the safetensors package reads the last one
    with pytest.raises(msrnn.Error, match=r"'norm\.weight' occurs twice"):
        converters.load(path.parent)


def test_two_gguf_tensors_with_one_offset_are_refused(made):
    path = made("gguf") / "model.gguf"
    fields = gguf_header.Layout(path.read_bytes())
    first, second = [at for what, at, _ in fields.numbers if what == "offset"][3:5]
    gguf_header.replace(path, fields, second, 8, fields.data[first : first + 8])
    with pytest.raises(msrnn.Error, match="after the previous tensor"):
        converters.load(path)


@pytest.mark.parametrize("more", [b"x" * 100, b"\0" * 32])
def test_bytes_after_the_last_gguf_tensor_are_refused(more, made):
    path = made("gguf") / "model.gguf"
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(msrnn.Error, match="where its last tensor ends"):
        converters.load(path)


def test_gguf_token_of_a_million_characters_is_refused(made, time_limit):
    path = made("gguf", "mistral") / "model.gguf"
    fields = gguf_header.Layout(path.read_bytes())
    at = fields.data.index(b"th", fields.data.index(b"tokenizer.ggml.tokens") + 21)
    gguf_header.replace(path, fields, at - 8, 10, struct.pack("<Q", 1_000_000) + b"x" * 1_000_000)
    with pytest.raises(msrnn.Error, match="a token has 1000000 characters"):
        converters.tokenizer(path)


def test_gguf_string_of_megabytes_is_refused(made):
    path = made("gguf") / "model.gguf"
    fields = gguf_header.Layout(path.read_bytes())
    _, at, length = next(x for x in fields.texts if x[0] == "value")
    gguf_header.replace(path, fields, at - 8, 8 + length, struct.pack("<Q", 5_000_000) + b"x" * 5_000_000)
    with pytest.raises(msrnn.Error, match="5000000 items; expected at most"):
        converters.load(path)


def test_float8_is_refused(tmp_path):
    state = {name: x.to(torch.float8_e4m3fn) for name, x in tiny_cell().state_dict().items()}
    with pytest.raises(msrnn.Error, match="float8_e4m3fn; expected floating-point"):
        converters.load((state, tiny_cell().config))
    with pytest.raises(msrnn.Error, match=r"dtype is torch\.float8_e5m2"):
        converters.load((tiny_cell().state_dict(), tiny_cell().config), dtype=torch.float8_e5m2)


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside.weight", "layers.0/../../x.weight", "..", ""])
def test_tensor_named_like_a_path_is_refused(name, made, tmp_path):
    folder = made("own")
    save_file({**load_file(folder / "model.safetensors"), name: torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(msrnn.Error, match="not part of this model"):
        converters.convert(folder, tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]
    assert not Path("/tmp/outside.weight").exists()
