"""Meta's own folders: ``params.json`` and ``consolidated.00.pth``, ``consolidated.01.pth``, … (LLaMA 1 to 3.3)."""

from pathlib import Path

import torch

from msrnn import Error
from msrnn.layers.rotary import Llama3Rope, Rope
from msrnn.models import Config

from ..extra_files import open_folder
from ..fields import Fields
from ..source import Source
from .meta_layout import PARAMS, ModelParallelShards, join_shards, open_model_parallel, read_params, read_tensors

KNOWN = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps"),
    *("rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len", "max_batch_size"),
}
ROPE_FACTORS = {(4096, 32): 8.0, (8192, 80): 8.0, (16384, 126): 8.0, (2048, 16): 32.0, (3072, 28): 32.0}
"""Factor of the scaled rope by (width, layers) of the published models, because ``use_scaled_rope`` does not give the factor:
8 for 3.1 and 3.3, 32 for the small 3.2."""


def open_checkpoint(folder: Path) -> Source:
    """Open a folder with Meta's files.

    Raises:
        Error: the folder is damaged or has another kind of model.
    """
    params, shards = read_params(folder, KNOWN), open_model_parallel(folder)
    config = config_from_params(params, shards)
    return open_folder(config, read_tensors(shards, config), folder)


def read_config(folder: Path) -> Config:
    """Return the config of a folder, some of it from the shapes of the tensors; raises as :func:`open_checkpoint`."""
    return config_from_params(read_params(folder, KNOWN), open_model_parallel(folder))


def config_from_params(params: Fields, shards: ModelParallelShards) -> Config:
    """Return the config that ``params.json`` and the shapes of the tensors describe.

    The file lacks the constants of Meta's code. The width of the MLP comes from the shapes, and in LLaMA 1 and 2 (-1) also the
    size of the vocabulary. The length and the special tokens follow from the generation of the model, which theta, eps
    and vocabulary identify. A head that equals the embedding is tied (3.2 stores both).

    Raises:
        Error: a field is missing or has a wrong value, or the factor of a scaled rope is unknown.
    """
    width, heads = params.get_int("dim"), params.get_int("n_heads")
    if width % heads:
        raise Error(f"{PARAMS}: dim {width} is no multiple of n_heads {heads}")
    layers = {name.split(".")[1] for name in shards[0] if name.startswith("layers.")}
    n_layers = params.get_int("n_layers", len(layers))
    stored_vocab_size = _joined_shape(shards, "tok_embeddings.weight", "embed", width)[0]
    vocab_size = stored_vocab_size if params.values.get("vocab_size", -1) == -1 else params.get_int("vocab_size")
    theta, eps = params.get_float("rope_theta", 10000.0), params.get_float("norm_eps")
    llama3, scaled = vocab_size >= 128000, bool(params.values.get("use_scaled_rope"))
    length = 131072 if scaled else 8192 if theta == 5e5 else 16384 if theta == 1e6 else 4096 if eps > 1e-6 else 2048
    return Config(
        family="llama",
        vocab_size=vocab_size,
        width=width,
        n_layers=n_layers,
        n_heads=heads,
        n_kv_heads=params.get_int("n_kv_heads", heads),
        head_dim=width // heads,
        ffn_width=_joined_shape(shards, "layers.0.feed_forward.w1.weight", "gate", width)[0],
        norm_eps=eps,
        rope=_scaled_rope(params, theta, width, n_layers) if scaled else Rope(theta),
        context_length=params.get_int("max_seq_len", length),
        tied=_is_tied(shards),
        bos_token_id=128000 if llama3 else 1,
        # of Llama 3: end of text, and for chat models end of message and end of turn
        eos_token_ids=(128001, 128008, 128009) if llama3 else (2,),
    )


def _scaled_rope(params: Fields, theta: float, width: int, n_layers: int) -> Llama3Rope:
    factor = ROPE_FACTORS.get((width, n_layers))
    if factor is None and "rope_scaling_factor" not in params.values:
        raise Error(
            f"{PARAMS}: use_scaled_rope is true, but the factor is missing, and no published model has {n_layers} layers "
            f"of width {width}; expected rope_scaling_factor (8 in Llama 3.1, 32 in the small 3.2)"
        )
    return Llama3Rope(
        theta, params.get_float("rope_scaling_factor", factor), low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192
    )


def _joined_shape(shards: ModelParallelShards, name: str, part: str, width: int) -> tuple[int, ...]:
    if name not in shards[0] or len(shards[0][name].shape) != 2:
        raise Error(f"tensor {name!r} of two axes is missing")
    return join_shards(name, [shard[name] for shard in shards], part, width).shape


def _is_tied(shards: ModelParallelShards) -> bool:
    """Return True without a head, or with a head that equals the embedding in every shard."""
    for shard in shards:
        head, embed = shard.get("output.weight"), shard["tok_embeddings.weight"]
        if head is not None and (head.shape != embed.shape or not torch.equal(head.read(), embed.read())):
            return False
    return True
