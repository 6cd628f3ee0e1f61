"""A summary of the weights of a folder or a file: bytes, and how many numbers are stored in which type."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from msrnn import Error
from msrnn.models.packing import code_bits, packed_names
from msrnn.storage.lazy_tensors import LazyTensor
from msrnn.storage.model_folder import open_weights

from . import detect
from .formats import own
from .weights import choose_weights


def describe_weights(source: Any) -> str | None:
    """Return a line such as ``94.8 MB: 106.2 million numbers in 4 bits, 28.3 million in 8 bits``; no tensor is read.

    Args:
        source: a folder or a ``.gguf`` file.

    Returns:
        None for every other source, such as a hub id, and for a folder without weights that can be opened.
    """
    if not isinstance(source, str | Path) or not Path(source).exists():
        return None
    try:
        path = detect.locate(source, None, weights=False)
        if path.is_file():
            return _line(*_of_gguf(path))
        return _line(*_of_tensors(open_weights(path) if own.matches(path) else detect.open_source(path, None).tensors))
    except Error:
        return None


def describe_packed(source: str | Path, weights: str) -> str:
    """Return the line of the parameters in memory, as ``converters.load(source, weights=weights)`` packs them; none is read.

    Raises:
        Error: ``source`` is no folder and no file, cannot be opened, or cannot be packed in this way.
    """
    if not Path(source).exists():
        raise Error(f"--weights is given for {str(source)!r}, and no weights are downloaded; expected a folder or a .gguf file")
    chosen, dtype = choose_weights(detect.open_source(source, None), weights, None)
    packed = packed_names(chosen)
    held = {name: x if name in packed or dtype is None else replace(x, dtype=dtype) for name, x in chosen.items()}
    return _line(*_of_tensors(held))


def _of_tensors(tensors: Mapping[str, LazyTensor]) -> tuple[int, Counter[str]]:
    """Return the bytes of all tensors, and the count of numbers by type, without scales and zeros."""
    counts: Counter[str] = Counter()
    packed = packed_names(tensors)
    for name, x in tensors.items():
        if name not in packed:
            counts[str(x.dtype).removeprefix("torch.")] += math.prod(x.shape)
        elif name.endswith(".codes"):
            bits = code_bits(x)
            counts[f"{bits} bits"] += math.prod(x.shape) * 8 // bits
    return sum(x.nbytes for x in tensors.values()), counts


def _of_gguf(path: Path) -> tuple[int, Counter[str]]:
    """Return the bytes of all tensors of a GGUF file, and the count of numbers by quantisation type."""
    import gguf  # deferred, because most sources need no gguf package

    from .gguf.header import read_header
    from .gguf.tensors import byte_count

    header, counts = read_header(path), Counter[str]()
    n_bytes = sum(byte_count(header, name) for name in header.tensors)
    for info in header.tensors.values():
        counts[gguf.GGMLQuantizationType(info.ggml_type).name] += math.prod(info.shape)
    return n_bytes, counts


def _line(n_bytes: int, counts: Counter[str]) -> str:
    parts = [
        f"{_count(n)} numbers in {kind}" if i == 0 else f"{_count(n)} in {kind}"
        for i, (kind, n) in enumerate(counts.most_common())
    ]
    return f"{n_bytes / 1e6:,.1f} MB: {', '.join(parts)}"


def _count(n: int) -> str:
    return f"{n / 1e6:,.1f} million" if n >= 1e5 else f"{n:,}"
