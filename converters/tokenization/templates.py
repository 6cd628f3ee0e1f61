"""The chat templates of a folder, from all places where transformers has written them."""

from pathlib import Path
from typing import Any

from msrnn import Error
from msrnn.storage.files import read_bytes, read_json

from .settings import CONFIG

FILE, FOLDER, LEGACY = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
DEFAULT = "default"


def read_templates(folder: Path) -> dict[str, str]:
    """Return the Jinja text of each template by its name; the main one is called ``default``.

    As in transformers, template files replace those of ``tokenizer_config.json``. ``chat_template.json`` is used if there is
    no other template.

    Raises:
        Error: a file is damaged or no text.
    """
    files = {DEFAULT: folder / FILE} | {path.name.removesuffix(".jinja"): path for path in (folder / FOLDER).glob("*.jinja")}
    found = {name: _text(path) for name, path in sorted(files.items()) if path.is_file() and path.stat().st_size}
    for name in (CONFIG, LEGACY):
        if not found and (folder / name).is_file():
            found = _named(read_json(folder / name).get("chat_template"), folder / name)
    return found


def to_files(templates: dict[str, str]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the files and the fields of ``tokenizer_config.json`` that hold ``templates``: one file if all are the default."""
    if not templates:
        return {}, {}
    if templates.keys() == {DEFAULT}:
        return {FILE: templates[DEFAULT].encode()}, {}
    return {}, {"chat_template": [{"name": name, "template": text} for name, text in templates.items()]}


def _named(value: Any, where: Path) -> dict[str, str]:
    """Return the templates of a field: one text, texts by name, or a list of objects with ``name`` and ``template``.

    Raises:
        Error: a value of another kind.
    """
    found = {DEFAULT: value} if isinstance(value, str) else value or {}
    try:
        if not isinstance(found, dict):
            found = {entry["name"]: entry["template"] for entry in found}
    except (TypeError, KeyError):
        found = {None: None}
    if not all(isinstance(x, str) for pair in found.items() for x in pair):
        raise Error(f"{where}: chat_template is {value!r:.60}; expected text, or a list of objects with name and template")
    return {name: text for name, text in found.items() if text}


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode()
    except UnicodeError as error:
        raise Error(f"{path} is not UTF-8 text ({error})") from None
