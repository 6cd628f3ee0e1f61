"""PyTorch's own files: code, and tensors that are none."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from .registry import damage


class Command:
    """What unpickles itself by running a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def repickle(random: Random, path: Path, change: Callable[[dict[Any, Any], str], Any]) -> None:
    held = torch.load(path, weights_only=True)
    held = change(held, random.choice(list(held)))
    torch.save(held, path, _use_new_zipfile_serialization=zipfile.is_zipfile(path))


@damage("pickle")
def code(random: Random, path: Path) -> bool:
    def change(held: dict[Any, Any], name: str) -> dict[Any, Any]:
        return {**held, random.choice((name, "more")): Command("touch ../ran")}

    repickle(random, path, change)
    return True


@damage("pickle")
def no_plain_tensor(random: Random, path: Path) -> bool:
    def change(held: dict[Any, Any], name: str) -> Any:
        x = held[name]
        wrong: list[Any] = [x.tolist(), None, x.to("meta"), x.to_sparse(), x.long(), x.bool(), x.to(torch.complex64), {name: x}]
        wrong += [
            x[..., None],
            x[:-1].clone(),
            x.to(torch.float8_e4m3fn),
            torch.zeros(()).expand(x.shape),
            x.half().float()[0:0],
        ]
        wrong += [torch.zeros(()).expand(2**40, 2**20), torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)]
        eighths = {other: y.to(torch.float8_e4m3fn) for other, y in held.items()}
        return random.choice((eighths, [*held.values()], None, x, {**held, name: random.choice(wrong)}, {**held, 3: x}, {}))

    repickle(random, path, change)
    return True


@damage("pickle")
def another_name(random: Random, path: Path) -> bool:
    def change(held: dict[Any, Any], name: str) -> dict[Any, Any]:
        held[random.choice(("", "../../x", name + "\n", "\ud800", "x" * 1_000_000, name[:-1]))] = held.pop(name)
        return held

    repickle(random, path, change)
    return True


@damage("pickle")
def shared(random: Random, path: Path) -> bool:
    """Two tensors of one storage, and one that is a part of a larger: numbers as good as any."""

    def change(held: dict[Any, Any], name: str) -> dict[Any, Any]:
        alike = [other for other, x in held.items() if x.shape == held[name].shape]
        x = held[random.choice(alike)]
        held[name] = random.choice((x, torch.stack((x, x))[1], torch.stack((x, x), -1)[..., 0]))
        return held

    repickle(random, path, change)
    return False
