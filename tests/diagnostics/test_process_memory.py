"""Resident memory, compared with other accounts of the system."""

import mmap
import os
import resource
from pathlib import Path

import pytest

from msrnn.diagnostics import process_memory
from msrnn.diagnostics.process_memory import peak_rss_bytes, reset_peak_rss, rss_bytes


def test_rss_is_that_of_the_system(tmp_path, monkeypatch):
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert rss_bytes() == pytest.approx(resident, rel=0.05)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    monkeypatch.setattr(process_memory, "STATUS", tmp_path / "missing")
    assert rss_bytes() >= most


def test_peak_is_that_since_the_reset():
    reset_peak_rss()
    before = rss_bytes()
    with mmap.mmap(-1, 100_000_000) as memory:  # malloc could reuse freed memory
        for start in range(0, len(memory), mmap.PAGESIZE):
            memory[start] = 1
        assert rss_bytes() - before > 90_000_000
    assert peak_rss_bytes() - before > 90_000_000
    reset_peak_rss()
    assert peak_rss_bytes() - before < 50_000_000
