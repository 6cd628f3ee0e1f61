"""Tests of the safetensors reader and writer against the safetensors package."""

import json
import os
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import msrnn
from msrnn.storage.lazy_tensors import LazyTensor
from msrnn.storage.safetensors_io import SAFETENSORS_DTYPES, open_tensors, read_metadata, read_tensors, write_tensors

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda name: name != "__metadata__")


def random_tensor(shape, dtype, seed):
    """A tensor of random bytes: every bit pattern occurs, NaN included."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 256, (*shape, dtype.itemsize), generator=generator, dtype=torch.uint8)
    if dtype == torch.bool:
        numbers &= 1
    return numbers.view(dtype).reshape(shape)


def raw_bytes(x):
    return bytes(x.reshape(-1).view(torch.uint8).tolist())


def lazy(tensors):
    return {name: LazyTensor.of(x) for name, x in tensors.items()}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(cases=st.dictionaries(names, st.tuples(shapes, st.sampled_from(list(SAFETENSORS_DTYPES.values()))), max_size=6))
def test_written_tensors_are_read_by_the_package_and_by_msrnn(cases, tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    tensors = {name: random_tensor(shape, dtype, n) for n, (name, (shape, dtype)) in enumerate(cases.items())}
    write_tensors(path, lazy(tensors), {"format": "pt", "é": "\n"})
    ours = {name: x.read() for name, x in open_tensors(path).items()}
    for found in (load_file(path), ours, dict(read_tensors(path))):
        assert found.keys() == tensors.keys()
        for name, x in tensors.items():
            assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
            assert raw_bytes(found[name]) == raw_bytes(x)
    with safe_open(path, "pt") as file:
        assert file.metadata() == read_metadata(path) == {"format": "pt", "é": "\n"}


def test_the_header_equals_the_header_of_the_package(tmp_path):
    tensors = {"odd": torch.ones(3, dtype=torch.uint8), "half": torch.ones(3, dtype=torch.bfloat16), "wide": torch.ones(2, 2)}
    write_tensors(tmp_path / "ours", lazy(tensors), {"format": "pt"})
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    headers = []
    for name in ("ours", "theirs"):
        data = (tmp_path / name).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = data[8 : 8 + length]
        assert length % 8 == 0
        assert header.startswith(b"{")
        assert header.rstrip(b" ").endswith(b"}")
        headers.append(json.loads(header))
        end = 0
        entries = (entry for name, entry in headers[-1].items() if name != "__metadata__")
        for entry in sorted(entries, key=lambda entry: entry["data_offsets"]):
            assert entry["data_offsets"][0] == end
            assert end % SAFETENSORS_DTYPES[entry["dtype"]].itemsize == 0
            end = entry["data_offsets"][1]
        assert len(data) == 8 + length + end
    assert headers[0] == headers[1]


def test_transposed_and_expanded_tensors_are_written_contiguously(tmp_path):
    x = torch.randn(4, 6, requires_grad=True)
    tensors = {"t": x.t(), "row": x[1], "same": x[:1].expand(3, 6)}
    write_tensors(tmp_path / "x", lazy(tensors), {})
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[name], x) for name, x in tensors.items())


def test_tensors_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(msrnn.Error, match="complex64"):
        write_tensors(tmp_path / "x", lazy({"x": torch.zeros(1, dtype=torch.complex64)}), {})
    with pytest.raises(msrnn.Error, match="cannot write tensor 'x'; it is on the meta device"):
        write_tensors(tmp_path / "x", lazy({"x": torch.zeros(1, device="meta")}), {})


def test_a_header_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    write_tensors(tmp_path / "x", {"a" * 200: LazyTensor.of(torch.ones(2))}, {})
    size = int.from_bytes((tmp_path / "x").read_bytes()[:8], "little")
    for limit, message in ((size + 8, None), (size + 7, f"a header of {size} bytes in a file of {size + 16}")):
        monkeypatch.setattr("msrnn.storage.safetensors_io.MAX_SMALL_FILE_BYTES", limit)
        if message is None:
            assert dict(read_tensors(tmp_path / "x"))
        else:
            with pytest.raises(msrnn.Error, match=message):
                dict(read_tensors(tmp_path / "x"))


@pytest.mark.parametrize("name", [b"\xff\xfe.st", "naïve.st".encode("latin-1"), "naïve.st".encode()])
def test_a_path_that_is_not_utf_8_is_read(name, tmp_path):
    path = tmp_path / os.fsdecode(name)
    write_tensors(path, lazy({"x": torch.arange(3.0)}), {"a": "b"})
    assert open_tensors(path)["x"].read().tolist() == dict(read_tensors(path))["x"].tolist() == [0, 1, 2]
    assert read_metadata(path) == {"a": "b"}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(msrnn.Error, match="bytes; its safetensors header expects"):
        read_metadata(path)


def test_an_unsupported_dtype_is_refused(tmp_path):
    save_file({"x": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "x")
    with pytest.raises(msrnn.Error, match="F8_E4M3"):
        open_tensors(tmp_path / "x")


def test_a_file_that_changes_before_it_is_read_is_refused(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x")
    x = open_tensors(tmp_path / "x")["x"]
    save_file({"x": torch.zeros(3)}, tmp_path / "x")
    with pytest.raises(msrnn.Error, match="has changed while it was read; try again"):
        x.read()
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(msrnn.Error, match=r"cannot read .* as safetensors"):
        x.read()


def test_a_file_that_is_replaced_between_two_tensors_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, path)
    tensors = open_tensors(path)
    assert tensors["a"].read().tolist() == [1] * 4
    save_file({"a": torch.zeros(4), "b": torch.zeros(4)}, tmp_path / "new")
    os.replace(tmp_path / "new", path)
    with pytest.raises(msrnn.Error, match="has changed while it was read; try again"):
        tensors["b"].read()
