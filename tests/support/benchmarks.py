"""A tiny model and settings for the tests of the benchmarks."""

from functools import partial
from pathlib import Path

import torch
from support.tiny_models import CONFIG, tiny_cell

import converters
from msrnn.bench.settings import Bench

TOKENS, SIZE = 32, 8
LAYERS, HEADS, DIM = CONFIG["n_layers"], CONFIG["n_kv_heads"], CONFIG["head_dim"]


def save_tiny_model(folder: Path) -> Path:
    """Save the same tiny model in the library's own format and as a Hugging Face folder, in ``own`` and ``hf``."""
    tiny_cell(dtype=torch.float32, tied=True).save(folder / "own")
    converters.convert(folder / "own", folder / "hf", to="hf")
    return folder


def tiny_bench(folder: Path) -> Bench:
    """Return settings for the model in ``folder``."""
    return Bench(
        load=partial(converters.load, str(folder / "own")),
        export=lambda: folder / "hf",
        tokenizer=lambda: None,
        ids=torch.randint(50, (16 * TOKENS,), generator=torch.Generator().manual_seed(0)),
        device=torch.device("cpu"),
        tokens=TOKENS,
        size=SIZE,
        rounds=2,
    )


def set_times(monkeypatch, **times):
    """Replace the timing: no contender runs, and ``times`` are their seconds in order."""
    monkeypatch.setattr(Bench, "time", lambda self, contenders, rounds, **_: dict(zip(contenders, times.values(), strict=True)))


def command(folder: Path, *args) -> list[str]:
    """Return the arguments of ``msrnn bench`` for the model in ``folder``."""
    return ["bench", str(folder / "own"), "--tokens", str(TOKENS), "--size", str(SIZE), "--rounds", "1", *map(str, args)]
