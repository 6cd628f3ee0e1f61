"""Several writers of one path: threads, processes that are killed, and folders."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

import msrnn
from msrnn.storage.atomic import atomic_dir, atomic_file


def write(path, content="new"):
    with atomic_file(path) as staged:
        staged.write_text(content)


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
