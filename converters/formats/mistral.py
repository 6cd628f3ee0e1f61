"""Mistral's own folders: ``params.json`` and ``consolidated.safetensors`` (v0.1 and v0.2: ``consolidated.00.pth``)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msrnn import Error
from msrnn.layers.rotary import Rope
from msrnn.models import Config
from msrnn.storage.files import read_json

from ..json_fields import number, whole
from ..sidecar_files import in_folder
from ..source import Source
from .meta_layout import check_known, open_pieces, read_tensors

KNOWN = {
    *("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size", "rope_theta"),
    *("sliding_window", "max_seq_len", "max_batch_size"),
}


def open_folder(folder: Path) -> Source:
    """A folder of Mistral's.

    Raises:
        Error: whatever params.json or a tensor's name says that this library is not.
    """
    config = read_config(folder)
    return Source(config, read_tensors(open_pieces(folder), config), in_folder(folder))


def read_config(folder: Path) -> Config:
    """The facts of a folder."""
    return config_from_params(read_json(folder / "params.json"))


def config_from_params(params: Mapping[str, Any]) -> Config:
    """``params.json`` -> :class:`Config`.

    Two facts are not in the file. A theta that is absent is 10000 beside a sliding window (v0.1) and 1000000 without one, the
    rule of mistral-inference 1.0. The length is 32768, as of all published 7B models, and the special tokens are 1 and 2.

    Raises:
        Error: a fact that is missing, ill-typed or not known.
    """
    check_known(params, KNOWN)
    where = "params.json"
    window = params.get("sliding_window")
    if isinstance(window, str) and window.isdecimal():
        window = int(window)
    if window is not None and (not isinstance(window, int) or isinstance(window, bool)):
        raise Error(f"{where}: sliding_window is {window!r:.60}; expected one number of tokens, the same for all layers")
    theta = 1e6 if window is None else 1e4
    return Config(
        family="mistral",
        vocab_size=whole(params, "vocab_size", where),
        width=whole(params, "dim", where),
        n_layers=whole(params, "n_layers", where),
        n_heads=whole(params, "n_heads", where),
        n_kv_heads=whole(params, "n_kv_heads", where),
        head_dim=whole(params, "head_dim", where),
        ffn_width=whole(params, "hidden_dim", where),
        norm_eps=number(params, "norm_eps", where),
        rope=Rope(number({"rope_theta": theta} | _given(params), "rope_theta", where)),
        length=whole({"max_seq_len": 32768} | _given(params), "max_seq_len", where),
        window=window,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
