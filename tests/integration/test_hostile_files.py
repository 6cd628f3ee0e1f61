"""Damaged and malicious files that the fuzzer found, one test per kind of damage."""

import json
import os
import signal
import struct
from pathlib import Path

import fuzzing.checkpoints
import pytest
import torch
from fuzzing.corruptions import gguf_header, safetensors_header
from safetensors.torch import load_file, save_file
from support.tiny_models import tiny_cell

import converters
import msrnn
from msrnn.cli.main import main


@pytest.fixture
def made(tmp_path):
    """Return a function that writes a small checkpoint of a format and a model, and returns its folder."""

    def make(name, model="llama"):
        folder = tmp_path / "source"
        folder.mkdir()
        fuzzing.checkpoints.FORMATS[name].write(folder, model)
        return folder

    return make


@pytest.fixture
def time_limit():
    """Fail the test after a minute."""

    def stop(*_):
        raise AssertionError("no end after a minute")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)


def refusing(pattern):
    return pytest.raises(msrnn.Error, match=pattern)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_pipe_in_place_of_a_file_does_not_block(name, made, time_limit):
    folder = made("own")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with refusing("tokenizer" if name == "tokenizer.json" else name.split(".")[0]):
        converters.tokenizer(folder) if name == "tokenizer.json" else converters.load(folder)


@pytest.mark.parametrize("target", ["/dev/zero", "/proc/self/mem", ".", "nothing", "config.json"])
def test_links_to_other_than_regular_files_are_refused(target, made, time_limit):
    folder = made("own")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(target)
    with refusing("source"):
        converters.load(folder)
    with refusing("config.json"):
        msrnn.load(folder)


def test_tokenizer_of_gigabytes_is_not_read(made, tmp_path):
    folder = made("own")
    os.truncate(folder / "tokenizer.json", 3 << 30)
    for read in (converters.tokenizer, lambda folder: converters.convert(folder, tmp_path / "target"), msrnn.load):
        with refusing("expected a small file"):
            read(folder)
    with pytest.warns(UserWarning, match="expected a small file"):
        converters.load(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"norm_eps": 1e-05', '"norm_eps": NaN', "NaN is not a JSON number"),
        ('"tied": false', '"tied": false, "tied": true', "'tied' occurs twice"),
        ('"n_layers": 2', '"n_layers": 1000000000', "n_layers is 1000000000; expected an int"),
        ('"vocab_size": 50', '"vocab_size": 1000000000000000', "vocab_size is 1000000000000000; expected an int"),
        ('"n_heads": 4', '"n_heads": 100000000', "heads of 6 elements"),
        ('"context_length": 64', f'"context_length": {"[" * 100000}1', "is not JSON"),
        ('"family": "llama"', '"family": "a\\nb\\ud800"', r"family is 'a\\nb\\ud800'"),
    ],
)
def test_ambiguous_or_huge_config_is_refused(old, new, message, made, time_limit, capsys):
    path = made("own") / "config.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with refusing(message):
        converters.load(path.parent)
    assert main(["info", str(path.parent)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_number_beyond_float64_is_refused(made):
    path = made("hf", "mistral") / "config.json"
    path.write_text(path.read_text().replace("1e-05", "9" * 400))
    with refusing("rms_norm_eps is 999"):
        converters.load(path.parent)


def test_error_text_is_one_short_printable_line():
    assert str(msrnn.Error("a\nb\0c\ud800d\u202e é世")) == r"a\nb\x00c\ud800d\u202e é世"
    long = str(msrnn.Error(f"begin {'x' * 10**6} end"))
    assert long.startswith("begin x")
    assert long.endswith("x end")
    assert len(long) < 1000


# Tensors.


def test_duplicate_tensor_in_safetensors_is_refused(made):
    path = made("own") / "model.safetensors"

    def twice(header):
        return f'{{"norm.weight": {json.dumps(header["norm.weight"])}, {json.dumps(header)[1:]}'

    safetensors_header.edit_header(path, twice)
    assert "norm.weight" in load_file(path)  # the safetensors package reads the last one
    with refusing(r"'norm\.weight' occurs twice"):
        converters.load(path.parent)


def test_two_gguf_tensors_with_one_offset_are_refused(made):
    path = made("gguf") / "model.gguf"
    fields = gguf_header.Layout(path.read_bytes())
    first, second = [at for what, at, _ in fields.numbers if what == "offset"][3:5]
    gguf_header.replace(path, fields, second, 8, fields.data[first : first + 8])
    with refusing("after the previous tensor"):
        converters.load(path)


@pytest.mark.parametrize("more", [b"x" * 100, b"\0" * 32])
def test_bytes_after_the_last_gguf_tensor_are_refused(more, made):
    path = made("gguf") / "model.gguf"
    path.write_bytes(path.read_bytes() + more)
    with refusing("where its last tensor ends"):
        converters.load(path)


def test_gguf_token_of_a_million_characters_is_refused(made, time_limit):
    path = made("gguf", "mistral") / "model.gguf"
    fields = gguf_header.Layout(path.read_bytes())
    at = fields.data.index(b"th", fields.data.index(b"tokenizer.ggml.tokens") + 21)
    gguf_header.replace(path, fields, at - 8, 10, struct.pack("<Q", 1_000_000) + b"x" * 1_000_000)
    with refusing("a token has 1000000 characters"):
        converters.tokenizer(path)


def test_gguf_string_of_megabytes_is_refused(made):
    path = made("gguf") / "model.gguf"
    fields = gguf_header.Layout(path.read_bytes())
    _, at, length = next(x for x in fields.texts if x[0] == "value")
    gguf_header.replace(path, fields, at - 8, 8 + length, struct.pack("<Q", 5_000_000) + b"x" * 5_000_000)
    with refusing("5000000 items; expected at most"):
        converters.load(path)


def test_float8_is_refused(tmp_path):
    state = {name: x.to(torch.float8_e4m3fn) for name, x in tiny_cell().state_dict().items()}
    with refusing("float8_e4m3fn; expected floating-point"):
        converters.load((state, tiny_cell().config))
    with refusing("dtype is torch.float8_e5m2"):
        converters.load((tiny_cell().state_dict(), tiny_cell().config), dtype=torch.float8_e5m2)


# Extra files.


def test_padding_and_truncation_of_a_tokenizer_are_switched_off(made):
    import tokenizers

    folder = made("own")
    changed = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = changed.encode("the hat").ids
    changed.enable_padding(length=2**40)
    changed.enable_truncation(1)
    changed.save(str(folder / "tokenizer.json"))
    assert converters.tokenizer(folder).encode("the hat").ids == expected


@pytest.mark.parametrize("content", ["", "[]", "\xff", "[" * 100000, '{"added_tokens": 3}', '{"added_tokens": [{"id": []}]}'])
def test_conversion_refuses_a_damaged_tokenizer(content, made, tmp_path, time_limit):
    folder = made("own")
    (folder / "tokenizer.json").write_bytes(content.encode("latin-1") or b" ")
    with refusing(r"tokenizer\.json"):
        converters.convert(folder, tmp_path / "target", to="hf")
    with refusing(r"tokenizer\.json"):
        converters.tokenizer(folder)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "..", "", "config.json", "model.safetensors"])
def test_extra_file_with_a_path_is_refused(name, tmp_path):
    cell = tiny_cell()
    cell.extra_files = {name: b"x"}
    with refusing("extra file is named"):
        cell.save(tmp_path / "here" / "target")
    with refusing("extra file is named"):
        converters.convert(cell, tmp_path / "here" / "target", to="hf")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside.weight", "layers.0/../../x.weight", "..", ""])
def test_tensor_named_like_a_path_is_refused(name, made, tmp_path):
    folder = made("own")
    save_file({**load_file(folder / "model.safetensors"), name: torch.zeros(2)}, folder / "model.safetensors")
    with refusing("not part of this model"):
        converters.convert(folder, tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]
    assert not Path("/tmp/outside.weight").exists()


# Saved states.


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("cell", '"values": [', '"values": ["NaN", '),
        ("cell", '"dtype": "', '"dtype": 3, "more": "'),
        ("cell", '"dtype": "', '"dtype": "float16", "dtype": "'),
        ("operators", '"size": 4', '"size": 4, "size": 4'),
        ("operators", '"per_head": true', '"per_head": "yes"'),
        ("operators", '"recent": null', f'"recent": {"[" * 100000}'),
        ("cell", '"values": [', f'"values": [{"9" * 400}, '),
    ],
)
def test_ambiguous_metadata_of_a_saved_state_is_refused(name, old, new, made, time_limit):
    path = made("state") / "state.safetensors"

    def change(header):
        assert old in header["__metadata__"][name]
        header["__metadata__"][name] = header["__metadata__"][name].replace(old, new)

    safetensors_header.edit_header(path, change)
    with refusing(r"damaged|expected a bool"):
        msrnn.load_state(path)


def test_state_with_a_shortened_fingerprint_is_refused(tmp_path):
    cell = tiny_cell()
    state = cell.initial_state(1)
    found = state.fingerprint
    state.fingerprint = type(found)(found.signature, "float32", found.values[:-1])
    with refusing("another model"):
        cell.step(torch.tensor([1]), state)
