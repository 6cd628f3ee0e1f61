"""Variants side by side, trained alike: ``make variants TEXT=…``. Tables and curves of docs/variants.md.

Within a table all have as many parameters (to about a percent), steps and tokens, and three seeds each; what is said after ± is
the standard deviation over these. Every finished run is kept, so that a table that was stopped goes on.
"""

import multiprocessing
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..models.registry import build_random
from ..reporting.progress import progress_bar
from ..reporting.sweep import Sweep
from ..storage.digest import digest
from .config import Recipe
from .data import Data
from .tasks import SYMBOLS, TASKS, accuracy, episode_loss, episodes
from .trainer import Diverged, Run, bits_per_byte

SEEDS = (0, 1, 2)
BINS = 15
"""Points of a curve, each the mean of as many steps."""
LENGTH = 8
"""Symbols of an episode, and rows, or memory tokens, that the bounded ones may carry."""

PLAIN: Mapping[str, Any] = {
    **{"family": "decoder", "width": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16, "length": 4096},
    **{"ffn": "relu", "ffn_width": 256},
}
TEXT = Recipe(PLAIN, steps=600, batch=4, chunk=128, carry=4, lr=1e-2, warmup=60, held_out=0.02)
TASK = replace(TEXT, model={**PLAIN, "n_layers": 2}, steps=600, batch=32, chunk=LENGTH, carry=1, lr=4e-3)
BOUNDED = "tova:32"
READ = ("full", "window:32", "sinks:32:4", "h2o:32", BOUNDED)


@dataclass(frozen=True)
class Variant:
    """One line of a table.

    Attributes:
        recipe: how it is trained.
        read: the reductions that the held-out text is read under in the end.
        task: what it is trained on, of ``TASKS``; none: the text.
    """

    recipe: Recipe
    read: Sequence[str] = ("full", BOUNDED)
    task: str = ""


def _with(recipe: Recipe, model: Mapping[str, Any], **facts: Any) -> Recipe:
    return replace(recipe, model={**recipe.model, **model}, **facts)


NORMS: dict[str, Mapping[str, Any]] = {
    "PostNorm, LayerNorm": {"placement": "post", "norm": "layer"},
    "PreNorm, LayerNorm": {"norm": "layer"},
    "PreNorm, RMSNorm": {},
    "PreNorm, ScaleNorm, FixNorm": {"norm": "scale", "fixnorm": True},
}
LEARNED: dict[str, Mapping[str, Any]] = {
    "256 persistent rows, no feed-forward": {"ffn": "none", "ffn_width": 0, "persistent": 256},
    "16 memory tokens": {"memory_tokens": 16},
}
WAYS: dict[str, tuple[Mapping[str, Any], str]] = {  # how much of the first chunk is carried into the second
    "full": ({}, "full"),
    f"window:{LENGTH}": ({}, f"window:{LENGTH}"),
    f"tova:{LENGTH}": ({}, f"tova:{LENGTH}"),
    f"{LENGTH} memory tokens, window:{LENGTH}": ({"memory_tokens": LENGTH}, f"window:{LENGTH}"),
    f"recurrent memory of {LENGTH}": ({"memory_tokens": LENGTH, "recurrent": True}, "full"),
}
TRAINED = ("window:32", "sinks:32:4", "h2o:32", BOUNDED)
BASE = "PreNorm, RMSNorm, warm-up"
"""What is plain: it stands in three of the tables."""
VARIANTS: dict[str, Variant] = {
    BASE: Variant(TEXT, READ),
    **{f"{name}, warm-up": Variant(_with(TEXT, facts)) for name, facts in NORMS.items() if facts},
    **{f"{name}, no warm-up": Variant(_with(TEXT, facts, warmup=0)) for name, facts in NORMS.items()},
    **{name: Variant(_with(TEXT, facts)) for name, facts in LEARNED.items()},
    **{f"trained {way}": Variant(replace(TEXT, reduction=way), READ) for way in TRAINED},
    **{
        f"{task}, {name}": Variant(_with(TASK, facts, reduction=way), (), task)
        for task in TASKS
        for name, (facts, way) in WAYS.items()
    },
}


def measure(variant: Variant, seed: int, text: str) -> dict[str, Any]:
    """One run: its curve, and how it ended. One that came to a loss which is no number has no end, and says so."""
    begin, recipe = time.process_time(), replace(variant.recipe, seed=seed)
    torch.manual_seed(seed)
    data = None if variant.task else Data.of(text, recipe)
    run = Run(build_random(recipe.config(len(data.vocabulary.n_bytes) if data else SYMBOLS + 1)), recipe)
    draw, end = torch.Generator().manual_seed(seed), {}
    try:
        for index in range(recipe.steps):
            if data:
                run.step(data.learnt[index])
            else:
                first, second, targets = episodes(variant.task, recipe.chunk, recipe.batch, draw)
                run.learn(episode_loss(run.cell, first, second, targets, recipe.reduction))
        end = {way: bits_per_byte(run.cell, data.held, data.vocabulary.n_bytes, way) for way in variant.read} if data else {}
        if variant.task:
            end = {variant.task: accuracy(run.cell, variant.task, recipe.chunk, recipe.reduction)}
    except Diverged:
        end = {}
    size = max(1, recipe.steps // BINS)
    curve = {i + size: statistics.fmean(run.losses[i : i + size]) for i in range(0, len(run.losses) - size + 1, size)}
    parameters = sum(x.numel() for x in run.cell.parameters())
    return {"parameters": parameters, "curve": [*curve.items()], "end": end, "seconds": time.process_time() - begin}


def run_all(text: str, folder: Path, workers: int, variants: Mapping[str, Variant] = VARIANTS) -> Sweep:
    """Every variant and seed that ``folder`` does not have yet, some side by side, one thread each.

    Raises:
        Error: a text that is too short, before anything is trained.
    """
    for variant in variants.values():
        if not variant.task:
            Data.of(text, variant.recipe)
    sweep = Sweep(folder, {"text": digest(text)})
    jobs = {key_of(name, seed, variant): (variant, seed) for seed in SEEDS for name, variant in variants.items()}
    missing = dict(pair for _, some in sweep.pending({"": jobs}) for pair in some.items())
    if not missing:
        return sweep
    pool = multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,))
    with pool, progress_bar(len(jobs), "run", initial=len(jobs) - len(missing)) as bar:
        for key, record in pool.imap_unordered(partial(_job, text), missing.items()):
            sweep[key] = record
            bar.update()
    return sweep


def _job(text: str, job: tuple[str, tuple[Variant, int]]) -> tuple[str, dict[str, Any]]:
    key, (variant, seed) = job
    return key, measure(variant, seed, text)


def key_of(name: str, seed: int, variant: Variant) -> str:
    """What a run is called: another recipe is another run."""
    return f"{name}, seed {seed}, {digest(repr(sorted(asdict(variant).items(), key=str)))[:8]}"
