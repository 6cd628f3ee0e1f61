"""Recipes and texts that train in a second."""

import random

from msrnn.train import Recipe

MODEL = {
    "family": "llama",
    "width": 16,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "head_dim": 8,
    "ffn_width": 24,
    "norm_eps": 1e-5,
    "rope": {"kind": "default", "theta": 100.0},
    "length": 64,
}


DECODER = {**{name: x for name, x in MODEL.items() if name not in ("norm_eps", "rope")}, "family": "decoder", "dropout": 0.2}
"""Of parts, and drawing random numbers."""
WORDS = ["the", "sea", "was", "calm,", "and", "naïve", "whales", "slept", "–", "far", "off."]


def recipe(**facts) -> Recipe:
    """A run of 12 steps, saved every 4, through TOVA; ``facts`` are other fields."""
    small = {"steps": 12, "batch": 3, "chunk": 10, "reduction": "tova:6", "carry": 3, "warmup": 2, "every": 4, "held_out": 0.2}
    return Recipe(**{"model": MODEL, **small, **facts})


def words(n: int = 400, seed: int = 0) -> str:
    """A text of a few words in any order, not all of it ASCII."""
    return " ".join(random.Random(seed).choices(WORDS, k=n))
