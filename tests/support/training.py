"""Configurations and texts that train in a second."""

import random
from pathlib import Path

from msrnn.train import TrainConfig

MODEL = {
    "family": "llama",
    "width": 16,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "head_dim": 8,
    "ffn_width": 24,
    "norm_eps": 1e-5,
    "rope": {"rope_type": "default", "theta": 100.0},
    "context_length": 64,
}
DECODER = {**{name: x for name, x in MODEL.items() if name not in ("norm_eps", "rope")}, "family": "decoder", "dropout": 0.2}
"""A decoder with dropout, so that training uses random numbers."""
WORDS = ["the", "sea", "was", "calm,", "and", "naïve", "whales", "slept", "–", "far", "off."]


def train_config(**fields) -> TrainConfig:
    """Return a configuration of 12 steps under TOVA with a checkpoint every 4 steps; ``fields`` replace single fields."""
    small = {"steps": 12, "batch_size": 3, "chunk_length": 10, "reduction": "tova:6", "chunks_per_state": 3}
    return TrainConfig(**{"model": MODEL, **small, "warmup_steps": 2, "eval_every": 4, "val_fraction": 0.2, **fields})


def words(n: int = 400, seed: int = 0) -> str:
    """Return a text of ``n`` random words, not all of them ASCII."""
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def folder_contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of the folder of a run by name, without the figures."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".png"}
