"""Digests of what a result depends on: code, model and tokenizer. A result with another digest is measured again.

The code of an operator is its source file, with the source files that it imports (``source_files.py``), and the packages of
this library that enter a step. Installed packages and data files that an operator reads are not part of it. An operator that
was not defined in a file, as in a notebook, never has the digest of an earlier run.
"""

import hashlib
import importlib.metadata
import sys
import uuid
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..reductions.all_layers import AllLayers
from ..reductions.contract import Reduction
from ..reductions.head_budgets import HeadBudget
from ..storage.digest import digest
from .source_files import LIBRARY, source_file, source_files

if TYPE_CHECKING:
    import tokenizers

COMPUTING_PACKAGES = ("cell", "decoding", "layers", "models", "recurrence", "reductions", "state")
"""Packages of this library that enter the result of a step."""


def code_digest(operator: Reduction) -> str:
    """Return 16 hex digits that change with the code of this library or of the operator's class."""
    if isinstance(operator, AllLayers | HeadBudget):
        return code_digest(operator.operator)
    own = [kind for kind in type(operator).__mro__ if kind.__module__.split(".")[0] not in ("msrnn", "builtins", "typing")]
    modules = [sys.modules.get(kind.__module__) for kind in own]
    if type(operator).__module__ == "builtins" or any(module is None or source_file(module) is None for module in modules):
        return uuid.uuid4().hex[:16]
    files = {path for module in modules if module for path in source_files(module)}
    return digest(" ".join([_library_digest(), *(_file_digest(path) for path in sorted(files))]))


def model_digest(cell: Cell) -> str:
    """Return 16 hex digits that change with the config, with any parameter or with the scale of an adapter."""
    found = hashlib.sha256(repr(cell.config).encode())
    for path, adapter in cell.adapters.items():
        found.update(f"{path} {adapter.scaling!r}".encode())
    for name, x in cell.state_dict().items():
        found.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        found.update(_as_bytes(x))
    return found.hexdigest()[:16]


def tokenizer_digest(tokenizer: "tokenizers.Tokenizer") -> str:
    """Return 16 hex digits that change with the vocabulary or the settings of the tokenizer."""
    return digest(tokenizer.to_str())


def _as_bytes(x: Tensor) -> memoryview:
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


@cache
def _library_digest() -> str:
    try:
        version = importlib.metadata.version("msrnn")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        version = ""
    files = [path for package in COMPUTING_PACKAGES for path in sorted((LIBRARY / package).rglob("*.py"))]
    return digest(" ".join([version, *map(_file_digest, files)]))


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
