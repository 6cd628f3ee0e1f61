"""Tests of atomic files and folders, and of strict JSON."""

import os
import subprocess
import sys

import pytest

import msrnn
from msrnn.storage import files
from msrnn.storage.files import atomic_dir, atomic_file, check_file, parse_json, read_bytes, read_json, write_json


@pytest.mark.parametrize(
    ("write", "name", "partial"), [(atomic_dir, "out", ".out.partial-{}"), (atomic_file, "a.st", ".a.partial-{}.st")]
)
def test_only_stale_staging_files_are_deleted(write, name, partial, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (dead.pid, os.getpid(), 2**70):
        (tmp_path / partial.format(process)).mkdir()
        (tmp_path / partial.format(process) / "half").touch()
    kept = [partial.format(os.getppid()), partial.format("x"), f".b{partial.format(dead.pid)[2:]}"]
    for other in kept:
        (tmp_path / other).touch()
    with write(tmp_path / name) as staged:
        assert staged.name == partial.format(os.getpid())
        (staged / "x").touch() if write is atomic_dir else staged.touch()
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, name])


def test_staging_files_of_another_users_process_are_kept(tmp_path, monkeypatch):
    def kill(process, signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    (tmp_path / ".a.partial-12345.txt").touch()
    with atomic_file(tmp_path / "a.txt") as staged:
        staged.touch()
    assert sorted(os.listdir(tmp_path)) == [".a.partial-12345.txt", "a.txt"]


@pytest.mark.parametrize("write", [atomic_dir, atomic_file])
def test_content_is_flushed_before_the_rename_and_the_entry_after_it(write, tmp_path, monkeypatch):
    """A power cut at any moment leaves either no file or the whole file."""
    calls, fsync, replace = [], files._fsync, os.replace
    monkeypatch.setattr(files, "_fsync", lambda path: calls.append(("fsync", path.name)) or fsync(path))
    monkeypatch.setattr(os, "replace", lambda old, new: calls.append(("rename", new.name)) or replace(old, new))
    with write(tmp_path / "new") as staged:
        if write is atomic_dir:
            (staged / "inner").write_text("x")
        else:
            staged.write_text("x")
    inner = [("fsync", "inner")] if write is atomic_dir else []
    assert calls == [*inner, ("fsync", staged.name), ("rename", "new"), ("fsync", tmp_path.name)]


def test_fsync_reaches_the_operating_system(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino) or fsync(handle))
    with atomic_file(tmp_path / "new") as staged:
        staged.write_text("x")
    assert flushed == [(tmp_path / "new").stat().st_ino, tmp_path.stat().st_ino]


@pytest.mark.parametrize("write", [atomic_dir, atomic_file])
def test_an_exception_leaves_the_target_unchanged(write, tmp_path):
    if write is atomic_file:
        (tmp_path / "old").write_text("old")

    def fail():
        with write(tmp_path / "old") as staged:
            (staged if write is atomic_file else staged / "x").write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert os.listdir(tmp_path) == (["old"] if write is atomic_file else [])
    assert write is atomic_dir or (tmp_path / "old").read_text() == "old"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": {"b": 1, "b": 2}}', "key 'b' occurs twice"),
        (b"[1]", "holds a list; expected a JSON object"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_text_that_is_not_a_strict_json_object_is_refused(content, message):
    with pytest.raises(msrnn.Error, match=f"here {message}|here is not JSON .{message}"):
        parse_json(content, "here")


def test_json_survives_a_file(tmp_path):
    fields = {"a": [1, 2.5, None], "é": {"b": "\n"}}
    write_json(tmp_path / "x.json", fields)
    assert read_json(tmp_path / "x.json") == fields


def test_paths_that_are_not_small_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").touch()
    (tmp_path / "file").write_text("12345")
    for path, message in {
        "empty": "it is empty",
        ".": "expected a file",
        "none": "No such file",
        "a\0b": "cannot read",
    }.items():
        with pytest.raises(msrnn.Error, match=message):
            check_file(tmp_path / path)
    monkeypatch.setattr(files, "MAX_SMALL_FILE_BYTES", 4)
    with pytest.raises(msrnn.Error, match="has 5 bytes; expected a small file, of at most 4"):
        read_bytes(tmp_path / "file")
