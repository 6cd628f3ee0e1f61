"""Tests of views of mapped files: what is mapped, edits, and files that are replaced, removed or larger than the memory."""

import os
import platform
import sys

import pytest
import torch
from safetensors.torch import save_file

from msrnn.storage.files import FileVersion
from msrnn.storage.lazy_tensors import LazyTensor, Location
from msrnn.storage.mapped_files import MappedFiles
from msrnn.storage.safetensors_io import open_tensors, write_tensors

TENSORS = {
    "a": torch.randn(8, 4),
    "b": torch.randn(3, 4),
    "c": torch.randn(16, 2),
    "half": torch.randn(32).bfloat16(),
    "empty": torch.randn(0, 4),
}


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {name: LazyTensor.of(x) for name, x in TENSORS.items()}, {})
    return tmp_path / "x.safetensors"


def by_offset(path):
    """Return the lazy tensors in the order of the file."""
    return dict(sorted(open_tensors(path).items(), key=lambda item: item[1].location.start))


@pytest.mark.parametrize("name", ["a", "b", "c", "half"])
def test_a_view_has_the_values_and_its_own_storage(name, path):
    (x,) = MappedFiles().view(open_tensors(path)[name])
    assert x.equal(TENSORS[name])
    assert x.dtype == TENSORS[name].dtype
    assert x.untyped_storage().nbytes() == x.nbytes


def test_adjacent_tensors_share_one_storage(path):
    stored = open_tensors(path)
    assert list(by_offset(path))[:3] == ["a", "c", "half"]
    a, c = MappedFiles().view(stored["a"], stored["c"])
    assert a.equal(TENSORS["a"])
    assert c.equal(TENSORS["c"])
    assert c.data_ptr() == a.data_ptr() + a.nbytes
    assert a.untyped_storage().data_ptr() == c.untyped_storage().data_ptr() == a.data_ptr()
    assert a.untyped_storage().nbytes() == a.nbytes + c.nbytes


@pytest.mark.parametrize("names", [["c", "a"], ["a", "half"], ["a", "a"], ["a", "b"], ["c", "half"], ["empty"], ["a", "other"]])
def test_tensors_that_are_not_adjacent_or_differ_in_dtype_are_not_mapped_together(names, path):
    stored = open_tensors(path)
    stored["other"] = LazyTensor.of(TENSORS["c"])
    assert MappedFiles().view(*(stored[name] for name in names)) is None


def test_tensors_without_a_location_are_not_mapped(path):
    stored = open_tensors(path)["a"]
    assert MappedFiles().view(LazyTensor.of(TENSORS["a"])) is None
    assert MappedFiles().view(stored.to(torch.float64)) is None
    assert MappedFiles().view(stored.to(torch.float32)) is not None
    assert MappedFiles().view(LazyTensor(stored.shape, stored.dtype, lambda: -stored.read())) is None


@pytest.mark.parametrize("shift", range(9))
def test_only_aligned_tensors_are_mapped(shift, path):
    data = path.read_bytes()
    start, stored = 8 + int.from_bytes(data[:8], "little"), open_tensors(path)["a"]
    path.write_bytes((start - 8 + shift).to_bytes(8, "little") + data[8:start] + b" " * shift + data[start:])
    moved = open_tensors(path)["a"]
    assert moved.location.start == stored.location.start + shift
    assert moved.read().equal(TENSORS["a"])
    views = MappedFiles().view(moved)
    assert views is None if shift % 4 else views[0].equal(TENSORS["a"])


def test_an_edit_reaches_neither_the_file_nor_other_mappings(path):
    before, stored = path.read_bytes(), open_tensors(path)["a"]
    files = MappedFiles()
    (first,), (again,), (other,) = files.view(stored), files.view(stored), MappedFiles().view(stored)
    first.zero_()
    assert again.eq(0).all()  # one mapping
    assert other.equal(TENSORS["a"])
    assert stored.read().equal(TENSORS["a"])
    assert path.read_bytes() == before


def test_views_survive_the_removal_of_the_file(path):
    stored = open_tensors(path)
    files = MappedFiles()
    (a,) = files.view(stored["a"])
    save_file({"a": torch.zeros(8, 4)}, path.with_name("new"))
    os.replace(path.with_name("new"), path)
    assert a.equal(TENSORS["a"])
    path.unlink()
    (c,) = files.view(stored["c"])
    del files
    assert a.equal(TENSORS["a"])
    assert c.equal(TENSORS["c"])


@pytest.mark.parametrize("change", ["replaced", "removed", "written", "longer"])
def test_a_file_that_has_changed_since_it_was_opened_is_not_mapped(change, path):
    stored, data = open_tensors(path)["a"], path.read_bytes()
    if change == "longer":
        with path.open("ab") as file:
            file.write(b"\0")
    elif change == "written":
        with path.open("r+b") as file:
            file.write(data)
        os.utime(path, ns=(1, 1))
    else:
        path.rename(path.with_name("old"))
        if change == "replaced":
            path.write_bytes(data)
    assert MappedFiles().view(stored) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems need no flag")
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the value of the flag is known from Python 3.13 on"
)
def test_a_file_larger_than_the_memory_is_mapped(tmp_path):
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    path, size = tmp_path / "sparse", 8 * memory // 4096 * 1024
    with path.open("wb") as file:
        file.truncate(size)
    with path.open("rb") as file:
        location = Location(FileVersion.of(path, file), 0)
    (x,) = MappedFiles().view(LazyTensor((size // 4,), torch.float32, Stored(location)))
    assert x[-1] == 0


class Stored:
    def __init__(self, location):
        self.location = location


def test_a_path_that_is_not_utf_8_is_mapped(path):
    odd = path.with_name(os.fsdecode(b"\xff.safetensors"))
    path.rename(odd)
    (x,) = MappedFiles().view(open_tensors(odd)["a"])
    assert x.equal(TENSORS["a"])
