"""Everything that writes refuses the same paths in one sentence with the given path, and keeps what is there."""

import os
import resource
import stat
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from support.tiny_chat import reply, tiny_chat
from support.tiny_models import random_tokens, tiny_cell
from support.training import train_config, words

import converters
import msrnn
from msrnn.cli.eval import save as save_report
from msrnn.diagnostics.soak import soak
from msrnn.reporting.figures import draw_attention
from msrnn.reporting.report import Report
from msrnn.reporting.sweep import Sweep
from msrnn.storage import safetensors_io
from msrnn.train.loop import train

CELL = tiny_cell()
_, STATE = CELL(random_tokens(0, 1, 7), CELL.initial_state(1, "tova:5"))
FILES = {
    "State.save": STATE.save,
    "Chat.save": lambda path: chat_with_a_turn().save(path),
    "figure": lambda path: draw_attention({"a": torch.eye(3)}, path),
}
NEW_FOLDERS = {
    "Cell.save": CELL.save,
    "converters.convert": lambda path: converters.convert(({**CELL.state_dict()}, CELL.config), path),
    "train": lambda path: train(train_config(), words(), path),
}
FOLDERS = {
    "Sweep": lambda path: Sweep(Path(path), {}),
    "soak": lambda path: soak(CELL, path, 20, "tova:5", interval=10),
    "report": lambda path: save_report(Report([], []), Path(path)),
}


@cache
def chat_with_a_turn():
    chat = tiny_chat(max_new_tokens=2)
    reply(chat, "hello the other")
    return chat


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a file and a pipe for each file ending."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("old")
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/dev/null", tmp_path / "null.png")
    return tmp_path


def refuse(write, path, reason, here):
    before = sorted((str(found), found.lstat()) for found in here.rglob("*"))
    null = os.stat("/dev/null").st_ino
    with pytest.raises(msrnn.Error, match=reason) as refusal:
        write(path)
    assert path in str(refusal.value)
    assert "partial" not in str(refusal.value)
    assert os.stat("/dev/null").st_ino == null
    after = sorted((str(found), found.lstat()) for found in here.rglob("*"))
    assert [(name, found.st_ino, found.st_mode, found.st_mtime) for name, found in after if name != str(here)] == [
        (name, found.st_ino, found.st_mode, found.st_mtime) for name, found in before if name != str(here)
    ]


LONG = "x" * 252 + ".png"


@pytest.mark.parametrize("path", ["pipe.png", "null.png", "no/x.png", "file/x.png", LONG, "/sys/kernel/x.png", "/proc/x.png"])
@pytest.mark.parametrize("name", FILES)
def test_writers_of_files(name, path, here):
    refuse(FILES[name], path, "cannot write", here)


@pytest.mark.parametrize("path", ["file", "pipe.png", "file/x", "x" * 256, "new/" + "x" * 256, "/sys/kernel/x", "/proc/x/y"])
@pytest.mark.parametrize("name", [*NEW_FOLDERS, *FOLDERS])
def test_writers_of_folders(name, path, here):
    refuse({**NEW_FOLDERS, **FOLDERS}[name], path, "cannot write|cannot read|exists already", here)


@contextmanager
def full_disk():
    """A limit on the size of files fails as a full disk does, in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_keeps_the_old_file(name, here):
    FILES[name]("x.png")
    old = (here / "x.png").read_bytes()
    (here / "x.png").chmod(0o600)
    with full_disk(), pytest.raises(msrnn.Error, match=r"^cannot write x.png \(File too large\)$"):
        FILES[name]("x.png")
    assert (here / "x.png").read_bytes() == old
    FILES[name]("x.png")
    assert stat.S_IMODE((here / "x.png").stat().st_mode) == 0o600
    assert sorted(os.listdir(here)) == ["file", "null.png", "pipe.png", "x.png"]


@pytest.mark.parametrize("name", NEW_FOLDERS)
def test_a_full_disk_leaves_no_folder(name, here):
    with full_disk(), pytest.raises(msrnn.Error, match=r"^cannot write a/b/c \(File too large\)$"):
        NEW_FOLDERS[name]("a/b/c")
    assert sorted(os.listdir(here)) == ["file", "null.png", "pipe.png"]


@pytest.mark.parametrize("name", ["State.save", "Chat.save"])
def test_a_saved_state_appears_when_it_is_complete(name, here, monkeypatch):
    """At every write the old content is still under the name."""
    FILES[name]("x.st")
    old, seen, write = (here / "x.st").read_bytes(), [], safetensors_io._write_bytes
    monkeypatch.setattr(safetensors_io, "_write_bytes", lambda *args: (seen.append((here / "x.st").read_bytes()), write(*args)))
    FILES[name]("x.st")
    assert set(seen) == {old}
