"""Files and folders that appear under their name when they are complete, and not before."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .output_paths import check_new_folder, errors_of_writing, resolve_file, split_missing
from .staging import staging_path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of a staging file that is renamed to ``path`` when the block ends without an exception.

    The rename replaces a regular file and keeps its mode bits and owner. A symbolic link stays; the file that it points to is
    replaced. A new file has the mode of the umask. Of several writers of one path the last one remains, complete. After an
    exception ``path`` is unchanged.

    Raises:
        Error: ``path`` is a folder, pipe or device, or it cannot be written.
    """
    with errors_of_writing(path):
        target = resolve_file(path)
        old = _stat(target)
        with staging_path(target, folder=False, private=old is not None) as staged:
            yield staged
            if resolve_file(path) != target:
                raise OSError("the link has changed while the file was written")
            _publish(staged, target, old)


@contextmanager
def atomic_dir(folder: str | Path) -> Iterator[Path]:
    """Yield a staging folder that is renamed to ``folder`` when the block ends without an exception.

    The rename replaces an empty folder and keeps its mode bits and owner. Missing parents are created. After an exception
    nothing remains.

    Raises:
        Error: ``folder`` exists and is not empty, is the current folder or a mount point, or cannot be written.
    """
    with errors_of_writing(folder):
        target = check_new_folder(folder)
        with _parents(target):
            old = _stat(target)
            with staging_path(target, folder=True) as staged:
                yield staged
                _publish(staged, target, old)


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Create the missing parents of ``target``; remove them after an exception."""
    existing, missing = split_missing(target.parent)
    made = []
    try:
        for name in missing:
            existing = existing / name
            existing.mkdir(exist_ok=True)
            made.append(existing)
        yield
    except BaseException:
        for path in reversed(made):
            with suppress(OSError):  # not empty: another process uses it
                path.rmdir()
        raise


def _publish(staged: Path, target: Path, old: os.stat_result | None) -> None:
    """Rename ``staged`` to ``target``, which had the status ``old``. A power cut leaves the old content or the new one."""
    if old is not None:
        with suppress(OSError):  # only the superuser may change the owner
            os.chown(staged, old.st_uid, old.st_gid)
        os.chmod(staged, stat.S_IMODE(old.st_mode))
    for path in (*staged.rglob("*"), staged):
        _fsync(path)
    os.replace(staged, target)
    with suppress(OSError):  # the rename has succeeded
        _fsync(target.parent)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk, so that a power cut after the rename loses no content."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
