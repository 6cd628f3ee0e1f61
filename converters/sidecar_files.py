"""The small files that go along with a model: tokenizer and chat template, from wherever the source has them."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msrnn import Error
from msrnn.models.loading import read_carried
from msrnn.storage.files import read_bytes, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SENTENCEPIECE = "tokenizer.model"


def in_folder(folder: Path) -> Callable[[], dict[str, bytes]]:
    """Gives the files of a folder, as they are now; ``tokenizer.json`` is made of ``tokenizer.model`` where it is not there."""
    files, model = read_carried(folder), folder / SENTENCEPIECE
    if "chat_template.jinja" not in files and (template := _old_chat_template(folder)):
        files["chat_template.jinja"] = template.encode()
    if "tokenizer.json" in files or not model.is_file():
        return partial(dict, files)
    data = read_bytes(model)

    def make() -> "Tokenizer":
        from .files import sentencepiece  # deferred, as what it stands on is an extra

        return sentencepiece.tokenizer(model, data)

    return lambda: files | _made(make)


def in_gguf(path: Path) -> dict[str, bytes]:
    """What a GGUF's metadata says, as files."""
    from .gguf import tokenizer

    files = _made(lambda: tokenizer.tokenizer(path))
    if template := tokenizer.chat_template(path):
        files["chat_template.jinja"] = template.encode()
    return files


def _made(tokenizer: Callable[[], "Tokenizer"]) -> dict[str, bytes]:
    """``tokenizer.json`` of a tokenizer that has to be made; a warning where it cannot be."""
    try:
        return {"tokenizer.json": tokenizer().to_str().encode()}
    except Error as refused:
        warnings.warn(f"no tokenizer goes along: {refused}", stacklevel=4)
        return {}


def _old_chat_template(folder: Path) -> str | None:
    """The chat template from ``tokenizer_config.json``, where it stood before it had a file of its own."""
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(template, list):  # several, by name
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}.get("default")
    return template if isinstance(template, str) else None
