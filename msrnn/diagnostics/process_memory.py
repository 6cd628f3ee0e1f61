"""Resident main memory of this process, read from /proc on Linux."""

import re
import sys
from pathlib import Path

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def rss_bytes() -> int:
    """Return the resident set size; without /proc, its maximum so far."""
    if STATUS.exists():
        return _status("VmRSS")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_rss_bytes() -> int:
    """Return the maximum of the resident set size since :func:`reset_peak_rss`.

    Raises:
        OSError: the system has no /proc.
    """
    return _status("VmHWM")


def reset_peak_rss() -> None:
    """Set the maximum of the resident set size to its present value.

    Raises:
        OSError: the system has no /proc.
    """
    CLEAR_REFS.write_text("5")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
