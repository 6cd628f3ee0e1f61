"""Mistral's own folders: ``params.json`` and ``consolidated.safetensors`` (v0.1 and v0.2: ``consolidated.00.pth``)."""

from pathlib import Path

from msrnn.errors import is_int
from msrnn.layers.rotary import Rope, YarnRope
from msrnn.models import Config

from ..extra_files import open_folder
from ..fields import Fields
from ..source import Source
from ..tied_head import compare_with_head
from .meta_layout import PARAMS, open_model_parallel, read_params, read_tensors
from .rope import ORIGINAL_LENGTH, yarn_mscale

KNOWN = {
    *("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size", "rope_theta"),
    *("sliding_window", "max_seq_len", "max_batch_size", "max_position_embeddings", "tied_embeddings", "yarn", "dtype"),
}
NEUTRAL = {"model_type": ("transformer",), "causal": (True,), "activation": ("silu",), "use_biases": (False,)}
"""Fields of newer folders with the values that mean a LLaMA."""
YARN = {"factor", ORIGINAL_LENGTH, "beta", "alpha", "apply_scale"}


def open_checkpoint(folder: Path) -> Source:
    """Open a folder with Mistral's files.

    Raises:
        Error: the folder is damaged or has another kind of model.
    """
    config, shards = read_config(folder), open_model_parallel(folder)
    tensors = read_tensors(shards, config)
    if config.tied and (head := shards[0].get("output.weight")) and (embed := tensors.get("embed.weight")):
        tensors["embed.weight"] = compare_with_head(embed, head, PARAMS, "output.weight")
    return open_folder(config, tensors, folder)


def read_config(folder: Path) -> Config:
    """Return the config of a folder; raises as :func:`open_checkpoint`."""
    return config_from_params(read_params(folder, KNOWN, NEUTRAL))


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
    theta = params.get_float("rope_theta", 1e6 if window is None else 1e4)
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
        rope=_yarn(params, theta) if params.values.get("yarn") else Rope(theta),
        context_length=params.get_int("max_position_embeddings", params.get_int("max_seq_len", 32768)),
        tied=params.values.get("tied_embeddings", False),
        sliding_window=window,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


def _yarn(params: Fields, theta: float) -> YarnRope:
    """Return YaRN with Mistral's names: beta and alpha are the rotations at the ends of the ramp (beta_fast, beta_slow).

    ``apply_scale`` switches YaRN's factor on cos and sin. It is required, because vLLM and transformers assume different
    values where it is missing.
    """
    yarn = params.values["yarn"]
    if not isinstance(yarn, dict) or yarn.keys() - YARN:
        raise params.error("yarn", f"an object with {', '.join(sorted(YARN))}")
    fields = Fields(yarn, f"{PARAMS}: yarn")
    scaled, factor = fields.values.get("apply_scale"), fields.get_float("factor")
    if not isinstance(scaled, bool):
        raise fields.error("apply_scale", "true or false (false in Ministral 3)")
    if factor < 1:
        raise fields.error("factor", "at least 1")
    return YarnRope(
        theta,
        factor,
        original_length=fields.get_int(ORIGINAL_LENGTH),
        attention_factor=yarn_mscale(factor) if scaled else 1.0,
        beta_fast=fields.get_float("beta", 32.0),
        beta_slow=fields.get_float("alpha", 1.0),
    )
