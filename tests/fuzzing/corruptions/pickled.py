"""Damages of PyTorch files: code, other objects, other tensors."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from .registry import damage


class Command:
    """An object that runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def repickle(random: Random, path: Path, change: Callable[[dict[Any, Any], str], Any]) -> None:
    """Replace the content of a file by ``change(tensors, name)``, where ``name`` is one of the tensors."""
    tensors = torch.load(path, weights_only=True)
    tensors = change(tensors, random.choice(list(tensors)))
    torch.save(tensors, path, _use_new_zipfile_serialization=zipfile.is_zipfile(path))


@damage("pickle")
def code(random: Random, path: Path) -> bool:
    def change(tensors: dict[Any, Any], name: str) -> dict[Any, Any]:
        return {**tensors, random.choice((name, "more")): Command("touch ../ran")}

    repickle(random, path, change)
    return True


@damage("pickle")
def no_plain_tensor(random: Random, path: Path) -> bool:
    def change(tensors: dict[Any, Any], name: str) -> Any:
        x = tensors[name]
        wrong: list[Any] = [x.tolist(), None, x.to("meta"), x.to_sparse(), x.long(), x.bool(), x.to(torch.complex64), {name: x}]
        wrong += [
            x[..., None],
            x[:-1].clone(),
            x.to(torch.float8_e4m3fn),
            torch.zeros(()).expand(x.shape),
            x.half().float()[0:0],
        ]
        wrong += [torch.zeros(()).expand(2**40, 2**20), torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)]
        eighths = {other: y.to(torch.float8_e4m3fn) for other, y in tensors.items()}
        return random.choice(
            (eighths, [*tensors.values()], None, x, {**tensors, name: random.choice(wrong)}, {**tensors, 3: x}, {})
        )

    repickle(random, path, change)
    return True


@damage("pickle")
def another_name(random: Random, path: Path) -> bool:
    def change(tensors: dict[Any, Any], name: str) -> dict[Any, Any]:
        tensors[random.choice(("", "../../x", name + "\n", "\ud800", "x" * 1_000_000, name[:-1]))] = tensors.pop(name)
        return tensors

    repickle(random, path, change)
    return True


@damage("pickle")
def shared_storage(random: Random, path: Path) -> bool:
    """Two tensors with one storage, or a view of a larger tensor; both are valid."""

    def change(tensors: dict[Any, Any], name: str) -> dict[Any, Any]:
        alike = [other for other, x in tensors.items() if x.shape == tensors[name].shape]
        x = tensors[random.choice(alike)]
        tensors[name] = random.choice((x, torch.stack((x, x))[1], torch.stack((x, x), -1)[..., 0]))
        return tensors

    repickle(random, path, change)
    return False


@damage("pickle")
def wrapped(random: Random, path: Path) -> bool:
    """A training checkpoint, or names with the prefix of a wrapper; both are valid."""

    def change(tensors: dict[Any, Any], name: str) -> dict[Any, Any]:
        prefixed = {f"module.{other}": x for other, x in tensors.items()}
        return random.choice(({"model": tensors, "step": 3}, {"state_dict": prefixed}, prefixed))

    repickle(random, path, change)
    return False


@damage("pickle")
def two_models(random: Random, path: Path) -> bool:
    def change(tensors: dict[Any, Any], name: str) -> dict[Any, Any]:
        return random.choice(({"model": tensors, "ema": tensors}, {**tensors, f"module.{name}": tensors[name]}))

    repickle(random, path, change)
    return True
