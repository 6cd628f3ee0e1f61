"""Tests of atomic files and folders: contents, modes, targets of all kinds, power cuts, concurrent writers and kills."""

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

import msrnn
from msrnn.storage.atomic import atomic_dir, atomic_file


def write(path, content="new"):
    with atomic_file(path) as staged:
        staged.write_text(content)


def write_folder(path):
    with atomic_dir(path) as staged:
        (staged / "inner").write_text("new")


WRITERS = {"file": write, "folder": write_folder}


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("kind", WRITERS)
def test_content_is_flushed_before_the_rename_and_the_entry_after_it(kind, tmp_path, monkeypatch):
    """A power cut at any moment leaves either no file or the whole file."""
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(os.fstat(handle).st_ino) or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda old, new: calls.append("rename") or replace(old, new))
    WRITERS[kind](tmp_path / "new")
    inner = [(tmp_path / "new" / "inner").stat().st_ino] if kind == "folder" else []
    assert calls == [*inner, (tmp_path / "new").stat().st_ino, "rename", tmp_path.stat().st_ino]


@pytest.mark.parametrize("exception", [KeyError, KeyboardInterrupt, msrnn.Error])
@pytest.mark.parametrize("kind", WRITERS)
def test_an_exception_leaves_nothing(kind, exception, tmp_path):
    (tmp_path / "old").write_text("old")

    def fail(path, context):
        with context(path) as staged:
            (staged / "x" if kind == "folder" else staged).write_text("half")
            raise exception("stop")

    with pytest.raises(exception):
        fail(tmp_path / "a" / "b" / "new", atomic_dir) if kind == "folder" else fail(tmp_path / "old", atomic_file)
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o666, 0o755])
def test_a_replaced_file_keeps_its_mode_and_a_new_one_has_that_of_the_umask(bits, tmp_path):
    old = os.umask(0o027)
    try:
        write(tmp_path / "file")
        write_folder(tmp_path / "folder")
        assert (mode(tmp_path / "file"), mode(tmp_path / "folder"), mode(tmp_path / "folder/inner")) == (0o640, 0o750, 0o640)
        (tmp_path / "file").chmod(bits)
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty").chmod(bits | 0o100)
        write(tmp_path / "file", "again")
        write_folder(tmp_path / "empty")
        assert (mode(tmp_path / "file"), mode(tmp_path / "empty")) == (bits, bits | 0o100)
    finally:
        os.umask(old)


def test_a_private_file_is_private_while_it_is_written(tmp_path):
    (tmp_path / "x").touch(0o600)
    with atomic_file(tmp_path / "x") as staged:
        assert mode(staged) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_replaced_file_keeps_its_owner(tmp_path):
    (tmp_path / "x").touch(0o600)
    os.chown(tmp_path / "x", 12345, 54321)
    write(tmp_path / "x")
    assert ((tmp_path / "x").stat().st_uid, (tmp_path / "x").stat().st_gid, mode(tmp_path / "x")) == (12345, 54321, 0o600)


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("existing", "dangling"):
        (tmp_path / name).symlink_to(f"elsewhere/{name}")
    (tmp_path / "elsewhere/existing").write_text("old")
    (tmp_path / "folder").symlink_to("elsewhere/folder")
    write(tmp_path / "existing")
    write(tmp_path / "dangling")
    write_folder(tmp_path / "folder")
    for name in ("existing", "dangling", "folder"):
        assert (tmp_path / name).is_symlink()
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["dangling", "existing", "folder"]
    assert (tmp_path / "existing").read_text() == (tmp_path / "dangling").read_text() == "new"


@pytest.mark.parametrize("length", [100, 241, 242, 250, 255])
@pytest.mark.parametrize("ending", ["", ".st", "." + "x" * 90, "é"])
@pytest.mark.parametrize("kind", WRITERS)
def test_names_of_any_possible_length(kind, ending, length, tmp_path):
    name = "a" * (length - len(ending.encode())) + ending
    WRITERS[kind](tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_a_name_that_is_not_utf_8(tmp_path):
    name = os.fsdecode(b"\xff\xfe.st")
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["mkdir", "open", "fsync", "replace", "write"])
def test_a_failing_system_call_names_the_given_path(call, code, kind, tmp_path, monkeypatch):
    """The deletion of the staging file fails as well, as on a read-only file system; the first error counts."""
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("old")

    def fail(*args, **settings):
        raise OSError(code, os.strerror(code), f"{tmp_path}/.msrnn-partial-1234")

    def run():
        if call != "write":
            return WRITERS[kind](target)
        with {"file": atomic_file, "folder": atomic_dir}[kind](target):
            return fail()

    with monkeypatch.context() as patch:
        for name in ("unlink", "rmdir", *({} if call == "write" else {call})):
            patch.setattr(os, name, fail)
        if (call, kind) in {("mkdir", "file")}:  # files need no folder
            return run()
        with pytest.raises(msrnn.Error) as refusal:
            run()
    assert str(refusal.value) == f"cannot write {target} ({os.strerror(code)})"
    assert kind == "folder" or target.read_text() == "old"
    return None


def writer_threads(target, count, until):
    def loop(n):
        i = 0
        while not until.is_set():
            write(target, f"{n} {i} " + "x" * 50_000 + " end")
            i += 1

    return [threading.Thread(target=loop, args=(n,)) for n in range(count)]


def is_whole(text):
    return text.endswith(" end") and text.count("x") == 50_000


def test_threads_that_write_one_path_leave_a_whole_file_at_any_moment(tmp_path):
    target, stop, failures = tmp_path / "x.txt", threading.Event(), []
    write(target, "x" * 50_000 + " end")
    hook, threading.excepthook = threading.excepthook, failures.append
    try:
        threads = writer_threads(target, 4, stop)
        for thread in threads:
            thread.start()
        end, reads = time.monotonic() + 1.5, 0
        while time.monotonic() < end:
            assert is_whole(target.read_text())
            reads += 1
        stop.set()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = hook
    assert failures == []
    assert reads > 10
    assert os.listdir(tmp_path) == ["x.txt"]


PROCESS = """
import os, sys
from msrnn.storage.atomic import atomic_dir, atomic_file
os.getpid = lambda: 1  # two containers have the same process id
i = 0
while True:
    with atomic_file(sys.argv[1]) as staged:
        staged.write_text(f"{i} " + "x" * 50_000 + " end")
    if i < 20:
        try:
            with atomic_dir(f"{sys.argv[2]}-{i}") as folder:
                for name in "abc":
                    (folder / name).write_text("x" * 50_000 + " end")
        except ValueError as error:  # another process has written this folder
            assert "exists already" in str(error) or "not empty" in str(error), error
    i += 1
    print(i, flush=True)
"""


def test_killed_processes_leave_whole_files_and_the_next_writer_cleans_up(tmp_path):
    target, here = tmp_path / "x.txt", os.path.dirname(os.path.dirname(msrnn.__file__))
    command = [sys.executable, "-c", PROCESS, str(target), str(tmp_path / "folder")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=here) for _ in range(3)]
    try:
        for process in processes:
            process.stdout.readline()
        for process in processes:
            for _ in range(30):
                assert is_whole(target.read_text())
                time.sleep(0.005)
            process.kill()
            process.wait()
    finally:
        for process in processes:
            process.kill()
            assert process.communicate()[1] == b""
    write(target, "last")
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
    assert target.read_text() == "last"
    for path in tmp_path.glob("folder-*"):
        assert sorted(os.listdir(path)) == ["a", "b", "c"]
        assert all(is_whole(inner.read_text()) for inner in path.iterdir())


def test_one_of_several_writers_of_a_folder_succeeds(tmp_path):
    """The others are refused; no content is mixed."""
    barrier, done = threading.Barrier(6), []

    def run(n):
        with suppress(msrnn.Error), atomic_dir(tmp_path / "target") as staged:
            barrier.wait()
            for name in "ab":
                (staged / name).write_text(str(n))
            done.append(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    contents = {path.read_text() for path in (tmp_path / "target").iterdir()}
    assert len(contents) == 1
    assert sorted(done) == list(range(6))
    assert os.listdir(tmp_path) == ["target"]
