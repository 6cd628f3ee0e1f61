"""What a model is, from its config alone: sizes, heads, positions, what a token takes in H."""

from ..models import Config, DecoderConfig
from ..models.loading import on_meta


def told(config: Config | DecoderConfig) -> list[str]:
    """One line a fact, its name before it. No parameter is read."""
    cell = on_meta(config)
    parameters = sum(x.numel() for x in cell.parameters())
    rows, D = config.n_layers * config.n_kv_heads, cell.row_width
    positions = config.positions if isinstance(config, DecoderConfig) else config.rope
    lines = {
        "family": config.family,
        "parameters": f"{parameters / 1e6:,.1f} million",
        "layers": f"{config.n_layers} of width {config.width}, feed-forward {config.ffn_width}",
        "heads": f"{config.n_heads} query, {config.n_kv_heads} key/value, of {config.head_dim}",
        "vocabulary": f"{config.vocab_size:,}{', head tied to the embedding' if config.tied else ''}",
        "positions": f"{positions}, made for {config.length:,} tokens",
        "reduction": f"{cell.default_reduction} (the family's own)",
        "ends at": ", ".join(map(str, config.eos_token_ids)) or "no token known",
        "a token in H": f"{rows * (4 * D + 8):,} bytes in 16 bits, {rows * (8 * D + 8):,} in float32",
    }
    return [f"  {name:14}{value}" for name, value in lines.items()]
