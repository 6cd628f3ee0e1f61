"""The small files of a model (tokenizer, chat template), read or rebuilt from any source."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from msrnn import Error
from msrnn.models.loading import read_extra_files
from msrnn.storage.files import read_bytes, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SENTENCEPIECE = "tokenizer.model"


class LazyFiles(Mapping[str, bytes]):
    """Files by name, made by ``make`` at the first access and then kept."""

    def __init__(self, make: Callable[[], dict[str, bytes]]):
        self.make = make

    @cached_property
    def files(self) -> dict[str, bytes]:
        return self.make()

    def __getitem__(self, name: str) -> bytes:
        return self.files[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def in_folder(folder: Path) -> Mapping[str, bytes]:
    """Return the small files of a folder; ``tokenizer.json`` is made from ``tokenizer.model`` if it is absent."""
    files, model = read_extra_files(folder), folder / SENTENCEPIECE
    if "chat_template.jinja" not in files and (template := _old_chat_template(folder)):
        files["chat_template.jinja"] = template.encode()
    if "tokenizer.json" in files or not model.is_file():
        return files
    return LazyFiles(partial(_with_sentencepiece, files, model, read_bytes(model)))


def _with_sentencepiece(files: dict[str, bytes], path: Path, data: bytes) -> dict[str, bytes]:
    from .files import sentencepiece  # deferred because tokenizers is an extra

    return files | _tokenizer_json(lambda: sentencepiece.tokenizer(path, data))


def in_gguf(path: Path) -> Mapping[str, bytes]:
    """Return the small files of a GGUF file, made from its metadata at the first access."""
    return LazyFiles(partial(_from_gguf, path))


def _from_gguf(path: Path) -> dict[str, bytes]:
    from .gguf import tokenizer

    files = _tokenizer_json(lambda: tokenizer.tokenizer(path))
    if template := tokenizer.chat_template(path):
        files["chat_template.jinja"] = template.encode()
    return files


def _tokenizer_json(build: Callable[[], "Tokenizer"]) -> dict[str, bytes]:
    """Return ``tokenizer.json`` of the tokenizer that ``build`` returns; warn if it cannot be built."""
    try:
        return {"tokenizer.json": build().to_str().encode()}
    except Error as refused:
        warnings.warn(f"no tokenizer goes along: {refused}", stacklevel=4)
        return {}


def _old_chat_template(folder: Path) -> str | None:
    """Return the chat template of ``tokenizer_config.json``, its place in older checkpoints."""
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(template, list):  # several templates with names
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}.get("default")
    return template if isinstance(template, str) else None
