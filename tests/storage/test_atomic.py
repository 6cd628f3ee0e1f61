"""Atomic files and folders: contents, modes, links, names, power cuts and failing system calls."""

import errno
import os
import stat

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
