"""Interrupt a run at a chosen file write, as Ctrl-C would."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def interrupted_at_write(n: int) -> Iterator[None]:
    """Raise KeyboardInterrupt in place of atomic file write ``n``, counted from 0. Fewer writes are not interrupted."""
    replace_file, writes = os.replace, []

    def replace(source: str, target: str) -> None:
        writes.append(target)
        if len(writes) == n + 1:
            raise KeyboardInterrupt
        replace_file(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        yield
