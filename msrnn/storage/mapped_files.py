"""Tensors in mapped files: the system reads a page of the file when it is used first, and nothing is copied.

A mapping is private. An edit of a tensor copies a page in memory and does not reach the file. Pages that are only read belong
to the file cache of the system: processes share them, and the system can drop them and read them again. A mapping stays valid
when the file is renamed, replaced or removed. But a file that is overwritten in place changes the tensors, and one that is
truncated in place ends the process (SIGBUS) where a missing page is used.
"""

import math
import mmap
import platform
import sys

import torch
from torch import Tensor

from .files import FileVersion
from .lazy_tensors import LazyTensor

MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if platform.machine() in ("x86_64", "aarch64") else 0)
"""With it Linux maps a file that is larger than the main memory. Python has the name since 3.13."""


class MappedFiles:
    """Private mappings, one of each file. Tensors of one object may share pages, tensors of two objects do not."""

    def __init__(self) -> None:
        self._mappings: dict[FileVersion, mmap.mmap | None] = {}

    def view(self, *tensors: LazyTensor) -> list[Tensor] | None:
        """Return tensors of one dtype as views of a mapped file, in one storage that contains nothing else.

        Returns:
            The tensors; None if they are not stored one after another in one file and aligned to their dtype, if one is
            empty, or if the file cannot be mapped or has changed since its header was read.
        """
        dtype, first = tensors[0].dtype, tensors[0].location
        if first is None or sys.byteorder != "little" or first.start % dtype.itemsize:
            return None
        end = first.start
        for x in tensors:
            found = x.location
            if not x.nbytes or x.dtype != dtype or found is None or (found.file, found.start) != (first.file, end):
                return None
            end += x.nbytes
        if first.file not in self._mappings:
            self._mappings[first.file] = _map(first.file)
        mapping = self._mappings[first.file]
        if mapping is None or len(mapping) < end:
            return None
        sizes = [math.prod(x.shape) for x in tensors]
        numbers = torch.frombuffer(mapping, dtype=dtype, count=sum(sizes), offset=first.start)
        return [part.view(x.shape) for part, x in zip(numbers.split(sizes), tensors, strict=True)]


def _map(version: FileVersion) -> mmap.mmap | None:
    """Map a file, privately and with write access; None if that fails or the file is not the one of ``version``."""
    try:
        with open(version.path, "rb") as file:
            if FileVersion.of(version.path, file) != version:
                return None
            if sys.platform != "linux":
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            flags, access = mmap.MAP_PRIVATE | MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            return mmap.mmap(file.fileno(), 0, flags=flags, prot=access)
    except (OSError, ValueError):  # ValueError: an empty file
        return None
