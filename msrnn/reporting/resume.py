"""The check that a folder contains the run to be resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Error


def check_same_settings(folder: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse a folder that contains a run with other settings.

    Args:
        folder: the folder, for the message.
        found: settings that the folder records.
        settings: settings of this run, as JSON values.

    Raises:
        Error: a setting differs, or is missing in one of both.
    """
    for name in {**settings, **found}:
        if found.get(name) != settings.get(name):
            values = f"{name} {found.get(name)!r:.200}; this one has {settings.get(name)!r:.200}"
            raise Error(f"{folder} contains a run with {values} (use a new folder)")
