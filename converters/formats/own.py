"""Model folders of msrnn, as :func:`msrnn.load` reads them."""

from pathlib import Path

from msrnn import Error
from msrnn.models import Config, DecoderConfig, EncoderDecoderConfig
from msrnn.models.registry import config_from_dict
from msrnn.storage.files import read_json
from msrnn.storage.model_folder import FORMAT, open_weights, read_config_fields, read_extra_files

from ..source import Source


def matches(folder: Path) -> bool:
    """Return True for a model folder of msrnn."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("format") == FORMAT


def open_checkpoint(folder: Path) -> Source:
    """Open a folder.

    Raises:
        Error: the folder is damaged or has an encoder-decoder.
    """
    return Source(read_config(folder), open_weights(folder), read_extra_files(folder))


def read_config(folder: Path) -> Config | DecoderConfig:
    """Return the config of a folder; raises as :func:`open_checkpoint`."""
    config = config_from_dict(read_config_fields(folder))
    if isinstance(config, EncoderDecoderConfig):
        raise Error(f"{folder} is an encoder-decoder; expected a decoder-only model (msrnn.load reads both)")
    return config
