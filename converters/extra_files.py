"""The small files of a model: tokenizer, special tokens, chat templates and generation settings.

They have the same form for every source: ``tokenizer.json`` with all added tokens, ``tokenizer_config.json`` with the special
tokens and the templates that are not the default, ``chat_template.jinja``, and ``generation_config.json``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrnn import Error
from msrnn.models import Config, DecoderConfig
from msrnn.storage.files import read_json, to_json
from msrnn.storage.lazy_tensors import LazyTensor

from .source import Source
from .tokenization import templates
from .tokenization.folder import open_tokenizer
from .tokenization.settings import CONFIG

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GENERATION = "generation_config.json"


def open_folder(config: Config | DecoderConfig, tensors: Mapping[str, LazyTensor], folder: Path) -> Source:
    """Return a source with the small files of ``folder``.

    Raises:
        Error: a chat template or the generation settings are damaged. A tokenizer that cannot be read is no error here:
            the source states why.
    """
    found, fields = templates.to_files(templates.read_templates(folder))
    if generation := _generation(folder):
        found[GENERATION] = to_json(generation)
    try:
        tokenizer, settings, data = open_tokenizer(folder)
    except Error as error:
        return Source(config, tensors, found | _config_file(fields), 0, error)
    files = {"tokenizer.json": data, **found, **_config_file(settings.to_config() | fields)}
    return Source(config, tensors, files, count_ids(tokenizer))


def count_ids(tokenizer: "Tokenizer") -> int:
    """Return the largest id of a tokenizer, plus 1."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _config_file(fields: Mapping[str, Any]) -> dict[str, bytes]:
    return {CONFIG: to_json(fields)} if fields else {}


def _generation(folder: Path) -> dict[str, Any]:
    """Return the settings of ``generation_config.json``, with the padding token of ``config.json`` if it lacks one."""
    path, model = folder / GENERATION, folder / "config.json"
    fields = read_json(path) if path.is_file() else {}
    pad = read_json(model).get("pad_token_id") if model.is_file() else None
    return fields if pad is None or fields.get("pad_token_id") is not None else fields | {"pad_token_id": pad}
