"""Any file: its bytes, and what can be there instead."""

import os
import shutil
from pathlib import Path
from random import Random

from .registry import SECRET, binary, damage, ends_itself, vital


def somewhere(random: Random, data: bytes) -> int:
    """A place in it: half of them near the beginning, where headers are."""
    return random.randrange(min(len(data), random.choice((300, 3000, len(data), len(data)))))


@damage("any")
def truncate(random: Random, path: Path) -> bool:
    data = path.read_bytes()
    path.write_bytes(data[: random.choice((somewhere(random, data), len(data) - 1))])
    return binary(path)


@damage("any")
def empty(random: Random, path: Path) -> bool:
    path.write_bytes(b"")
    return vital(path)


@damage("any")
def flip(random: Random, path: Path) -> bool:
    data = bytearray(path.read_bytes())
    for _ in range(random.randrange(1, 5)):
        data[somewhere(random, data)] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    return False


@damage("any")
def overwrite(random: Random, path: Path) -> bool:
    data, count = bytearray(path.read_bytes()), random.choice((1, 8, 64))
    at = somewhere(random, data)
    new = random.choice((random.randbytes(count), bytes(count), b"\xff" * count, bytes(data[-count:])))
    data[at : at + count] = new[: len(data) - at]
    path.write_bytes(data)
    return False


@damage("any")
def insert(random: Random, path: Path) -> bool:
    data = path.read_bytes()
    at = somewhere(random, data)
    path.write_bytes(data[:at] + random.randbytes(random.choice((1, 8, 1000))) + data[at:])
    return binary(path) and not ends_itself(path)


@damage("any")
def cut_out(random: Random, path: Path) -> bool:
    data = path.read_bytes()
    at = somewhere(random, data)
    path.write_bytes(data[:at] + data[at + random.choice((1, 4, 100)) :])
    return binary(path)


@damage("any")
def append(random: Random, path: Path) -> bool:
    old = ends_itself(path)
    with path.open("ab") as file:
        file.write(random.randbytes(100))
    return vital(path) and not old


@damage("any")
def hole(random: Random, path: Path) -> bool:
    """Three gigabytes long, on paper."""
    old = ends_itself(path)
    os.truncate(path, 3 << 30)
    return vital(path) and not old


@damage("any")
def another_files_bytes(random: Random, path: Path) -> bool:
    others = [other for other in sorted(path.parent.iterdir()) if other != path] or [path.parent.with_name(SECRET)]
    other = random.choice(others)
    shutil.copyfile(other, path)
    return vital(path) and other.suffix != path.suffix


# Any file: what is there instead.


@damage("any")
def missing(random: Random, path: Path) -> bool:
    path.unlink()
    return vital(path)


@damage("any")
def folder(random: Random, path: Path) -> bool:
    path.unlink()
    path.mkdir()
    return vital(path)


@damage("any")
def link(random: Random, path: Path) -> bool:
    path.unlink()
    path.symlink_to(random.choice((path.name, "nothing", "/dev/zero", "/dev/null", ".", "..", "/proc/self/mem")))
    return vital(path)


@damage("any")
def pipe(random: Random, path: Path) -> bool:
    """Whoever opens it waits for ever."""
    path.unlink()
    os.mkfifo(path)
    return vital(path)
