"""The real weights: SmolLM2-135M-Instruct, as the GGUF that `make model` fetches and as transformers reads that GGUF."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock  # comes with huggingface-hub

import converters
from msrnn import Cell

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent that ignores SIGINT would disable the tests of ctrl-C


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Keeps a measured figure for the end of the run, where it is printed."""
    return lambda line: record_property("figure", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("passed", []):
        for name, line in report.user_properties if report.when == "call" else ():
            if name == "figure":
                terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    """The GGUF. `make test` names it, and then it has to be there; a bare pytest may do without."""
    named = os.environ.get("MSRNN_GGUF")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    path = Path(named or cache / "msrnn" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    if not path.is_file():
        (pytest.fail if named else pytest.skip)(f"the real weights are not at {path}; `make model` fetches them")
    return path


@pytest.fixture(scope="session")
def hf_folder(gguf_path: Path) -> Path:
    """The same model as a Hugging Face folder, made by transformers alone; kept beside the GGUF for the next run."""
    folder = gguf_path.with_name("SmolLM2-135M-Instruct-transformers")
    with FileLock(f"{folder}.lock"):  # tests run in several processes
        if not (folder / "model.safetensors").is_file():
            from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

            read = AutoModelForCausalLM.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32)
            for name in ("quantization_config", "_pre_quantization_dtype"):
                if hasattr(read.config, name):
                    delattr(read.config, name)
            plain = LlamaForCausalLM(read.config).to(torch.float32)
            plain.load_state_dict(read.state_dict())
            beside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
            plain.save_pretrained(beside)
            AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name).save_pretrained(beside)
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
    return folder


@pytest.fixture(scope="session")
def smollm(gguf_path: Path) -> Cell:
    """The real cell, read from the GGUF."""
    return converters.load(gguf_path)
