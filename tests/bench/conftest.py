"""Fixtures of the benchmark tests: settings with a tiny model, and stand-ins for kvpress and llama-cpp-python."""

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


LLAMA_CPP = """
import ctypes, json, os

def llama_get_logits_ith(ctx, i):
    assert i == -1
    return ctypes.cast(ctx.logits, ctypes.POINTER(ctypes.c_float))

class Llama:
    def __init__(self, path, n_ctx, n_batch, n_threads, n_threads_batch, verbose):
        print("printed by a library")
        assert open(path).read() == "GGUF"
        self.settings = [n_ctx, n_threads, n_threads_batch]
        self.n_tokens, self.ctx, self.read = 0, self, []

    def n_vocab(self):
        return {vocab}

    def eval(self, tokens):
        del self.read[self.n_tokens:]
        self.read += tokens
        self.n_tokens = len(self.read) + {more}
        json.dump([self.settings, self.read], open(os.environ["LOG"], "w"))
        self.logits = (ctypes.c_float * {vocab})(*[i == tokens[-1] for i in range({vocab})])
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


@pytest.fixture
def install_llama_cpp(tmp_path, monkeypatch, bench):
    """Return a function that installs a package called llama-cpp-python for this interpreter, and the file of its calls."""
    (tmp_path / "llama" / "llama_cpp_python-0.0.dist-info").mkdir(parents=True)
    (tmp_path / "llama" / "llama_cpp_python-0.0.dist-info" / "METADATA").write_text("Name: llama-cpp-python\nVersion: 0.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "llama"))
    monkeypatch.setenv("LOG", str(tmp_path / "log.json"))
    bench.llama_cpp, bench.gguf = Path(sys.executable), tmp_path / "model.gguf"
    bench.gguf.write_text("GGUF")

    def install(vocab=50, more=0):
        code = LLAMA_CPP.replace("{vocab}", str(vocab)).replace("{more}", str(more))
        (tmp_path / "llama" / "llama_cpp.py").write_text(code)
        return tmp_path / "log.json"

    return install
