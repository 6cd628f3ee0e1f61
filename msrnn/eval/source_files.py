"""Source files that a module depends on: those of its import statements and of the modules that its values come from.

Import statements within functions count too, also if they were not executed yet. No module is imported to find its file.
Modules of Python, of installed packages and of this library are not followed. Imports by a computed name are found only if a
value of the module comes from there.
"""

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

LIBRARY = Path(__file__).parents[1]


class _Located(NamedTuple):
    """A module that need not be imported: its name, source file, package, and the folders of its submodules."""

    name: str
    path: Path | None
    package: str
    folders: list[str] | None


def source_file(module: ModuleType) -> Path | None:
    """Return the file of a module, or None if it was not loaded from a file."""
    file = getattr(module, "__file__", None)
    return Path(file) if file and Path(file).is_file() else None


def source_files(module: ModuleType) -> set[Path]:
    """Return the files of a module and of all modules that it depends on, without installed packages."""
    start = _locate_loaded(module.__name__, module)
    waiting, seen, found = [start], {start.name}, {start.path}
    while waiting:
        now = waiting.pop()
        for name in (*_imported_names(now), *_names_of_values(now.name)):
            if name in seen:
                continue
            seen.add(name)
            other = _locate(name)
            if other is not None and not _is_installed(other):
                waiting.append(other)
                found.add(other.path)
    return {path for path in found if path is not None}


def _imported_names(module: _Located) -> Iterator[str]:
    """Yield the names that the import statements of a file may import, with the packages that contain them."""
    try:
        tree = ast.parse(module.path.read_bytes()) if module.path else ast.Module([], [])
    except (SyntaxError, ValueError):  # a compiled module
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.package)
            except ImportError:  # beyond the outermost package
                continue
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]  # a name may be that of a submodule
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _names_of_values(name: str) -> Iterator[str]:
    """Yield the names of the modules that the values of a loaded module are or come from."""
    for value in list(vars(sys.modules[name]).values()) if name in sys.modules else ():
        yield value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", None))


def _locate(name: str) -> _Located | None:
    """Return where a module is, without importing it, or None if there is no such module."""
    if (loaded := sys.modules.get(name)) is not None:
        return _locate_loaded(name, loaded)
    parent, _, _ = name.rpartition(".")
    package = _locate(parent) if parent else None
    if parent and (package is None or package.folders is None or _is_installed(package)):
        return None
    try:
        spec = PathFinder.find_spec(name, package.folders) if package else importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    path = Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None
    folders = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    return _Located(name, path, name if folders is not None else parent, folders)


def _locate_loaded(name: str, module: ModuleType) -> _Located:
    folders = list(module.__path__) if hasattr(module, "__path__") else None
    parent = name if folders is not None else name.rpartition(".")[0]
    package = getattr(module, "__package__", None)
    return _Located(name, source_file(module), parent if package is None else package, folders)


def _is_installed(module: _Located) -> bool:
    """Return True for a module of Python, of an installed package or of this library."""
    paths = [module.path] if module.path else [Path(folder) for folder in module.folders or ()]
    installed = [LIBRARY, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))]
    return all(any(path.resolve().is_relative_to(folder.resolve()) for folder in installed) for path in paths)
