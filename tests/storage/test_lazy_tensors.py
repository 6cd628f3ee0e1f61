"""The safetensors writer, against the safetensors package; and files that are whole or not there."""

import json
import os
import struct
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import msrnn
from msrnn.storage.files import new_file, new_folder
from msrnn.storage.lazy_tensors import KINDS, Unread, open_tensors, write_tensors

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda name: name != "__metadata__")


def random(shape, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 256, (*shape, kind.itemsize), generator=generator, dtype=torch.uint8)
    if kind == torch.bool:
        numbers &= 1
    return numbers.view(kind).reshape(shape)


@settings(max_examples=80, deadline=None)
@given(what=st.dictionaries(names, st.tuples(shapes, st.sampled_from(list(KINDS.values()))), max_size=6))
def test_what_is_written_is_read_by_the_package_and_by_us(what, tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    tensors = {name: random(shape, kind, n) for n, (name, (shape, kind)) in enumerate(what.items())}
    write_tensors(path, {name: Unread.of(x) for name, x in tensors.items()}, {"format": "pt", "é": "\n"})
    for found in (load_file(path), {name: x.read() for name, x in open_tensors(path).items()}):
        assert found.keys() == tensors.keys()
        for name, x in tensors.items():
            assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)
            assert bytes(found[name].reshape(-1).view(torch.uint8).tolist()) == bytes(x.reshape(-1).view(torch.uint8).tolist())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "é": "\n"}


def test_the_header_is_what_the_format_says(tmp_path):
    """Length in 8 bytes, little-endian; JSON, spaces up to a multiple of 8; then the tensors without a gap, each aligned."""
    tensors = {"odd": torch.ones(3, dtype=torch.uint8), "half": torch.ones(3, dtype=torch.bfloat16), "wide": torch.ones(2, 2)}
    write_tensors(tmp_path / "ours", {name: Unread.of(x) for name, x in tensors.items()}, {"format": "pt"})
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
        for said in sorted(
            (said for key, said in headers[-1].items() if key != "__metadata__"), key=lambda s: s["data_offsets"]
        ):
            assert said["data_offsets"][0] == end
            assert end % KINDS[said["dtype"]].itemsize == 0
            end = said["data_offsets"][1]
        assert len(data) == 8 + length + end
    assert headers[0] == headers[1]


def test_strides_views_and_gradients_are_written_as_numbers(tmp_path):
    x = torch.randn(4, 6, requires_grad=True)
    tensors = {"t": x.t(), "row": x[1], "same": x[:1].expand(3, 6)}
    write_tensors(tmp_path / "x", {name: Unread.of(x) for name, x in tensors.items()}, {})
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[name], x) for name, x in tensors.items())


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(msrnn.Error, match="complex64"):
        write_tensors(tmp_path / "x", {"x": Unread.of(torch.zeros(1, dtype=torch.complex64))}, {})
    with pytest.raises(msrnn.Error, match=r"\(3,\) was said"):
        write_tensors(tmp_path / "x", {"x": Unread((3,), torch.float32, lambda: torch.zeros(4))}, {})
    with pytest.raises(msrnn.Error, match="cannot write"):
        write_tensors(tmp_path / "x", {"x": Unread.of(torch.zeros(1, device="meta"))}, {})
    with pytest.raises(msrnn.Error, match="cannot write"):
        write_tensors(tmp_path / "no" / "x", {}, {})


def test_numbers_of_an_unknown_type_are_refused(tmp_path):
    save_file({"x": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "x")
    with pytest.raises(msrnn.Error, match="F8_E4M3"):
        open_tensors(tmp_path / "x")


def test_a_file_that_changes_between_looking_and_reading_is_noticed(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x")
    unread = open_tensors(tmp_path / "x")["x"]
    save_file({"x": torch.zeros(3)}, tmp_path / "x")
    with pytest.raises(msrnn.Error, match=r"\(3,\); torch.float32 \(2,\) was said"):
        unread.read()
    save_file({"y": torch.zeros(3)}, tmp_path / "x")
    with pytest.raises(msrnn.Error, match="safetensors"):
        unread.read()


@pytest.mark.parametrize(
    ("write", "name", "partial"), [(new_folder, "out", ".out.partial-{}"), (new_file, "a.st", ".a.partial-{}.st")]
)
def test_what_killed_runs_left_is_swept_and_what_others_write_is_not(write, name, partial, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for process in (gone.pid, os.getpid(), 2**70):
        (tmp_path / partial.format(process)).mkdir()
        (tmp_path / partial.format(process) / "half").touch()
    kept = [partial.format(os.getppid()), partial.format("x"), f".b{partial.format(gone.pid)[2:]}"]
    for other in kept:
        (tmp_path / other).touch()
    with write(tmp_path / name) as beside:
        assert beside.name == partial.format(os.getpid())
        (beside / "x").touch() if write is new_folder else beside.touch()
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, name])
