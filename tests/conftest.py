"""Fixtures of the real weights: SmolLM2-135M-Instruct as a GGUF file, as a Hugging Face folder and as a cell."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock  # comes with huggingface-hub
from hypothesis import settings

import converters
from msrnn import Cell

signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests of ctrl-C need it even if the parent ignores SIGINT
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give every test the same random numbers, in any order of the tests."""
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Record a measured figure, which is printed at the end of the run."""
    return lambda line: record_property("figure", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("passed", []):
        for name, line in report.user_properties if report.when == "call" else ():
            if name == "figure":
                terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    """Return the path of the GGUF file. If MSRNN_GGUF names it, as ``make test`` does, it has to exist; otherwise skip."""
    given = os.environ.get("MSRNN_GGUF")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    path = Path(given or cache / "msrnn" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    if not path.is_file():
        (pytest.fail if given else pytest.skip)(f"the real weights are not at {path}; `make model` fetches them")
    return path


@pytest.fixture(scope="session")
def hf_folder(gguf_path: Path) -> Path:
    """Return the same model as a Hugging Face folder that transformers wrote. It is kept next to the GGUF file."""
    folder = gguf_path.with_name("SmolLM2-135M-Instruct-transformers")
    with FileLock(f"{folder}.lock"):  # tests run in several processes
        if not (folder / "model.safetensors").is_file():
            from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

            loaded = AutoModelForCausalLM.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32)
            for name in ("quantization_config", "_pre_quantization_dtype"):
                if hasattr(loaded.config, name):
                    delattr(loaded.config, name)
            plain = LlamaForCausalLM(loaded.config).to(torch.float32)
            plain.load_state_dict(loaded.state_dict())
            staging = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
            plain.save_pretrained(staging)
            AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name).save_pretrained(staging)
            shutil.rmtree(folder, ignore_errors=True)
            staging.rename(folder)
    return folder


@pytest.fixture(scope="session")
def smollm(gguf_path: Path) -> Cell:
    """Return the cell that is loaded from the GGUF file."""
    return converters.load(gguf_path)
