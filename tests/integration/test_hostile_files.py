"""Damaged and malicious files that the fuzzer found, one test per kind of damage."""

import os

import pytest
import torch
from fuzzing.corruptions import safetensors_header
from support.tiny_models import tiny_cell

import converters
import msrnn
from msrnn.cli.main import main


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_pipe_in_place_of_a_file_does_not_block(name, made, time_limit):
    folder = made("own")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(msrnn.Error, match="tokenizer" if name == "tokenizer.json" else name.split(".")[0]):
        converters.tokenizer(folder) if name == "tokenizer.json" else converters.load(folder)


@pytest.mark.parametrize("target", ["/dev/zero", "/proc/self/mem", ".", "nothing", "config.json"])
def test_links_to_other_than_regular_files_are_refused(target, made, time_limit):
    folder = made("own")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(target)
    with pytest.raises(msrnn.Error, match="source"):
        converters.load(folder)
    with pytest.raises(msrnn.Error, match=r"config\.json"):
        msrnn.load(folder)


def test_tokenizer_of_gigabytes_is_not_read(made, tmp_path):
    folder = made("own")
    os.truncate(folder / "tokenizer.json", 3 << 30)
    for read in (converters.tokenizer, lambda folder: converters.convert(folder, tmp_path / "target"), msrnn.load):
        with pytest.raises(msrnn.Error, match="expected a small file"):
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
    with pytest.raises(msrnn.Error, match=message):
        converters.load(path.parent)
    assert main(["info", str(path.parent)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_number_beyond_float64_is_refused(made):
    path = made("hf", "mistral") / "config.json"
    path.write_text(path.read_text().replace("1e-05", "9" * 400))
    with pytest.raises(msrnn.Error, match="rms_norm_eps is 999"):
        converters.load(path.parent)


def test_error_text_is_one_short_printable_line():
    assert str(msrnn.Error("a\nb\0c\ud800d\u202e é世")) == r"a\nb\x00c\ud800d\u202e é世"
    long = str(msrnn.Error(f"begin {'x' * 10**6} end"))
    assert long.startswith("begin x")
    assert long.endswith("x end")
    assert len(long) < 1000


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
    with pytest.raises(msrnn.Error, match=r"tokenizer\.json"):
        converters.convert(folder, tmp_path / "target", to="hf")
    with pytest.raises(msrnn.Error, match=r"tokenizer\.json"):
        converters.tokenizer(folder)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "..", "", "config.json", "model.safetensors"])
def test_extra_file_with_a_path_is_refused(name, tmp_path):
    cell = tiny_cell()
    cell.extra_files = {name: b"x"}
    with pytest.raises(msrnn.Error, match="extra file is named"):
        cell.save(tmp_path / "here" / "target")
    with pytest.raises(msrnn.Error, match="extra file is named"):
        converters.convert(cell, tmp_path / "here" / "target", to="hf")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


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
    with pytest.raises(msrnn.Error, match=r"damaged|expected a bool"):
        msrnn.load_state(path)


def test_state_with_a_shortened_fingerprint_is_refused(tmp_path):
    cell = tiny_cell()
    state = cell.initial_state(1)
    found = state.fingerprint
    state.fingerprint = type(found)(found.signature, "float32", found.values[:-1])
    with pytest.raises(msrnn.Error, match="another model"):
        cell.step(torch.tensor([1]), state)
