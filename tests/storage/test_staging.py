"""Tests of staging paths: stale ones are deleted, those of running writers are not."""

import os
import subprocess
import sys

import pytest

from msrnn.storage import staging
from msrnn.storage.staging import PREFIX, staging_path

WRITER = """
import sys
from pathlib import Path
from msrnn.storage.staging import staging_path
with staging_path(Path(sys.argv[1]), folder=sys.argv[2] == "folder") as staged:
    print(staged, flush=True)
    sys.stdin.readline()
"""
HERE = os.path.dirname(os.path.dirname(os.path.dirname(staging.__file__)))


def names(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_staging_path_of_a_running_process_is_kept_and_that_of_a_killed_one_is_deleted(kind, tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "x", kind], cwd=HERE, **pipes) as process:
        other = process.stdout.readline().strip()
        with staging_path(tmp_path / "x", folder=False) as own:
            assert names(tmp_path) == sorted([os.path.basename(other), own.name])
        process.kill()
        process.wait()
    assert names(tmp_path) == [os.path.basename(other)]
    with staging_path(tmp_path / "unrelated", folder=False):
        pass
    assert names(tmp_path) == []


def test_only_staging_paths_are_deleted(tmp_path):
    """A full staging folder is deleted; links, pipes and other files are not opened or followed."""
    (tmp_path / f"{PREFIX}1" / "deep").mkdir(parents=True)
    (tmp_path / f"{PREFIX}1" / "deep" / "half").touch()
    (tmp_path / f"{PREFIX}2.st").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / f"{PREFIX}3").symlink_to("kept")
    (tmp_path / ".x.partial-1").touch()
    with staging_path(tmp_path / "new", folder=True):
        pass
    assert names(tmp_path) == sorted([".x.partial-1", "kept", f"{PREFIX}3"])
    assert names(tmp_path / "kept") == ["file"]


def test_staging_paths_of_another_user_are_kept(tmp_path, monkeypatch):
    """The test may run as root, so that the system call is replaced."""
    (tmp_path / f"{PREFIX}other").touch()
    opened = os.open

    def refuse(path, *args, **settings):
        if str(path).endswith("other"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **settings)

    monkeypatch.setattr(os, "open", refuse)
    with staging_path(tmp_path / "new", folder=False):
        pass
    assert names(tmp_path) == [f"{PREFIX}other"]


def test_nothing_is_deleted_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    def flock(handle, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(staging.fcntl, "flock", flock)
    (tmp_path / f"{PREFIX}other").touch()
    with staging_path(tmp_path / "new", folder=False) as staged:
        assert staged.exists()
    assert names(tmp_path) == [f"{PREFIX}other"]


@pytest.mark.parametrize("folder", [True, False])
def test_a_staging_path_that_is_deleted_before_it_is_locked_is_created_again(folder, tmp_path, monkeypatch):
    created, lock = [], staging._lock

    def interfere(handle):
        if not created:  # another process finds the path without a lock
            created.extend(tmp_path.iterdir())
            staging._remove(created[0])
        return lock(handle)

    monkeypatch.setattr(staging, "_lock", interfere)
    with staging_path(tmp_path / "new", folder=folder) as staged:
        assert staged.exists()
        assert staged != created[0]
    assert names(tmp_path) == []
