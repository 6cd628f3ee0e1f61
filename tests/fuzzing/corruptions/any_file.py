"""Damages of any file: its bytes, or something else in its place."""

import os
import shutil
from pathlib import Path
from random import Random

from .registry import SECRET, damage, ignores_trailing_bytes, is_binary, is_required


def random_offset(random: Random, data: bytes) -> int:
    """Return an offset; about half are near the beginning, where headers are."""
    return random.randrange(min(len(data), random.choice((300, 3000, len(data), len(data)))))


@damage("any")
def truncate(random: Random, path: Path) -> bool:
    data = path.read_bytes()
    path.write_bytes(data[: random.choice((random_offset(random, data), len(data) - 1))])
    return is_binary(path)


@damage("any")
def empty(random: Random, path: Path) -> bool:
    path.write_bytes(b"")
    return is_required(path)


@damage("any")
def flip(random: Random, path: Path) -> bool:
    data = bytearray(path.read_bytes())
    for _ in range(random.randrange(1, 5)):
        data[random_offset(random, data)] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    return False


@damage("any")
def overwrite(random: Random, path: Path) -> bool:
    data, count = bytearray(path.read_bytes()), random.choice((1, 8, 64))
    at = random_offset(random, data)
    new = random.choice((random.randbytes(count), bytes(count), b"\xff" * count, bytes(data[-count:])))
    data[at : at + count] = new[: len(data) - at]
    path.write_bytes(data)
    return False


@damage("any")
def insert(random: Random, path: Path) -> bool:
    data = path.read_bytes()
    at = random_offset(random, data)
    path.write_bytes(data[:at] + random.randbytes(random.choice((1, 8, 1000))) + data[at:])
    return is_binary(path) and not ignores_trailing_bytes(path)


@damage("any")
def delete_bytes(random: Random, path: Path) -> bool:
    data = path.read_bytes()
    at = random_offset(random, data)
    path.write_bytes(data[:at] + data[at + random.choice((1, 4, 100)) :])
    return is_binary(path)


@damage("any")
def append(random: Random, path: Path) -> bool:
    old = ignores_trailing_bytes(path)
    with path.open("ab") as file:
        file.write(random.randbytes(100))
    return is_required(path) and not old


@damage("any")
def sparse_extension(random: Random, path: Path) -> bool:
    """Extend the file to three gigabytes without writing them."""
    old = ignores_trailing_bytes(path)
    os.truncate(path, 3 << 30)
    return is_required(path) and not old


@damage("any")
def bytes_of_another_file(random: Random, path: Path) -> bool:
    others = [other for other in sorted(path.parent.iterdir()) if other != path] or [path.parent.with_name(SECRET)]
    other = random.choice(others)
    shutil.copyfile(other, path)
    return is_required(path) and other.suffix != path.suffix


@damage("any")
def missing(random: Random, path: Path) -> bool:
    path.unlink()
    return is_required(path)


@damage("any")
def folder(random: Random, path: Path) -> bool:
    path.unlink()
    path.mkdir()
    return is_required(path)


@damage("any")
def link(random: Random, path: Path) -> bool:
    path.unlink()
    path.symlink_to(random.choice((path.name, "nothing", "/dev/zero", "/dev/null", ".", "..", "/proc/self/mem")))
    return is_required(path)


@damage("any")
def pipe(random: Random, path: Path) -> bool:
    """A read of a pipe without a writer never returns."""
    path.unlink()
    os.mkfifo(path)
    return is_required(path)
