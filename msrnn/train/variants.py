"""Model variants trained under equal conditions (``make variants TEXT=…``): tables and curves of docs/variants.md.

All variants of a table have the same number of parameters (to about one percent), steps and tokens, and three seeds each. The
number after ± is the standard deviation over the seeds. Every finished run is saved, so a stopped experiment can be resumed.
"""

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..models.registry import build_random
from ..reporting.progress import progress_bar
from ..reporting.statistics import mean
from ..reporting.sweep import Sweep
from ..storage.digest import digest
from .config import TrainConfig
from .data import TrainData
from .tasks import SYMBOLS, TASKS, accuracy, episode_loss, episodes
from .trainer import Diverged, Trainer, bits_per_byte

SEEDS = (0, 1, 2)
POINTS = 15
"""Number of points of a training curve; each is the mean over an equal number of steps."""
EPISODE_LENGTH = 8
"""Symbols of an episode, and rows or memory tokens that a bounded state may carry."""

PLAIN: Mapping[str, Any] = {
    **{"family": "decoder", "width": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16, "context_length": 4096},
    **{"ffn": "relu", "ffn_width": 256},
}
TEXT = TrainConfig(
    PLAIN, steps=600, batch_size=4, chunk_length=128, chunks_per_state=4, lr=1e-2, warmup_steps=60, val_fraction=0.02
)
TASK = replace(TEXT, model={**PLAIN, "n_layers": 2}, batch_size=32, chunk_length=EPISODE_LENGTH, chunks_per_state=1, lr=4e-3)
BOUNDED = "tova:32"
EVAL_REDUCTIONS = ("full", "window:32", "sinks:32:4", "h2o:32", BOUNDED)


@dataclass(frozen=True)
class Variant:
    """One variant, a row of a table.

    Attributes:
        config: training configuration.
        eval_reductions: operators under which the validation split is read after training.
        task: one of ``TASKS`` to train on; empty trains on the text.
    """

    config: TrainConfig
    eval_reductions: Sequence[str] = ("full", BOUNDED)
    task: str = ""


def _with(config: TrainConfig, model: Mapping[str, Any], **fields: Any) -> TrainConfig:
    return replace(config, model={**config.model, **model}, **fields)


NORMS: dict[str, Mapping[str, Any]] = {
    "PostNorm, LayerNorm": {"norm_placement": "post", "norm": "layer"},
    "PreNorm, LayerNorm": {"norm": "layer"},
    "PreNorm, RMSNorm": {},
    "PreNorm, ScaleNorm, FixNorm": {"norm": "scale", "fixnorm": True},
}
LEARNED_ROWS: dict[str, Mapping[str, Any]] = {
    "256 persistent rows, no feed-forward": {"ffn": "none", "ffn_width": 0, "persistent": 256},
    "16 memory tokens": {"memory_tokens": 16},
}
MEMORIES: dict[str, tuple[Mapping[str, Any], str]] = {
    "full": ({}, "full"),
    f"window:{EPISODE_LENGTH}": ({}, f"window:{EPISODE_LENGTH}"),
    f"tova:{EPISODE_LENGTH}": ({}, f"tova:{EPISODE_LENGTH}"),
    f"{EPISODE_LENGTH} memory tokens, window:{EPISODE_LENGTH}": ({"memory_tokens": EPISODE_LENGTH}, f"window:{EPISODE_LENGTH}"),
    f"recurrent memory of {EPISODE_LENGTH}": ({"memory_tokens": EPISODE_LENGTH, "recurrent": True}, "full"),
}
"""State carried into the second chunk of an episode: model fields and spec string of the operator."""
TRAIN_REDUCTIONS = ("window:32", "sinks:32:4", "h2o:32", BOUNDED)
BASE = "PreNorm, RMSNorm, warm-up"
"""The reference variant, which three tables contain."""
VARIANTS: dict[str, Variant] = {
    BASE: Variant(TEXT, EVAL_REDUCTIONS),
    **{f"{name}, warm-up": Variant(_with(TEXT, fields)) for name, fields in NORMS.items() if fields},
    **{f"{name}, no warm-up": Variant(_with(TEXT, fields, warmup_steps=0)) for name, fields in NORMS.items()},
    **{name: Variant(_with(TEXT, fields)) for name, fields in LEARNED_ROWS.items()},
    **{f"trained {spec}": Variant(replace(TEXT, reduction=spec), EVAL_REDUCTIONS) for spec in TRAIN_REDUCTIONS},
    **{
        f"{task}, {name}": Variant(_with(TASK, fields, reduction=spec), (), task)
        for task in TASKS
        for name, (fields, spec) in MEMORIES.items()
    },
}


def measure(variant: Variant, seed: int, text: str) -> dict[str, Any]:
    """Train one variant and return its record: parameters, curve, final results, seconds. A diverged run has no results."""
    begin, config = time.process_time(), replace(variant.config, seed=seed)
    torch.manual_seed(seed)
    data = None if variant.task else TrainData.of(text, config)
    vocab_size = len(data.tokenizer.n_bytes) if data else SYMBOLS + 1
    trainer = Trainer(build_random(config.model_config(vocab_size)), config)
    cell, generator, results = trainer.cell, torch.Generator().manual_seed(seed), {}
    try:
        for index in range(config.steps):
            if data:
                trainer.train_step(data.train[index])
            else:
                first, second, targets = episodes(variant.task, config.chunk_length, config.batch_size, generator)
                trainer.optimizer_step(episode_loss(cell, first, second, targets, config.reduction))
        if data:
            n_bytes = data.tokenizer.n_bytes
            results = {spec: bits_per_byte(cell, data.val, n_bytes, spec) for spec in variant.eval_reductions}
        else:
            results = {variant.task: accuracy(cell, variant.task, config.chunk_length, config.reduction)}
    except Diverged:
        results = {}
    size, losses = max(1, config.steps // POINTS), trainer.losses
    curve = [(i + size, mean(losses[i : i + size]).value) for i in range(0, len(losses) - size + 1, size)]
    parameters = sum(x.numel() for x in cell.parameters())
    return {"parameters": parameters, "curve": curve, "results": results, "seconds": time.process_time() - begin}


def run_all(text: str, folder: Path, workers: int, variants: Mapping[str, Variant] = VARIANTS) -> Sweep:
    """Train every variant and seed that ``folder`` does not contain, in ``workers`` processes with one thread each.

    Raises:
        Error: the text is too short; nothing is trained.
    """
    for variant in variants.values():
        if not variant.task:
            TrainData.of(text, variant.config)
    sweep = Sweep(folder, {"text": digest(text)})
    jobs = {run_key(name, seed, variant): (variant, seed) for seed in SEEDS for name, variant in variants.items()}
    pending = dict(item for _, batch in sweep.pending({"": jobs}) for item in batch.items())
    if not pending:
        return sweep
    pool = multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,))
    with pool, progress_bar(len(jobs), "run", initial=len(jobs) - len(pending)) as bar:
        for key, record in pool.imap_unordered(partial(_run_job, text), pending.items()):
            sweep[key] = record
            bar.update()
    return sweep


def _run_job(text: str, job: tuple[str, tuple[Variant, int]]) -> tuple[str, dict[str, Any]]:
    key, (variant, seed) = job
    return key, measure(variant, seed, text)


def run_key(name: str, seed: int, variant: Variant) -> str:
    """Return the key of a run. It contains a digest of the configuration, so a changed variant is trained again."""
    return f"{name}, seed {seed}, {digest(repr(sorted(asdict(variant).items(), key=str)))[:8]}"
