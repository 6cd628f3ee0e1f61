"""Paths that will be written: checks before any work starts, which leave no file or folder, and new folders."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import Error
from .staging import staging_path

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def check_output_file(path: str | Path) -> None:
    """Refuse a path that :func:`~msrnn.storage.atomic.atomic_file` cannot write.

    Raises:
        Error: the path is a folder, pipe or device, its folder does not exist, or the system refuses to write there.
    """
    with errors_of_writing(path), staging_path(resolve_file(path), folder=False):
        pass


def check_output_folder(path: str | Path) -> None:
    """Refuse a folder that cannot be created (with its missing parents), or in which nothing can be created.

    Raises:
        Error: the path or a parent is not a folder, or the system refuses to write there.
    """
    with errors_of_writing(path):
        target = _resolve(path)
        folder, missing = split_missing(target)
        if not folder.is_dir():
            raise Error(f"cannot write {path}; {folder} is not a folder")
        for name in missing:
            with suppress(FileNotFoundError):
                os.lstat(folder / name)  # OSError for a name that is too long
        with staging_path(folder / "any", folder=True):
            pass


def check_new_folder(path: str | Path) -> Path:
    """Return ``path`` with symbolic links resolved, if :func:`~msrnn.storage.atomic.atomic_dir` can write it.

    Raises:
        Error: the path exists and is not an empty folder, or it cannot be written.
    """
    with errors_of_writing(path):
        target = _resolve(path)
        if target.exists():
            if not target.is_dir() or any(target.iterdir()):
                raise Error(f"{path} exists already; expected a new or empty folder to write to")
            if target == Path.cwd() or os.path.ismount(target):  # the rename replaces the folder
                kind = "the current folder" if target == Path.cwd() else "a mount point"
                raise Error(f"{path} is {kind}; expected a new folder, for example {target / 'model'}")
            with staging_path(target, folder=True):
                return target
    check_output_folder(path)
    return target


def create_folder(path: str | Path) -> None:
    """Create a folder and its missing parents, unless it exists.

    Raises:
        Error: the path or a parent is not a folder, or the system refuses to write there.
    """
    check_output_folder(path)  # so that no parent remains after a refusal
    with errors_of_writing(path):
        _resolve(path).mkdir(parents=True, exist_ok=True)


def resolve_file(path: str | Path) -> Path:
    """Return the file that ``path`` stands for, with symbolic links resolved, if it is new or a regular file.

    Raises:
        Error: the path is a folder, pipe or device, or its folder does not exist.
        OSError: the system refuses access, also to a file without write permission.
    """
    target = _resolve(path)
    try:
        found = os.stat(path)  # not of target: /dev/stdout is a link to a name that does not exist
    except FileNotFoundError:
        if not target.parent.exists():
            raise Error(f"cannot write {path}; expected a file in an existing folder") from None
        if str(path).endswith("/"):
            raise Error(f"cannot write {path}; expected the name of a file") from None
    else:
        if not stat.S_ISREG(found.st_mode):
            kind = KINDS.get(stat.S_IFMT(found.st_mode), "a device")
            raise Error(f"cannot write {path}; it is {kind}, expected a regular file or a new name")
        os.close(os.open(target, os.O_WRONLY | os.O_NONBLOCK))  # OSError without write permission
    return target


def split_missing(path: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the longest existing part of an absolute path, and the names below it that do not exist."""
    existing = path
    while not os.path.lexists(existing):
        existing = existing.parent
    return existing, path.relative_to(existing).parts


@contextmanager
def errors_of_writing(path: str | Path) -> Iterator[None]:
    """Turn the exceptions of the file system into an :class:`Error` that names ``path``, and no staging path."""
    try:
        yield
    except Error:
        raise
    except OSError as error:
        raise Error(f"cannot write {path} ({error.strerror or error})") from None


def _resolve(path: str | Path) -> Path:
    if not isinstance(path, str | Path) or not str(path):
        raise Error(f"path is {path!r:.60}; expected a str or a Path")
    try:
        return Path(path).resolve()
    except (ValueError, RuntimeError) as error:  # a name with NUL, a cycle of links
        raise Error(f"cannot write {path} ({error})") from None
