"""Damages of the header of a GGUF file: numbers, texts, offsets, types, alignment."""

import struct
from pathlib import Path
from random import Random
from typing import Any

from .registry import damage

WIDTHS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


class Layout:
    """The offsets of all header layout: ``(what, at, code)`` for each number, ``(what, at, length)`` for each text."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 4
        self.numbers: list[tuple[str, int, str]] = []
        self.texts: list[tuple[str, int, int]] = []
        self.number("version", "I")
        n_tensors, n_keys = self.number("count", "Q"), self.number("count", "Q")
        self.keys = [(self.at, self.pair()) for _ in range(n_keys)]
        for _ in range(n_tensors):
            self.text("tensor")
            for _ in range(self.number("axes", "I")):
                self.number("axis", "Q")
            self.number("type", "I")
            self.number("offset", "Q")
        self.end = self.at

    def number(self, what: str, code: str) -> Any:
        self.numbers.append((what, self.at, code))
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self, what: str) -> None:
        length = self.number("length", "Q")
        self.texts.append((what, self.at, length))
        self.at += length

    def pair(self) -> int:
        self.text("key")
        kind = self.number("kind", "I")
        if kind == 9:
            kind, count = self.number("kind", "I"), self.number("count", "Q")
        else:
            count = 1
        for _ in range(count):
            self.text("value") if kind == 8 else self.number("value", WIDTHS[kind])
        return self.at


def replace(path: Path, layout: Layout, at: int, length: int, new: bytes) -> None:
    """Replace ``length`` bytes of the header at ``at`` by ``new`` and align the data again."""
    data, align = layout.data, 32
    head = data[:at] + new + data[at + length : layout.end]
    path.write_bytes(head + bytes(-len(head) % align) + data[layout.end + -layout.end % align :])


@damage("gguf")
def number(random: Random, path: Path) -> bool:
    """Change one number: a count, length, type, shape, offset or value."""
    layout = Layout(path.read_bytes())
    what = random.choice(sorted({x[0] for x in layout.numbers}))
    _, at, code = random.choice([x for x in layout.numbers if x[0] == what])
    size = struct.calcsize(code)
    (old,) = struct.unpack_from("<" + code, layout.data, at)
    if code in "fd":
        new = struct.pack("<" + code, random.choice((0.0, -1.0, 1e30, 1e-30, float("nan"), float("inf"), old * 2)))
    else:
        wrong = (0, 1, 2, 3, 8, 9, 30, old + 1, old - 1, old * 2, old + 32, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)
        new = (random.choice(wrong) % 2**64).to_bytes(8, "little")[:size]
    replace(path, layout, at, size, new)
    return False


@damage("gguf")
def text(random: Random, path: Path) -> bool:
    layout = Layout(path.read_bytes())
    what = random.choice(("key", "value", "tensor"))
    _, at, length = random.choice([x for x in layout.texts if x[0] == what])
    old = layout.data[at : at + length]
    wrong = [
        b"",
        b"\xff\xfe",
        b"\n",
        b"\0",
        "\u202e".encode(),
        b"x" * 1_000_000,
        b"../../x",
        b"$A",
        b":",
        old.upper(),
        old + b" ",
    ]
    other = random.choice(layout.texts)
    new = random.choice([*wrong, layout.data[other[1] : other[1] + other[2]]])
    replace(path, layout, at - 8, 8 + length, struct.pack("<Q", len(new)) + new)
    return False


@damage("gguf")
def overlapping_tensors(random: Random, path: Path) -> bool:
    """Give two tensors the same offset."""
    layout = Layout(path.read_bytes())
    a, b = random.sample([at for what, at, _ in layout.numbers if what == "offset"], 2)
    replace(path, layout, a, 8, layout.data[b : b + 8])
    return True


@damage("gguf")
def wrong_offset(random: Random, path: Path) -> bool:
    layout = Layout(path.read_bytes())
    at = random.choice([at for what, at, _ in layout.numbers if what == "offset"])
    (old,) = struct.unpack_from("<Q", layout.data, at)
    new = random.choice((old + 1, old + 32, old + 64, 2**63, 2**64 - 32, len(layout.data), old + 2**32))
    replace(path, layout, at, 8, struct.pack("<Q", new))
    return True


@damage("gguf")
def other_quantisation(random: Random, path: Path) -> bool:
    layout = Layout(path.read_bytes())
    offsets = [at for what, at, _ in layout.numbers if what == "type"]
    new = struct.pack("<I", random.choice((0, 1, 2, 3, 6, 7, 8, 10, 12, 14, 24, 27, 28, 30, 39, 99, 2**31)))
    data = bytearray(layout.data)
    for at in random.choice((offsets, [random.choice(offsets)])):
        data[at : at + 4] = new
    path.write_bytes(data)
    return False


@damage("gguf")
def alignment(random: Random, path: Path) -> bool:
    """Add the key general.alignment, which moves the beginning of the data."""
    layout = Layout(path.read_bytes())
    key = b"general.alignment"
    new = struct.pack("<Q", len(key)) + key
    kind, code = random.choice(((4, "I"), (7, "B"), (6, "f")))
    new += struct.pack("<I" + code, kind, random.choice((0, 1, 2, 3, 8, 16, 33, 64, 128, 255)))
    replace(path, layout, 24, 0, new)
    data = path.read_bytes()
    path.write_bytes(data[:16] + struct.pack("<Q", len(layout.keys) + 1) + data[24:])
    return False


@damage("gguf")
def arithmetic_key(random: Random, path: Path) -> bool:
    """Add a key of the architecture that changes the arithmetic."""
    layout = Layout(path.read_bytes())
    name, kind, value = random.choice(
        (
            (b"llama.attention.causal", 7, b"\0"),
            (b"llama.logit_scale", 6, struct.pack("<f", 0.5)),
            (b"llama.attention.clamp_kqv", 6, struct.pack("<f", 8.0)),
            (b"llama.a.key.of.tomorrow", 4, struct.pack("<I", 1)),
        )
    )
    replace(path, layout, 24, 0, struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value)
    data = path.read_bytes()
    path.write_bytes(data[:16] + struct.pack("<Q", len(layout.keys) + 1) + data[24:])
    return True


@damage("gguf")
def duplicate_key_or_tensor(random: Random, path: Path) -> bool:
    layout = Layout(path.read_bytes())
    begin, end = random.choice(layout.keys)
    if random.random() < 0.5:
        replace(path, layout, end, 0, layout.data[begin:end])
        data = path.read_bytes()
        path.write_bytes(data[:16] + struct.pack("<Q", len(layout.keys) + 1) + data[24:])
        return True
    names = [x for x in layout.texts if x[0] == "tensor"]
    (_, at, length), (_, other, size) = random.sample(names, 2)
    replace(path, layout, at - 8, 8 + length, layout.data[other - 8 : other + size])
    return True
