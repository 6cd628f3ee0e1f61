"""The table of damages, and what they ask of a file."""

from collections.abc import Callable
from pathlib import Path
from random import Random

Damage = Callable[[Random, Path], bool]
DAMAGES: dict[str, dict[str, Damage]] = {"any": {}, "json": {}, "index": {}, "safetensors": {}, "gguf": {}, "pickle": {}}
OPTIONAL = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "generation_config.json")
SECRET = "outside.safetensors"
"""A sound file beside the checkpoint's folder, to lead readers astray."""


def kinds(path: Path) -> list[str]:
    """Which damages a file is open to."""
    own = {".json": ["json"], ".safetensors": ["safetensors"], ".gguf": ["gguf"], ".bin": ["pickle"], ".pth": ["pickle"]}.get(
        path.suffix, []
    )
    return ["any", *own, *(["index"] if path.name.endswith(".index.json") else [])]


def damage(kind: str) -> Callable[[Damage], Damage]:
    def register(function: Damage) -> Damage:
        DAMAGES[kind][function.__name__] = function
        return function

    return register


def vital(path: Path) -> bool:
    """Whether nothing can be read without it."""
    return path.name not in OPTIONAL


def ends_itself(path: Path) -> bool:
    """Whether bytes after it mean nothing: after a zip, and after PyTorch's files of before 1.6."""
    return path.suffix in (".bin", ".pth")


def binary(path: Path) -> bool:
    return path.suffix in (".safetensors", ".gguf", ".bin", ".pth")
