"""Print the sizes of a model and of its KV cache.

The command reads the config, and for a local MODEL the names, shapes and types of the weights. It downloads no weights.
"""

import argparse

from ..cell.cell import Cell
from ..diagnostics.state_memory import layer_token_bytes, token_bytes
from ..models import Config, DecoderConfig
from ..models.registry import build_on_meta
from ..reductions.per_layer import format_operators, format_per_layer
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
    ropes = config.ropes if isinstance(config, Config) else (positions,)
    state = cell.initial_state(1, "all-layers:full")
    half, single = token_bytes(state, itemsize=2), token_bytes(state, itemsize=4)
    lines = {
        "family": config.family,
        "parameters": f"{parameters / 1e6:,.1f} million",
        **({} if weights is None else {"weights": weights}),
        "layers": f"{config.n_layers} of width {config.width}, MLP width {config.ffn_width}",
        "heads": f"{config.n_heads} query, {config.n_kv_heads} key/value, of dimension {config.head_dim}",
        "vocabulary": f"{config.vocab_size:,}{', LM head tied to the embedding' if config.tied else ''}",
        "positions": f"{format_per_layer(rope or 'none' for rope in ropes)}, context length {config.context_length:,}",
        "reduction": f"{format_operators(cell.default_reduction)} (default of the family)",
        "eos token ids": ", ".join(map(str, config.eos_token_ids)) or "none",
        "KV cache": f"{half:,} bytes per token in 16 bits, {single:,} in float32",
        **bounded_layers(cell),
    }
    return [f"  {name:14}{value}" for name, value in lines.items()]


def bounded_layers(cell: Cell) -> dict[str, str]:
    """Return what H of the published model holds in the layers that it bounds, and by how much it grows in the others."""
    state = cell.initial_state(1)
    held = [(layer_token_bytes(H, itemsize=2), size) for H in state if isinstance(size := H.reduction.size, int)]
    grows = [layer_token_bytes(H, itemsize=2) for H in state if H.reduction.size is None]
    if not held:
        return {}
    text = f"at most {sum(n * size for n, size in held) / 1e6:,.1f} MB in 16 bits in {len(held)} layers with a window"
    return {"bounded": f"{text}; {sum(grows):,} bytes per token in {len(grows)} layers without" if grows else text}
