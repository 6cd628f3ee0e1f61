"""Headers compared with those that the gguf package reads; damaged headers."""

import struct

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gguf_files import METADATA, to_gguf, write
from support.refusals import refusing

from converters.gguf.header import read_header
from converters.gguf.reader import open_checkpoint
from msrnn import Error


def test_header_equals_that_of_the_package(write_tiny):
    more = {"a.list": [1, 2, 3], "a.texts": ["x", "ü", ""], "a.flag": True, "a.real": 0.1, "a.text": "…"}
    path = write_tiny(more)
    header, reader = read_header(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    rounded = {key: float(np.float32(x)) if isinstance(x, float) else x for key, x in header.metadata.items()}
    assert rounded == fields
    assert more.items() <= header.metadata.items()
    for tensor in reader.tensors:
        stored = header.tensors[tensor.name]
        assert (stored.shape, stored.ggml_type, stored.offset) == (
            tuple(tensor.shape.tolist()[::-1]),
            tensor.tensor_type,
            tensor.data_offset,
        )
    assert len(reader.tensors) == len(header.tensors) == 2 * 9 + 3


def test_a_file_truncated_anywhere_is_refused(write_tiny, tmp_path):
    data, cut = write_tiny({"tokenizer.ggml.tokens": [str(n) for n in range(50)]}).read_bytes(), tmp_path / "cut.gguf"
    header = read_header(tmp_path / "tiny.gguf").tensors["token_embd.weight"].offset
    for length in [*range(0, header + 64, 7), len(data) - 64, len(data) // 2]:
        cut.write_bytes(data[:length])
        with pytest.raises(Error, match=r"ends inside|begins with"):
            open_checkpoint(cut)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_header_is_read_or_refused(tiny_file, flips):
    data, end_of_header, path = tiny_file
    bad = bytearray(data)
    for at, flip in flips:
        bad[int(at * end_of_header)] ^= flip
    path.write_bytes(bad)
    try:
        config = open_checkpoint(path).config
    except Error:
        return
    assert config.vocab_size == 50


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory, cell):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    write(path, {**METADATA, "tokenizer.ggml.tokens": [str(n) for n in range(50)], "llama.vocab_size": 50}, to_gguf(cell))
    return path.read_bytes(), read_header(path).tensors["token_embd.weight"].offset, path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends inside its header"),
        (b"PK\x03\x04" + bytes(40), r"begins with b'PK\x03\x04'; expected a GGUF file"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "version 50331648 (a big-endian file?); expected 2 or 3"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "version 1; expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63), "ends inside its header"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 7, 2**60), "ends inside its header"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 10, 2**64 - 1), "ends inside its header"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "k is an array of type 9"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 13), "k has a value of type 13"),
        (b"GGUF" + struct.pack("<IQQQ1s", 3, 0, 1, 1, b"\xff"), "is not UTF-8"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + struct.pack("<Q1sIB", 1, b"k", 7, 1) * 2, "k occurs twice"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 5), "tensor t has 5 axes"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + struct.pack("<Q1sIQIQ", 1, b"t", 1, 1, 0, 0) * 2, "tensor t occurs twice"),
        (b"GGUF" + struct.pack("<IQQQ17sII", 3, 0, 1, 17, b"general.alignment", 4, 3), "alignment is 3"),
    ],
)
def test_damaged_bytes_are_refused(tmp_path, data, message):
    (tmp_path / "x.gguf").write_bytes(data)
    with refusing(message):
        read_header(tmp_path / "x.gguf")


def test_a_missing_file_is_refused(tmp_path):
    with refusing("absent.gguf: cannot be read"):
        read_header(tmp_path / "absent.gguf")
