"""Mistral's own folders: ``params.json`` and ``consolidated.safetensors`` (v0.1 and v0.2: ``consolidated.00.pth``)."""

from pathlib import Path

from msrnn.errors import is_int
from msrnn.layers.rotary import Rope
from msrnn.models import Config

from ..extra_files import read_folder
from ..fields import Fields
from ..source import Source
from .meta_layout import open_model_parallel, read_params, read_tensors

KNOWN = {
    *("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size", "rope_theta"),
    *("sliding_window", "max_seq_len", "max_batch_size"),
}


def open_checkpoint(folder: Path) -> Source:
    """Open a folder with Mistral's files.

    Raises:
        Error: the folder is damaged or has another kind of model.
    """
    config = read_config(folder)
    return Source(config, read_tensors(open_model_parallel(folder), config), read_folder(folder))


def read_config(folder: Path) -> Config:
    """Return the config of a folder; raises as :func:`open_checkpoint`."""
    return config_from_params(read_params(folder, KNOWN))


def config_from_params(params: Fields) -> Config:
    """Return the config that ``params.json`` describes.

    Three values are not always in the file. A missing theta is 10000 with a sliding window (v0.1) and 1000000 without one, the
    rule of mistral-inference 1.0. The length is 32768, as in all published 7B models. The special tokens are 1 and 2.

    Raises:
        Error: a field is missing or has a wrong value.
    """
    window = params.values.get("sliding_window")
    if isinstance(window, str) and window.isdecimal():
        window = int(window)
    if window is not None and not is_int(window):
        raise params.error("sliding_window", "one number of tokens, the same for all layers")
    return Config(
        family="mistral",
        vocab_size=params.get_int("vocab_size"),
        width=params.get_int("dim"),
        n_layers=params.get_int("n_layers"),
        n_heads=params.get_int("n_heads"),
        n_kv_heads=params.get_int("n_kv_heads"),
        head_dim=params.get_int("head_dim"),
        ffn_width=params.get_int("hidden_dim"),
        norm_eps=params.get_float("norm_eps"),
        rope=Rope(params.get_float("rope_theta", 1e6 if window is None else 1e4)),
        context_length=params.get_int("max_seq_len", 32768),
        sliding_window=window,
        bos_token_id=1,
        eos_token_ids=(2,),
    )
