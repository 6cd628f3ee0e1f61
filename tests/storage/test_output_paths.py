"""Tests of output paths that are refused before any work; no check leaves anything behind."""

import os
import socket
import stat

import pytest

import msrnn
from msrnn.storage.atomic import atomic_dir, atomic_file
from msrnn.storage.output_paths import check_new_folder, check_output_file, check_output_folder


def tree(folder):
    return sorted((str(path), path.lstat().st_mode, path.lstat().st_ino) for path in folder.rglob("*"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with something of every kind; it is the current folder."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket")
        os.symlink("/dev/null", "link to a device")
        os.symlink("pipe", "link to a pipe")
        os.symlink("circle", "circle")
        os.symlink("file", "link to a file")
        if os.geteuid() == 0:
            os.mknod("device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        yield tmp_path


FILES = {
    "pipe": "cannot write pipe; it is a pipe, expected a regular file or a new name",
    "link to a pipe": "it is a pipe",
    "socket": "it is a socket",
    "link to a device": "it is a device",
    "/dev/null": "cannot write /dev/null; it is a device",
    "/dev/stdout": "cannot write /dev/stdout",
    "device": "it is a device",
    "empty": "it is a folder",
    ".": "it is a folder",
    "": "path is ''; expected a str or a Path",
    "no/such": "cannot write no/such; expected a file in an existing folder",
    "new/": "expected the name of a file",
    "file/x": "cannot write file/x (Not a directory)",
    "file/x/y": "cannot write file/x/y (Not a directory)",
    "circle": "cannot write circle",
    "x" * 256: "(File name too long)",
    "a\0b": "null",
    "/proc/x": "cannot write /proc/x (No such file or directory)",
    "/sys/kernel/x": "cannot write /sys/kernel/x",
}


@pytest.mark.parametrize("path", FILES)
def test_files_that_cannot_be_written_are_refused_and_left(path, here):
    if path == "device" and os.geteuid() != 0:
        pytest.skip("only root can make devices")
    before = tree(here)
    for write in (check_output_file, lambda path: atomic_file(path).__enter__()):
        with pytest.raises(msrnn.Error) as refusal:
            write(path)
        assert FILES[path] in str(refusal.value)
        assert "partial" not in str(refusal.value)
    assert tree(here) == before


@pytest.mark.parametrize("path", [123, None, b"new", True, ["new"]])
@pytest.mark.parametrize("write", [check_output_file, check_output_folder, check_new_folder])
def test_values_that_are_no_path_are_refused(path, write):
    with pytest.raises(msrnn.Error, match="expected a str or a Path"):
        write(path)


NEW_FOLDERS = {
    "full": "full exists already; expected a new or empty folder",
    "file": "file exists already",
    "pipe": "pipe exists already",
    "/dev/null": "exists already",
    ".": "is the current folder; expected a new folder",
    "/proc": "exists already",
    "file/x": "cannot write file/x; ",
    "file/x/y": "is not a folder",
    "circle": "cannot write circle",
    "x" * 256: "(File name too long)",
    "new/" + "x" * 256 + "/y": "(File name too long)",
    "a\0b": "null",
    "/proc/x/y": "cannot write /proc/x/y (No such file or directory)",
}


@pytest.mark.parametrize("path", NEW_FOLDERS)
def test_folders_that_cannot_be_written_are_refused_and_left(path, here, monkeypatch):
    if path == ".":
        monkeypatch.chdir(here / "empty")
    before = tree(here)
    for write in (check_new_folder, lambda path: atomic_dir(path).__enter__()):
        with pytest.raises(msrnn.Error) as refusal:
            write(path)
        assert NEW_FOLDERS[path] in str(refusal.value)
    assert tree(here) == before


def test_a_mount_point_is_refused_as_a_new_folder(here, monkeypatch):
    """The rename cannot replace it."""
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(msrnn.Error, match="empty is a mount point; expected a new folder, for example "):
        check_new_folder("empty")


@pytest.mark.parametrize("path", ["empty", "full", "new", "new/a/b", ".", "full/new"])
def test_folders_to_write_into_are_accepted_and_not_created(path, here):
    before = tree(here)
    check_output_folder(path)
    assert tree(here) == before


@pytest.mark.parametrize("path", ["file", "pipe", "file/x", "new/" + "x" * 256, "/proc/x", "circle"])
def test_folders_that_cannot_be_written_into_are_refused(path, here):
    before = tree(here)
    with pytest.raises(msrnn.Error, match="cannot write"):
        check_output_folder(path)
    assert tree(here) == before


@pytest.mark.parametrize("path", ["file", "new", "link to a file", "full/x", "empty/new.png"])
def test_files_to_write_are_accepted_and_not_created(path, here):
    before = tree(here)
    check_output_file(path)
    assert tree(here) == before
    assert (here / "file").read_text() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("check", [check_output_file, check_output_folder, check_new_folder])
def test_places_without_write_permission_are_refused(check, here):
    (here / "empty").chmod(0o500)
    with pytest.raises(msrnn.Error, match="Permission denied"):
        check("empty/new")
