"""Print the sizes of a model and of its KV cache.

The command reads the config, and for a local MODEL the names, shapes and types of the weights. It downloads no weights.
"""

import argparse

from ..diagnostics.state_memory import token_bytes
from ..models import Config, DecoderConfig
from ..models.registry import build_on_meta
from ..reductions.per_layer import format_operators
from .loading import load_config
from .options import add_source_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn info``."""
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Print MODEL and its summary."""
    import converters.stored_weights  # deferred, because msrnn --help imports no reader

    config = load_config(args)
    print(args.model, *describe(config, converters.stored_weights.describe_weights(args.model)), sep="\n")


def describe(config: Config | DecoderConfig, weights: str | None = None) -> list[str]:
    """Return the lines of the summary, each with a name and a value; ``weights`` describes how the weights are stored."""
    cell = build_on_meta(config)
    parameters = sum(x.numel() for x in cell.parameters())
    positions = config.positions if isinstance(config, DecoderConfig) else config.rope
    state = cell.initial_state(1, "full")
    half, single = token_bytes(state, itemsize=2), token_bytes(state, itemsize=4)
    lines = {
        "family": config.family,
        "parameters": f"{parameters / 1e6:,.1f} million",
        **({} if weights is None else {"weights": weights}),
        "layers": f"{config.n_layers} of width {config.width}, MLP width {config.ffn_width}",
        "heads": f"{config.n_heads} query, {config.n_kv_heads} key/value, of dimension {config.head_dim}",
        "vocabulary": f"{config.vocab_size:,}{', LM head tied to the embedding' if config.tied else ''}",
        "positions": f"{positions}, context length {config.context_length:,}",
        "reduction": f"{format_operators(cell.default_reduction)} (default of the family)",
        "eos token ids": ", ".join(map(str, config.eos_token_ids)) or "none",
        "KV cache": f"{half:,} bytes per token in 16 bits, {single:,} in float32",
    }
    return [f"  {name:14}{value}" for name, value in lines.items()]
