"""Model folders of msrnn, as :func:`msrnn.load` reads them."""

from dataclasses import replace
from pathlib import Path

from msrnn import Error
from msrnn.models import Config, DecoderConfig, EncoderDecoderConfig
from msrnn.models.registry import config_from_dict
from msrnn.storage.files import read_json
from msrnn.storage.model_folder import FORMAT, open_weights, read_config_fields

from ..extra_files import open_folder
from ..source import Source
from ..tokenization.folder import NoTokenizer
from ..tokenization.settings import CONFIG as TOKENIZER_CONFIG


def matches(folder: Path) -> bool:
    """Return True for a model folder of msrnn."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("format") == FORMAT


def open_checkpoint(folder: Path) -> Source:
    """Open a folder.

    Raises:
        Error: the folder is damaged or has an encoder-decoder.
    """
    source = open_folder(read_config(folder), open_weights(folder), folder)
    if isinstance(source.tokenizer_error, NoTokenizer):  # reported when the folder was written, or the model never had one
        source = replace(source, tokenizer_error=None)
    if (folder / TOKENIZER_CONFIG).is_file():
        return source
    # older folders do not have this file; their special tokens are those of config.json
    return replace(source, extra_files={name: x for name, x in source.extra_files.items() if name != TOKENIZER_CONFIG})


def read_config(folder: Path) -> Config | DecoderConfig:
    """Return the config of a folder; raises as :func:`open_checkpoint`."""
    config = config_from_dict(read_config_fields(folder))
    if isinstance(config, EncoderDecoderConfig):
        raise Error(f"{folder} is an encoder-decoder; expected a decoder-only model (msrnn.load reads both)")
    return config
