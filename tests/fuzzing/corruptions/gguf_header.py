"""The header of a GGUF file, number by number and text by text."""

import struct
from pathlib import Path
from random import Random
from typing import Any

from .registry import damage

WIDTHS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


class Fields:
    """Where everything lies in a sound file: ``(what, at, code)`` for each number, ``(what, at, length)`` for each text."""

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


def put(path: Path, fields: Fields, at: int, length: int, new: bytes) -> None:
    """``new`` for ``length`` bytes of the header, the data moved to where it then belongs."""
    data, align = fields.data, 32
    head = data[:at] + new + data[at + length : fields.end]
    path.write_bytes(head + bytes(-len(head) % align) + data[fields.end + -fields.end % align :])


@damage("gguf")
def number(random: Random, path: Path) -> bool:
    """One number of any kind: counts, lengths, types, shapes, offsets, values."""
    fields = Fields(path.read_bytes())
    what = random.choice(sorted({x[0] for x in fields.numbers}))
    _, at, code = random.choice([x for x in fields.numbers if x[0] == what])
    size = struct.calcsize(code)
    (old,) = struct.unpack_from("<" + code, fields.data, at)
    if code in "fd":
        new = struct.pack("<" + code, random.choice((0.0, -1.0, 1e30, 1e-30, float("nan"), float("inf"), old * 2)))
    else:
        wrong = (0, 1, 2, 3, 8, 9, 30, old + 1, old - 1, old * 2, old + 32, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)
        new = (random.choice(wrong) % 2**64).to_bytes(8, "little")[:size]
    put(path, fields, at, size, new)
    return False


@damage("gguf")
def text(random: Random, path: Path) -> bool:
    fields = Fields(path.read_bytes())
    what = random.choice(("key", "value", "tensor"))
    _, at, length = random.choice([x for x in fields.texts if x[0] == what])
    old = fields.data[at : at + length]
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
    other = random.choice(fields.texts)
    new = random.choice([*wrong, fields.data[other[1] : other[1] + other[2]]])
    put(path, fields, at - 8, 8 + length, struct.pack("<Q", len(new)) + new)
    return False


@damage("gguf")
def two_at_one_place(random: Random, path: Path) -> bool:
    """Overlapping tensors, of one shape or of several."""
    fields = Fields(path.read_bytes())
    a, b = random.sample([at for what, at, _ in fields.numbers if what == "offset"], 2)
    put(path, fields, a, 8, fields.data[b : b + 8])
    return True


@damage("gguf")
def misplaced(random: Random, path: Path) -> bool:
    fields = Fields(path.read_bytes())
    at = random.choice([at for what, at, _ in fields.numbers if what == "offset"])
    (old,) = struct.unpack_from("<Q", fields.data, at)
    new = random.choice((old + 1, old + 32, old + 64, 2**63, 2**64 - 32, len(fields.data), old + 2**32))
    put(path, fields, at, 8, struct.pack("<Q", new))
    return True


@damage("gguf")
def other_quantisation(random: Random, path: Path) -> bool:
    fields = Fields(path.read_bytes())
    places = [at for what, at, _ in fields.numbers if what == "type"]
    new = struct.pack("<I", random.choice((0, 1, 2, 3, 6, 7, 8, 10, 12, 14, 24, 27, 28, 30, 39, 99, 2**31)))
    data = bytearray(fields.data)
    for at in random.choice((places, [random.choice(places)])):
        data[at : at + 4] = new
    path.write_bytes(data)
    return False


@damage("gguf")
def alignment(random: Random, path: Path) -> bool:
    """A key more, which moves where the data begins."""
    fields = Fields(path.read_bytes())
    key = b"general.alignment"
    new = struct.pack("<Q", len(key)) + key
    kind, code = random.choice(((4, "I"), (7, "B"), (6, "f")))
    new += struct.pack("<I" + code, kind, random.choice((0, 1, 2, 3, 8, 16, 33, 64, 128, 255)))
    put(path, fields, 24, 0, new)
    data = path.read_bytes()
    path.write_bytes(data[:16] + struct.pack("<Q", len(fields.keys) + 1) + data[24:])
    return False


@damage("gguf")
def key_or_tensor_twice(random: Random, path: Path) -> bool:
    fields = Fields(path.read_bytes())
    begin, end = random.choice(fields.keys)
    if random.random() < 0.5:
        put(path, fields, end, 0, fields.data[begin:end])
        data = path.read_bytes()
        path.write_bytes(data[:16] + struct.pack("<Q", len(fields.keys) + 1) + data[24:])
        return True
    names = [x for x in fields.texts if x[0] == "tensor"]
    (_, at, length), (_, other, size) = random.sample(names, 2)
    put(path, fields, at - 8, 8 + length, fields.data[other - 8 : other + size])
    return True
