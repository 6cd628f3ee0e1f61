"""Print the sizes of a model and of its KV cache.

The command reads the config, and for a local MODEL the names, shapes and types of the weights. It downloads no weights.
"""

import argparse

from ..cell.cell import Cell
from ..diagnostics.state_memory import format_layers, layer_token_bytes, token_bytes
from ..models import Config, DecoderConfig
from ..models.registry import build_on_meta
from ..reductions.per_layer import format_operators, format_per_layer
from .loading import load_config
from .options import add_source_arguments, add_weights_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn info``."""
    add_source_arguments(parser)
    add_weights_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Print MODEL and its summary."""
    import converters.stored_weights  # deferred, because msrnn --help imports no reader

    config, stored = load_config(args), converters.stored_weights
    packed = None if args.weights is None else f"{stored.describe_packed(args.model, args.weights)} ({args.weights})"
    print(args.model, *describe(config, stored.describe_weights(args.model), packed), sep="\n")


def describe(config: Config | DecoderConfig, weights: str | None = None, packed: str | None = None) -> list[str]:
    """Return the lines of the summary, each with a name and a value.

    Args:
        config: of the model.
        weights: how the weights are stored; None leaves the line out.
        packed: how they are held in memory with ``--weights``; None leaves the line out.
    """
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
        **({} if packed is None else {"in memory": packed}),
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
    layers = list(enumerate(cell.initial_state(1)))
    held = {l: layer_token_bytes(H, itemsize=2) * size for l, H in layers if isinstance(size := H.reduction.size, int)}
    grows = {l: layer_token_bytes(H, itemsize=2) for l, H in layers if H.reduction.size is None}
    if not held:
        return {}
    text = f"at most {sum(held.values()) / 1e6:,.1f} MB in 16 bits in {len(held)} layers with a window"
    if not grows:
        return {"bounded": text}
    others = f"{sum(grows.values()):,} bytes per token in {len(grows)} layers without ({format_layers(grows)})"
    return {"bounded": f"{text} ({format_layers(held)}); {others}"}
