"""A small checkpoint of any format, and a time limit for tests that may not end."""

import signal

import fuzzing.checkpoints
import pytest


@pytest.fixture
def made(tmp_path):
    """Return a function that writes a small checkpoint of a format and a model, and returns its folder."""

    def make(name, model="llama"):
        folder = tmp_path / "source"
        folder.mkdir()
        fuzzing.checkpoints.FORMATS[name].write(folder, model)
        return folder

    return make


@pytest.fixture
def time_limit():
    """Fail the test after a minute."""

    def stop(*_):
        raise AssertionError("no end after a minute")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
