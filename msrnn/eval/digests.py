"""Digests of what a result depends on: code, model and tokenizer. A result with another digest is measured again.

The code of an operator is its source file, with the source files that it imports from, and the packages of this library that
enter a step. Installed packages and data files that an operator reads are not part of it. An operator that was not defined in
a file, as in a notebook, never has the digest of an earlier run.
"""

import hashlib
import importlib.metadata
import sys
import sysconfig
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..reductions.contract import Reduction
from ..storage.digest import digest

if TYPE_CHECKING:
    import tokenizers

LIBRARY = Path(__file__).parents[1]
COMPUTING_PACKAGES = ("cell", "decoding", "layers", "models", "recurrence", "reductions", "state")
"""Packages of this library that enter the result of a step."""


def code_digest(operator: Reduction) -> str:
    """Return 16 hex digits that change with the code of this library or of the operator's class."""
    own = [kind for kind in type(operator).__mro__ if kind.__module__.split(".")[0] not in ("msrnn", "builtins", "typing")]
    modules = [sys.modules.get(kind.__module__) for kind in own]
    if type(operator).__module__ == "builtins" or any(module is None or _source(module) is None for module in modules):
        return uuid.uuid4().hex[:16]
    files = {path for module in modules if module for path in _sources(module)}
    return digest(" ".join([_library_digest(), *(_file_digest(path) for path in sorted(files))]))


def model_digest(cell: Cell) -> str:
    """Return 16 hex digits that change with the config or with any parameter."""
    found = hashlib.sha256(repr(cell.config).encode())
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


def _source(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if file and Path(file).is_file() else None


def _sources(module: ModuleType) -> Iterator[Path]:
    """Yield the source files of a module and of the modules that its names come from, without installed packages."""
    waiting, seen = [module], {module}
    while waiting:
        now = waiting.pop()
        if (path := _source(now)) is None:
            continue
        yield path
        for value in list(vars(now).values()):
            other = value if isinstance(value, ModuleType) else sys.modules.get(str(getattr(value, "__module__", None)))
            if other is not None and other not in seen and not _is_installed(other):
                seen.add(other)
                waiting.append(other)


def _is_installed(module: ModuleType) -> bool:
    """Return True for a module of Python, of an installed package or of this library."""
    path = _source(module)
    if path is None:
        return True
    folders = [LIBRARY, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))]
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in folders)
