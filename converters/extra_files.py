"""The small files of a model (tokenizer, chat template), read from a folder or built at the first access."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from msrnn import Error
from msrnn.storage.files import read_bytes, read_json
from msrnn.storage.model_folder import read_extra_files

from .tokenization import sentencepiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class LazyFiles(Mapping[str, bytes]):
    """Files by name, built by one call of ``make`` at the first access."""

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


def read_folder(folder: Path) -> Mapping[str, bytes]:
    """Return the small files of a folder. ``tokenizer.json`` is built from ``tokenizer.model`` if it is absent."""
    files, model = read_extra_files(folder), folder / sentencepiece.FILE
    if "chat_template.jinja" not in files and (template := _chat_template_of_config(folder)):
        files["chat_template.jinja"] = template.encode()
    if "tokenizer.json" in files or not model.is_file():
        return files
    return LazyFiles(partial(_with_sentencepiece, files, model, read_bytes(model)))


def tokenizer_json(build: Callable[[], "Tokenizer"]) -> dict[str, bytes]:
    """Return ``tokenizer.json`` of the tokenizer that ``build`` returns, or no file and a warning if it cannot be built."""
    try:
        return {"tokenizer.json": build().to_str().encode()}
    except Error as error:
        warnings.warn(f"the model has no tokenizer: {error}", stacklevel=4)
        return {}


def _with_sentencepiece(files: dict[str, bytes], path: Path, data: bytes) -> dict[str, bytes]:
    return files | tokenizer_json(lambda: sentencepiece.parse_tokenizer(data, path))


def _chat_template_of_config(folder: Path) -> str | None:
    """Return the chat template of ``tokenizer_config.json``, its place in older checkpoints."""
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(template, list):  # several templates with names
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}.get("default")
    return template if isinstance(template, str) else None
