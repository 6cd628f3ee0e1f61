"""The table of damages, and properties of files that the damages use."""

from collections.abc import Callable
from pathlib import Path
from random import Random

Damage = Callable[[Random, Path], bool]
KINDS = ("any", "folder", "json", "index", "safetensors", "gguf", "pickle")
DAMAGES: dict[str, dict[str, Damage]] = {kind: {} for kind in KINDS}
OPTIONAL = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "generation_config.json")
OPTIONAL += ("added_tokens.json", "special_tokens_map.json", "chat_template.json")
SECRET = "outside.safetensors"
"""A valid file outside the folder of the checkpoint, which no reader may follow a path to."""


def kinds(path: Path) -> list[str]:
    """Return the kinds of damage that apply to a file."""
    own = {".json": ["json"], ".safetensors": ["safetensors"], ".gguf": ["gguf"], ".bin": ["pickle"], ".pth": ["pickle"]}.get(
        path.suffix, []
    )
    return ["any", "folder", *own, *(["index"] if path.name.endswith(".index.json") else [])]


def damage(kind: str) -> Callable[[Damage], Damage]:
    """Register a damage for a kind of file under the name of its function."""

    def register(function: Damage) -> Damage:
        DAMAGES[kind][function.__name__] = function
        return function

    return register


def is_a_source(folder: Path) -> bool:
    """Return True if the folder itself is loaded, not one file in it."""
    return not any(path.suffix == ".gguf" or path.name == "state.safetensors" for path in folder.iterdir())


def is_required(path: Path) -> bool:
    """Return True if no checkpoint can be read without the file."""
    return path.name not in OPTIONAL


def ignores_trailing_bytes(path: Path) -> bool:
    """Return True if bytes after the end are ignored: zip files and PyTorch files before 1.6."""
    return path.suffix in (".bin", ".pth")


def is_binary(path: Path) -> bool:
    """Return True for files of tensors."""
    return path.suffix in (".safetensors", ".gguf", ".bin", ".pth")
