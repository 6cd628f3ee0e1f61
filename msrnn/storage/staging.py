"""Staging files and folders next to their target, and the removal of those that killed processes have left.

A writer holds a lock (``flock``) on its staging file. The system releases the lock when the process ends, however it ends. A
staging file without a lock is therefore stale. Process ids would not show this: two containers that share a volume can have the
same ones. Locks on folders do not reach the other clients of a network file system.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # no POSIX system: staging files of killed processes are kept
    fcntl = None

PREFIX = ".msrnn-partial-"
MAX_SUFFIX_BYTES = 16
"""Longer endings are left out of the staging name. Writers that choose a format by the ending have short ones."""


@contextmanager
def staging_path(target: Path, *, folder: bool, private: bool = False) -> Iterator[Path]:
    """Yield a new empty file or folder next to ``target``, with the same ending; delete it at the end if it still exists.

    Args:
        target: the path that the caller will rename the staging path to. Its folder has to exist.
        folder: True for a folder.
        private: True for a file that only its owner may read; otherwise the umask decides.

    Raises:
        OSError: nothing can be created in the folder of ``target``.
    """
    _remove_stale(target.parent)
    staged, handle = _create(target, folder, private)
    try:
        yield staged
    finally:
        _remove(staged)
        if handle is not None:
            os.close(handle)


def _create(target: Path, folder: bool, private: bool) -> tuple[Path, int | None]:
    """Create a staging path and lock it. Returns the open descriptor that holds the lock."""
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= MAX_SUFFIX_BYTES else ""
    while True:
        staged = target.with_name(f"{PREFIX}{secrets.token_hex(8)}{suffix}")
        if folder:
            staged.mkdir()
        else:
            os.close(os.open(staged, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
        if fcntl is None:
            return staged, None
        try:
            handle = _open(staged)
        except FileNotFoundError:  # removed before it was locked
            continue
        if _lock(handle) is not False and _is_open_file(staged, handle):
            return staged, handle
        os.close(handle)  # another process found it without a lock and removes it


def _remove_stale(folder: Path) -> None:
    """Delete the staging files and folders in ``folder`` that no process has locked."""
    if fcntl is None:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith(PREFIX):
            path = folder / entry.name
            with suppress(OSError):  # another user's, or removed by another process
                handle = _open(path)
                try:
                    if _lock(handle) and _is_open_file(path, handle):
                        _remove(path)
                finally:
                    os.close(handle)


def _open(path: Path) -> int:
    """Open a staging path for locking. A network file system locks a file only if it is open for writing."""
    return os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)


def _lock(handle: int) -> bool | None:
    """Lock an open file or folder. Returns False if another process has locked it, None if the file system has no locks."""
    assert fcntl is not None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_open_file(path: Path, handle: int) -> bool:
    """Return True if ``path`` is still the file or folder that ``handle`` has opened."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """Delete a file or a folder. A failure is ignored, so that it does not replace the exception that led here."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
