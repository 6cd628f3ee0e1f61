"""A table that takes long: each cell is kept as soon as it is finished, and found again by the next run."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from tqdm import tqdm

from ..cell.cell import Cell
from ..errors import Error
from ..storage.files import atomic_file, read_json, write_json

Row = TypeVar("Row")
Item = TypeVar("Item")
SETTINGS, CELLS = "settings.json", "cells"


class Sweep:
    """The finished cells of a table.

    Args:
        folder: where they are kept, one file each; None keeps them for as long as the sweep lives.
        settings: what all cells have in common, as JSON has it; a folder with cells made by others is refused.

    Raises:
        Error: the folder holds another sweep, or cannot be written.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]):
        self._folder, self._cells = folder, dict[str, dict[str, Any]]()
        if folder is None:
            return
        try:
            (folder / CELLS).mkdir(parents=True, exist_ok=True)
        except OSError as wrong:
            raise Error(f"cannot write to {folder} ({wrong.strerror})") from None
        if (folder / SETTINGS).exists():
            found = read_json(folder / SETTINGS)
            for name in {**found, **settings}:
                if found.get(name) != settings.get(name):
                    raise Error(f"{folder} holds a sweep with {name} {found.get(name)!r}; this one has {settings.get(name)!r}")
        else:
            with atomic_file(folder / SETTINGS) as beside:
                write_json(beside, settings)
        for path in sorted((folder / CELLS).glob("*.json")):
            if not path.name.startswith("."):  # left by a run that was killed
                kept = read_json(path)
                if set(kept) != {"key", "record"} or self._path(str(kept["key"])) != path:
                    raise Error(f"{path} is no cell of a sweep")
                self._cells[kept["key"]] = kept["record"]

    def __getitem__(self, key: str) -> dict[str, Any]:
        """The record of a finished cell."""
        return self._cells[key]

    def __setitem__(self, key: str, record: dict[str, Any]) -> None:
        """Keep a finished cell, whole or not at all."""
        if self._folder is not None:
            with atomic_file(self._path(key)) as beside:
                write_json(beside, {"key": key, "record": record})
        self._cells[key] = record

    def missing(
        self, rows: Mapping[Row, Mapping[str, Item]], at_once: int = 1, progress: bool = False
    ) -> Iterator[tuple[Row, dict[str, Item]]]:
        """Of the cells of each row, those that are not finished, some at a time; behind a bar where asked for."""
        total, left = (
            sum(map(len, rows.values())),
            {row: [key for key in row_keys if key not in self._cells] for row, row_keys in rows.items()},
        )
        done = total - sum(map(len, left.values()))
        with tqdm(total=total, initial=done, unit="cell", disable=None if progress else True) as bar:
            for row, keys in left.items():
                for i in range(0, len(keys), at_once):
                    now = keys[i : i + at_once]
                    bar.set_postfix_str(now[0])
                    yield row, {key: rows[row][key] for key in now}
                    bar.update(len(now))

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / CELLS / f"{quote(key, safe=' ').replace('.', '%2E')}.json"


def fingerprint(cell: Cell) -> str:
    """A few letters that tell this model from another, across processes."""
    known = cell.fingerprint()
    return digest([known.facts, known.dtype, known.values])


def digest(anything: Sequence[object]) -> str:
    """A few letters that tell this from anything else, by what it looks like in Python."""
    return hashlib.sha256(repr(anything).encode()).hexdigest()[:16]
