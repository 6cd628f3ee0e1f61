"""Meta's own folders: ``params.json`` and ``consolidated.00.pth``, ``consolidated.01.pth``, … (LLaMA 1 to 3.3)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from msrnn import Error
from msrnn.layers.rotary import Llama3, Rope
from msrnn.models import Config
from msrnn.storage.files import read_json

from ..json_fields import number, whole
from ..sidecar_files import in_folder
from ..source import Source
from .meta_layout import Pieces, check_known, join, open_pieces, read_tensors

KNOWN = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps"),
    *("rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len", "max_batch_size"),
}
SCALED = {(4096, 32): 8.0, (8192, 80): 8.0, (16384, 126): 8.0, (2048, 16): 32.0, (3072, 28): 32.0}
"""``use_scaled_rope`` says that the rope is scaled, not by how much. (width, layers) of what was published: 3.1 and 3.3 by 8,
the small 3.2 by 32."""


def open_folder(folder: Path) -> Source:
    """A folder of Meta's.

    Raises:
        Error: whatever params.json, a piece or a tensor's name says that this library is not.
    """
    pieces = open_pieces(folder)
    config = config_from_params(read_json(folder / "params.json"), pieces)
    return Source(config, read_tensors(pieces, config), in_folder(folder))


def read_config(folder: Path) -> Config:
    """The facts of a folder; some stand only in the shapes of its tensors."""
    return config_from_params(read_json(folder / "params.json"), open_pieces(folder))


def config_from_params(params: Mapping[str, Any], pieces: Pieces) -> Config:
    """``params.json`` and the shapes of the tensors -> :class:`Config`.

    The file leaves out what Meta's code knows: the width of the feed-forward and, in LLaMA 1 and 2, the size of the vocabulary
    (-1) come from the shapes; the length and the special tokens from the generation, which theta, eps and vocabulary tell.
    A head that equals the embedding is tied (3.2 stores both).

    Raises:
        Error: a fact that is missing, ill-typed or not known; scaled rope by a factor that nothing tells.
    """
    where = "params.json"
    check_known(params, KNOWN)
    given = {name: value for name, value in params.items() if value is not None}
    width, heads = whole(given, "dim", where), whole(given, "n_heads", where)
    if width % heads:
        raise Error(f"{where}: dim {width} is no multiple of n_heads {heads}")
    layers = {name.split(".")[1] for name in pieces[0] if name.startswith("layers.")}
    n_layers = whole({"n_layers": len(layers)} | given, "n_layers", where)
    embed = _whole_shape(pieces, "tok_embeddings.weight", "embed", width)
    vocab = embed[0] if given.get("vocab_size", -1) == -1 else whole(given, "vocab_size", where)
    theta = number({"rope_theta": 10000.0} | given, "rope_theta", where)
    llama3, eps = vocab >= 128000, number(given, "norm_eps", where)
    scaled = bool(given.get("use_scaled_rope"))
    if scaled:
        factor = given.get("rope_scaling_factor", SCALED.get((width, n_layers)))
        if factor is None:
            raise Error(
                f"{where}: use_scaled_rope is true, but the factor is not said, and no published model has {n_layers} layers "
                f"of width {width}; expected rope_scaling_factor beside it (8 in Llama 3.1, 32 in the small 3.2)"
            )
        rope: Rope = Llama3(theta, number({"factor": factor}, "factor", where), low=1.0, high=4.0, length=8192)
    else:
        rope = Rope(theta)
    length = 131072 if scaled else 8192 if theta == 5e5 else 16384 if theta == 1e6 else 4096 if eps > 1e-6 else 2048
    return Config(
        family="llama",
        vocab_size=vocab,
        width=width,
        n_layers=n_layers,
        n_heads=heads,
        n_kv_heads=whole({"n_kv_heads": heads} | given, "n_kv_heads", where),
        head_dim=width // heads,
        ffn_width=_whole_shape(pieces, "layers.0.feed_forward.w1.weight", "gate", width)[0],
        norm_eps=eps,
        rope=rope,
        length=whole({"max_seq_len": length} | given, "max_seq_len", where),
        tied=_tied(pieces),
        bos_token_id=128000 if llama3 else 1,
        eos_token_ids=(128001, 128008, 128009) if llama3 else (2,),  # of text, and for chat models of message and turn
    )


def _whole_shape(pieces: Pieces, name: str, part: str, width: int) -> tuple[int, ...]:
    if name not in pieces[0] or len(pieces[0][name].shape) != 2:
        raise Error(f"tensor {name!r} of two axes is missing")
    return join(name, [piece[name] for piece in pieces], part, width).shape


def _tied(pieces: Pieces) -> bool:
    """Whether there is no head of its own: none at all, or in every piece the embedding once more."""
    for piece in pieces:
        head, embed = piece.get("output.weight"), piece["tok_embeddings.weight"]
        if head is not None and (head.shape != embed.shape or not torch.equal(head.read(), embed.read())):
            return False
    return True
