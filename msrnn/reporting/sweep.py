"""A resumable table: each entry is saved as soon as it is finished, and a later run reuses it."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from ..errors import Error
from ..storage.atomic import atomic_file
from ..storage.digest import digest
from ..storage.files import read_json, write_json
from ..storage.output_paths import create_folder
from .progress import progress_bar
from .resume import check_same_settings

Row = TypeVar("Row")
Item = TypeVar("Item")
SETTINGS, ENTRIES = "settings.json", "cells"
"""Names in the folder. The folder of the entries has the name of earlier versions."""
VERSION = 3
"""Version of the files in the folder."""
LONGEST_NAME = 250
"""Characters of a file name without ``.json``; file systems allow 255 in all."""


class Sweep:
    """The finished entries of a table.

    Args:
        folder: folder with one file per entry; None keeps the entries in memory only.
        settings: settings that all entries share, as JSON values. A folder with other settings is refused.
        finished: the records of the finished entries by key, as another process of the same run has read them. None reads the
            folder.

    Attributes:
        measured: by key, the records that this process has saved.

    Raises:
        Error: the folder contains another sweep or files of an earlier version, or it cannot be written.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any], finished: Mapping[str, dict[str, Any]] | None = None):
        self._folder, self._entries = folder, dict(finished or {})
        self.measured = dict[str, dict[str, Any]]()
        if folder is None:
            return
        create_folder(folder / ENTRIES)
        if finished is not None:
            return
        settings = {"version": VERSION, **settings}
        if (folder / SETTINGS).exists():
            check_same_settings(folder, read_json(folder / SETTINGS), settings)
        else:
            with atomic_file(folder / SETTINGS) as staged:
                write_json(staged, settings)
        for path in sorted((folder / ENTRIES).glob("*.json")):
            if not path.name.startswith("."):  # an incomplete file of a killed run
                entry = read_json(path)
                if set(entry) != {"key", "record"} or self._path(str(entry["key"])) != path:
                    raise Error(f"{path} is not an entry of a sweep")
                self._entries[entry["key"]] = entry["record"]

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Return the record of a finished entry."""
        return self._entries[key]

    def __setitem__(self, key: str, record: dict[str, Any]) -> None:
        """Save a finished entry atomically."""
        if self._folder is not None:
            with atomic_file(self._path(key)) as staged:
                write_json(staged, {"key": key, "record": record})
        self._entries[key] = self.measured[key] = record

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    @property
    def finished(self) -> Mapping[str, dict[str, Any]]:
        """The records of all finished entries by key."""
        return self._entries

    def add(self, measured: Mapping[str, dict[str, Any]], save: bool) -> None:
        """Add the records of another process by key. With ``save``, also write those that the folder does not have."""
        for key, record in measured.items():
            if save and self._folder is not None and not self._path(key).exists():
                self[key] = record
            self._entries[key] = record

    def reused(self, keys: Iterable[str]) -> str:
        """Return a sentence that states how many of the entries ``keys`` are taken from the folder; empty for a new folder."""
        keys = list(keys)
        taken = sum(key in self._entries for key in keys)
        if self._folder is None or not self._entries:
            return ""
        text, others = f"{taken} of {len(keys)} entries taken from {self._folder}", len(self._entries) - taken
        if taken < len(keys):
            text += f", {len(keys) - taken} to measure"
        if others:
            text += f"; the folder also has {others} of other code or other conditions, not used"
        return text

    def pending(
        self,
        rows: Mapping[Row, Mapping[str, Item]],
        batch_size: int = 1,
        progress: bool = False,
        part: tuple[int, int] = (0, 1),
        together: Callable[[Row], Hashable] | None = None,
    ) -> Iterator[tuple[Row, dict[str, Item]]]:
        """Yield the unfinished entries of each row, at most ``batch_size`` at a time.

        Args:
            rows: by row, the entries by key.
            batch_size: maximum number of entries yielded together.
            progress: True to show a progress bar.
            part: number of this process, from 0, and number of processes. The batches are given to the processes in turn, if
                all have the same ``finished`` entries.
            together: a function of a row. Rows with the same value are given to the same process. None: each batch is given
                on its own, so that even one row is divided.
        """
        rank, size = part
        unfinished = {row: [key for key in entries if key not in self._entries] for row, entries in rows.items()}
        batches = [(row, keys[i : i + batch_size]) for row, keys in unfinished.items() for i in range(0, len(keys), batch_size)]
        groups = [i if together is None else together(row) for i, (row, _) in enumerate(batches)]
        turns = {group: turn for turn, group in enumerate(dict.fromkeys(groups))}
        own = [batch for batch, group in zip(batches, groups, strict=True) if turns[group] % size == rank]
        counts: dict[str, Any] = {"total": sum(len(keys) for _, keys in own), "label": f"rank {rank} of {size}"}
        if size == 1:
            total = sum(map(len, rows.values()))
            counts = {"total": total, "initial": total - sum(map(len, unfinished.values()))}
        with progress_bar(unit="entry", enabled=progress, **counts) as bar:
            for row, keys in own:
                bar.set_postfix_str(keys[0])
                yield row, {key: rows[row][key] for key in keys}
                bar.update(len(keys))

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        name = quote(key, safe=" ").replace(".", "%2E")
        if len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME - 17]} {digest(key)}"
        return self._folder / ENTRIES / f"{name}.json"
