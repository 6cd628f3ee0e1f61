"""The formats to damage: how each is written, which file is loaded, how it is read without msrnn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import converters
import msrnn

from . import naive_readers, writers
from .naive_readers import Read


class Format(NamedTuple):
    """One format.

    Attributes:
        write: writes the model of a name into an empty folder.
        read: reads the config fields and tensors that are in a folder, without any check.
        source: the path to load within the folder.
    """

    write: Callable[[Path, str], None]
    read: Callable[[Path], Read]
    source: str = "."


FORMATS = {
    "own": Format(writers.write_own, naive_readers.read_own),
    "own-packed": Format(writers.write_packed, naive_readers.read_own),
    "hf": Format(writers.write_single, naive_readers.read_hf),
    "hf-sharded": Format(writers.write_sharded, naive_readers.read_hf),
    "bin": Format(writers.write_bin, naive_readers.read_hf),
    "bin-sharded": Format(writers.write_sharded_bin, naive_readers.read_hf),
    "bin-old": Format(writers.write_old_bin, naive_readers.read_hf),
    "mistral": Format(writers.write_mistral, naive_readers.read_meta),
    "meta": Format(writers.write_meta, naive_readers.read_meta),
    "gguf": Format(writers.write_gguf, naive_readers.read_gguf, "model.gguf"),
    "state": Format(writers.write_state, naive_readers.read_state, "state.safetensors"),
}


def load(name: str, folder: Path) -> Any:
    """Load a cell, or a state for the format ``state``."""
    source = folder / FORMATS[name].source
    return msrnn.load_state(source) if name == "state" else converters.load(source)
