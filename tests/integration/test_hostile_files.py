"""Files that the fuzzer taught us to refuse, each by its name."""

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
    """A small checkpoint of a format and a model: its folder."""

    def make(name, model="llama"):
        folder = tmp_path / "source"
        folder.mkdir()
        fuzzing.checkpoints.FORMATS[name].write(folder, model)
        return folder

    return make


@pytest.fixture
def soon():
    """Five seconds, not more."""

    def stop(*_):
        raise AssertionError("it waits")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(5)
    yield
    signal.alarm(0)


def refusing(said):
    return pytest.raises(msrnn.Error, match=said)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_in_place_of_a_file_does_not_hang(name, made, soon):
    folder = made("own")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with refusing("tokenizer" if name == "tokenizer.json" else name.split(".")[0]):
        converters.tokenizer(folder) if name == "tokenizer.json" else converters.load(folder)


@pytest.mark.parametrize("place", ["/dev/zero", "/proc/self/mem", ".", "nothing", "config.json"])
def test_links_to_what_is_no_file(place, made, soon):
    folder = made("own")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(place)
    with refusing("source"):
        converters.load(folder)
    with refusing("config.json"):
        msrnn.load(folder)


def test_a_tokenizer_of_gigabytes_is_not_read(made, tmp_path):
    folder = made("own")
    os.truncate(folder / "tokenizer.json", 3 << 30)
    for read in (converters.tokenizer, converters.load, msrnn.load):
        with refusing("expected a small file"):
            read(folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
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
def test_configs_that_would_be_read_wrongly_or_never(old, new, said, made, soon, capsys):
    path = made("own") / "config.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with refusing(said):
        converters.load(path.parent)
    assert main(["info", str(path.parent)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_number_that_no_float_holds(made):
    path = made("hf", "mistral") / "config.json"
    path.write_text(path.read_text().replace("1e-05", "9" * 400))
    with refusing("rms_norm_eps is 999"):
        converters.load(path.parent)


def test_a_refusal_is_one_sentence_whatever_it_quotes():
    assert str(msrnn.Error("a\nb\0c\ud800d\u202e é世")) == r"a\nb\x00c\ud800d\u202e é世"
    long = str(msrnn.Error(f"begin {'x' * 10**6} end"))
    assert long.startswith("begin x")
    assert long.endswith("x end")
    assert len(long) < 1000


# Tensors.


def test_a_tensor_named_twice_in_safetensors(made):
    path = made("own") / "model.safetensors"

    def twice(header):
        return f'{{"norm.weight": {json.dumps(header["norm.weight"])}, {json.dumps(header)[1:]}'

    safetensors_header.edit_header(path, twice)
    assert "norm.weight" in load_file(path)  # the package takes the last
    with refusing(r"'norm\.weight' occurs twice"):
        converters.load(path.parent)


def test_two_gguf_tensors_at_one_place(made):
    path = made("gguf") / "model.gguf"
    fields = gguf_header.Layout(path.read_bytes())
    first, second = [at for what, at, _ in fields.numbers if what == "offset"][3:5]
    gguf_header.replace(path, fields, second, 8, fields.data[first : first + 8])
    with refusing("after the one before it"):
        converters.load(path)


@pytest.mark.parametrize("more", [b"x" * 100, b"\0" * 32])
def test_bytes_after_the_last_gguf_tensor(more, made):
    path = made("gguf") / "model.gguf"
    path.write_bytes(path.read_bytes() + more)
    with refusing("where its last tensor ends"):
        converters.load(path)


def test_a_gguf_token_of_a_million_characters(made, soon):
    path = made("gguf", "mistral") / "model.gguf"
    fields = gguf_header.Layout(path.read_bytes())
    at = fields.data.index(b"th", fields.data.index(b"tokenizer.ggml.tokens") + 21)
    gguf_header.replace(path, fields, at - 8, 10, struct.pack("<Q", 1_000_000) + b"x" * 1_000_000)
    with refusing("a token has 1000000 characters"):
        converters.tokenizer(path)


def test_a_gguf_text_longer_than_any(made):
    path = made("gguf") / "model.gguf"
    fields = gguf_header.Layout(path.read_bytes())
    _, at, length = next(x for x in fields.texts if x[0] == "value")
    gguf_header.replace(path, fields, at - 8, 8 + length, struct.pack("<Q", 5_000_000) + b"x" * 5_000_000)
    with refusing("5000000 items; expected at most"):
        converters.load(path)


def test_numbers_without_arithmetic(tmp_path):
    state = {name: x.to(torch.float8_e4m3fn) for name, x in tiny_cell().state_dict().items()}
    with refusing("float8_e4m3fn; expected floating-point"):
        converters.load((state, tiny_cell().config))
    with refusing("dtype is torch.float8_e5m2"):
        converters.load((tiny_cell().state_dict(), tiny_cell().config), dtype=torch.float8_e5m2)


# What goes along.


def test_a_tokenizer_neither_pads_nor_cuts(made):
    import tokenizers

    folder = made("own")
    told = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = told.encode("the hat").ids
    told.enable_padding(length=2**40)
    told.enable_truncation(1)
    told.save(str(folder / "tokenizer.json"))
    assert converters.tokenizer(folder).encode("the hat").ids == plain


@pytest.mark.parametrize("content", ["", "[]", "\xff", "[" * 100000, '{"added_tokens": 3}', '{"added_tokens": [{"id": []}]}'])
def test_a_damaged_tokenizer_stops_a_conversion_that_needs_it(content, made, tmp_path, soon):
    folder = made("own")
    (folder / "tokenizer.json").write_bytes(content.encode("latin-1") or b" ")
    with refusing(r"tokenizer\.json"):
        converters.convert(folder, tmp_path / "target", to="hf")
    with refusing(r"tokenizer\.json"):
        converters.tokenizer(folder)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "..", "", "config.json", "model.safetensors"])
def test_nothing_that_goes_along_leads_out(name, tmp_path):
    cell = tiny_cell()
    cell.extra_files = {name: b"x"}
    with refusing("extra file is named"):
        cell.save(tmp_path / "here" / "target")
    with refusing("extra file is named"):
        converters.convert(cell, tmp_path / "here" / "target", to="hf")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside.weight", "layers.0/../../x.weight", "..", ""])
def test_no_name_of_a_tensor_leads_out(name, made, tmp_path):
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
def test_texts_in_a_saved_state_that_could_mean_two_things(name, old, new, made, soon):
    path = made("state") / "state.safetensors"

    def change(header):
        assert old in header["__metadata__"][name]
        header["__metadata__"][name] = header["__metadata__"][name].replace(old, new)

    safetensors_header.edit_header(path, change)
    with refusing(r"damaged|expected a bool"):
        msrnn.load_state(path)


def test_a_state_whose_mark_has_lost_numbers_is_another_models(tmp_path):
    cell = tiny_cell()
    state = cell.initial_state(1)
    mark = state.fingerprint
    state.fingerprint = type(mark)(mark.signature, "float32", mark.values[:-1])
    with refusing("another model"):
        cell.step(torch.tensor([1]), state)
