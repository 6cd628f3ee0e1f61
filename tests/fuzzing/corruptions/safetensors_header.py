"""Damages of the header of a safetensors file: offsets, shapes, dtypes, names, metadata."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from .json_text import PLACEHOLDER, UNUSUAL_VALUES, locations
from .registry import damage

DTYPES = [
    *("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "F32", "F64", "I64"),
    *("F4", "C64", "X9", ""),
]


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Apply ``change`` to the header of a file; if it returns a text, that is the new header."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    text = change(header)
    text = (text if isinstance(text, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[start:])


def random_tensor(random: Random, header: dict[str, Any]) -> str:
    """Return the name of a tensor."""
    return random.choice([name for name in header if name != "__metadata__"])


@damage("safetensors")
def header_length(random: Random, path: Path) -> bool:
    data = path.read_bytes()
    true = int.from_bytes(data[:8], "little")
    wrong = [0, 1, 7, true - 1, true + 1, true + 8, len(data), 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
    path.write_bytes(struct.pack("<Q", random.choice(wrong)) + data[8:])
    return True


@damage("safetensors")
def offsets(random: Random, path: Path) -> bool:
    """Offsets that overlap, exceed the file, are reversed or have another type."""

    def change(header: dict[str, Any]) -> None:
        name = random_tensor(random, header)
        begin, end = header[name]["data_offsets"]
        others = [x["data_offsets"] for other, x in header.items() if other not in (name, "__metadata__")]
        wrong: list[Any] = [*others[:3], [begin + 4, end + 4], [begin, end + 4], [end, begin - 1], [0, 2**64]]
        wrong += [[begin - 4, end], [2**63, 2**63 + end - begin], [-4, end], [begin], [], "x", [0, 1e400], [begin + 2**70, end]]
        header[name]["data_offsets"] = random.choice(wrong)

    edit_header(path, change)
    return True


@damage("safetensors")
def shape(random: Random, path: Path) -> bool:
    def change(header: dict[str, Any]) -> None:
        old = header[name := random_tensor(random, header)]["shape"]
        wrong: list[Any] = [
            [],
            [*old, 2],
            [-x for x in old],
            [0, *old],
            [2**32, 2**32],
            [2**63],
            [2**64],
            [10**30],
            [1.5],
            ["x"],
        ]
        header[name]["shape"] = random.choice([*wrong, None, "x", [x * 2 for x in old], [old[0] + 1, *old[1:]]])

    edit_header(path, change)
    return True


@damage("safetensors")
def dtype(random: Random, path: Path) -> bool:
    def change(header: dict[str, Any]) -> None:
        new = random.choice(DTYPES)
        for name in random.choice(([random_tensor(random, header)], list(header))):
            if name != "__metadata__":
                header[name]["dtype"] = new

    edit_header(path, change)
    return False


@damage("safetensors")
def duplicate_name(random: Random, path: Path) -> bool:
    def change(header: dict[str, Any]) -> str:
        name, other = random_tensor(random, header), random_tensor(random, header)
        return f"{{{json.dumps(name)}: {json.dumps(header[other])}, {json.dumps(header)[1:]}"

    edit_header(path, change)
    return True


@damage("safetensors")
def names_swapped(random: Random, path: Path) -> bool:
    def change(header: dict[str, Any]) -> None:
        a, b = random_tensor(random, header), random_tensor(random, header)
        header[a], header[b] = header[b], header[a]

    edit_header(path, change)
    return False


@damage("safetensors")
def renamed(random: Random, path: Path) -> bool:
    def change(header: dict[str, Any]) -> None:
        name = random_tensor(random, header)
        new = ["", "../../x", "/tmp/x", name + "\n", "\ud800", "é", name.upper(), "x" * 1_000_000, "__metadata__", name[:-1]]
        header[random.choice(new)] = header.pop(name)

    edit_header(path, change)
    return True


@damage("safetensors")
def missing_tensor(random: Random, path: Path) -> bool:
    """Remove a tensor from the header, or from the header and the data."""

    def change(header: dict[str, Any]) -> None:
        gone = header.pop(random_tensor(random, header))["data_offsets"]
        if random.random() < 0.5:
            data, size = path.read_bytes(), gone[1] - gone[0]
            start = 8 + int.from_bytes(data[:8], "little")
            for x in (x for name, x in header.items() if name != "__metadata__" and x["data_offsets"][0] >= gone[1]):
                x["data_offsets"] = [at - size for at in x["data_offsets"]]
            cut.append(data[:start] + data[start : start + gone[0]] + data[start + gone[1] :])

    cut: list[bytes] = []
    edited = path.read_bytes()
    edit_header(path, change)
    if cut:
        head = path.read_bytes()
        head = head[: 8 + int.from_bytes(head[:8], "little")]
        path.write_bytes(head + cut[0][8 + int.from_bytes(edited[:8], "little") :])
    return True


@damage("safetensors")
def gap(random: Random, path: Path) -> bool:
    """Insert eight bytes that belong to no tensor."""

    def change(header: dict[str, Any]) -> None:
        for name, x in header.items():
            if name != "__metadata__":
                x["data_offsets"] = [at + 8 for at in x["data_offsets"]]

    edit_header(path, change)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(data[:start] + bytes(8) + data[start:])
    return True


@damage("safetensors")
def metadata(random: Random, path: Path) -> bool:
    """Change the metadata; those of a saved state contain the operators and the fingerprint of the cell."""

    def change(header: dict[str, Any]) -> str | None:
        entries = header.setdefault("__metadata__", {"format": "pt"})
        key = random.choice(list(entries))
        inner = json.loads(entries[key]) if entries[key][:1] in "[{" else None
        if inner and random.random() < 0.8:
            inside, at = random.choice(locations(inner))
            inside[at] = PLACEHOLDER
            entries[key] = json.dumps(inner).replace(f'"{PLACEHOLDER}"', random.choice(UNUSUAL_VALUES))
        else:
            entries[key] = PLACEHOLDER
            return json.dumps(header).replace(f'"{PLACEHOLDER}"', random.choice(UNUSUAL_VALUES))
        return None

    edit_header(path, change)
    return False
