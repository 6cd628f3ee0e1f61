"""Fixtures of the benchmark tests: settings with a tiny model, and a stand-in for kvpress."""

import sys
from pathlib import Path

import pytest
from support.benchmarks import save_tiny_model, tiny_bench

KVPRESS = """
from contextlib import contextmanager

class TOVAPress: pass

class DecodingPress:
    def __init__(self, press, compression_interval, target_size):
        assert isinstance(press, TOVAPress) and compression_interval == 1
        self.size = target_size

    @contextmanager
    def __call__(self, model):
        print("printed by a library")
        def evict(model, args, kwargs, output):
            more = kwargs["past_key_values"].get_seq_length() - self.size
            if more and {condition}:
                kwargs["past_key_values"].crop(-more)
        hook = model.register_forward_hook(evict, with_kwargs=True)
        yield
        hook.remove()
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def bench(folder):
    return tiny_bench(folder)


@pytest.fixture
def install_kvpress(tmp_path, monkeypatch, bench):
    """Return a function that installs a package called kvpress for this interpreter; it evicts if ``condition`` is true."""
    (tmp_path / "kvpress" / "kvpress-0.0.dist-info").mkdir(parents=True)
    (tmp_path / "kvpress" / "kvpress-0.0.dist-info" / "METADATA").write_text("Name: kvpress\nVersion: 0.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "kvpress"))
    bench.kvpress = Path(sys.executable)
    return lambda condition: (tmp_path / "kvpress" / "kvpress.py").write_text(KVPRESS.replace("{condition}", condition))
