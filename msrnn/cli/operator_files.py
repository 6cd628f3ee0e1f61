"""Operators that a Python file defines: the option ``--operators-from`` of every command that takes an operator.

The file is imported as a module with its own name, so that saved states, pickles and ``import`` name the same classes. It is
loaded before the other arguments are parsed, because spec strings need its classes.
"""

import argparse
import importlib.util
import keyword
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ..errors import Error
from ..reductions.contract import Reduction
from ..reductions.spec_strings import is_internal

OPTION = "--operators-from"


def add_operator_file_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--operators-from``."""
    parser.add_argument(
        OPTION,
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="Python file that defines operators (docs/own-operator.md); may be repeated",
    )


def load_operator_files(argv: Sequence[str]) -> list[str]:
    """Import the files of ``--operators-from`` and return the other arguments.

    Raises:
        Error: as :func:`load_operators`.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_operator_file_argument(parser)
    try:
        args, others = parser.parse_known_args(argv)
    except argparse.ArgumentError:  # the option without a value, which the parser of the command reports
        return list(argv)
    for path in args.operators_from:
        load_operators(path)
    return others


def load_operators(path: Path) -> ModuleType:
    """Import a Python file, also if it was imported before and has changed.

    Raises:
        Error: the file cannot be read, its name is no free module name, it raises an exception, or it defines no operator.
    """
    try:
        source, path = path.read_bytes(), path.resolve()
    except OSError as error:
        raise Error(f"cannot read {path} ({error.strerror})") from None
    name = path.stem
    if not name.isidentifier() or keyword.iskeyword(name) or path.suffix != ".py":
        raise Error(f"{path.name} is not the name of a Python module; expected a name such as my_operators.py")
    other = _origin(name)
    if other is not None and other != str(path):
        raise Error(f"{path}: a module called {name!r} exists already ({other}); expected another file name")
    if str(path.parent) not in sys.path:  # last, so that no file of the folder replaces a module of Python
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.modules[name] = sys.modules.get(name), module  # classes look their module up while they are defined
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except BaseException as error:
        _restore(name, before)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Error(f"{path}, line {_line(error, path)}: {_describe(error)}") from error
    if not any(isinstance(x, type) and issubclass(x, Reduction) and not is_internal(x) for x in vars(module).values()):
        _restore(name, before)
        raise Error(f"{path} defines no operator; expected a class that inherits from msrnn.Reduction")
    return module


def _restore(name: str, module: ModuleType | None) -> None:
    if module is None:
        del sys.modules[name]
    else:
        sys.modules[name] = module


def _origin(name: str) -> str | None:
    """Return the file of the module that ``import name`` gives, or a description of it; None if there is no such module."""
    if (loaded := sys.modules.get(name)) is not None:
        return getattr(loaded, "__file__", None) or "built in"
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.origin or "a folder"


def _line(error: BaseException, path: Path) -> int:
    """Return the line of the file at which an exception was raised, or in which a module was imported that raised it."""
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno:
        return error.lineno
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (frames[-1].lineno if frames else None) or 1


def _describe(error: BaseException) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
