"""Fine-tuning through a bounded state: does it recover what eviction costs?

LoRA adapters are trained on the first part of a text, once through the unbounded model and once through a bounded operator,
from the same initial values and on the same tokens. Each adapter, and the base without one, then reads held-out chunks of the
same text and of another one, under both operators.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import lora
from ..argtypes import positive_int, read_text, seed_int
from ..cell.cell import Cell
from ..errors import Error, counted
from ..reductions.registry import parse_reduction
from ..reporting.progress import progress_bar
from ..reporting.report import Report
from ..storage.digest import digest
from ..train.finetune import FinetuneConfig, prepare, split_text
from .digests import code_digest
from .inputs import EvalInputs
from .lm import nll
from .recovery_report import FULL, RecoveryResult, report

SETTINGS = FinetuneConfig(steps=64, lr=1e-3, warmup_steps=6, val_fraction=0.1, target_modules=("q", "k", "v", "o"))
"""Settings of the fine-tuning; the command line sets some of them."""


@dataclass(frozen=True)
class RecoveryModel:
    """One model of the comparison: the base, or the base with an adapter.

    Attributes:
        trained: operator of its fine-tuning; empty for the base.
        seed: seed of its fine-tuning.
    """

    trained: str
    seed: int = 0

    @property
    def key(self) -> str:
        """The first part of its key in the folder of results; the code of the operator follows."""
        return f"trained through {self.trained}, seed {self.seed}" if self.trained else "base"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn eval recovery``."""
    held_out = f"the last {SETTINGS.val_fraction:.0%} are held out".replace("%", "%%")
    parser.add_argument("--text", metavar="FILE", type=Path, required=True, help=f"UTF-8 training text; {held_out}")
    parser.add_argument("--other", metavar="FILE", type=Path, help="another UTF-8 text, read only")
    parser.add_argument("--reduction", metavar="SPEC", default="tova:128", help="bounded operator (default: tova:128)")
    parser.add_argument("--seeds", metavar="N", type=seed_int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    for name, default, text in (
        ("steps", SETTINGS.steps, f"optimizer steps of {SETTINGS.chunk_length} tokens"),
        ("chunk", 1024, "tokens per held-out chunk"),
        ("chunks", 4, "held-out chunks of each text"),
    ):
        parser.add_argument(f"--{name}", metavar="N", type=positive_int, default=default, help=f"{text} (default: {default})")


def run(args: argparse.Namespace, inputs: EvalInputs) -> Report:
    """Train the adapters that ``--out`` does not contain yet, and compare all of them."""
    reduction = parse_reduction(args.reduction)
    operators, code = (FULL, str(reduction)), code_digest(reduction)
    if reduction.size is None:
        raise Error(f"--reduction is {args.reduction!r}; expected a bounded operator")
    inputs.cell.operators_per_layer(reduction)  # refuses an operator that the model cannot use
    text = read_text(args.text)
    others = {} if args.other is None else {args.other.stem: read_text(args.other)}
    if args.text.stem in others:
        raise Error(f"--text and --other are both called {args.text.stem}; expected two texts with different names")

    def encode(text: str) -> Sequence[int]:
        return inputs.tokenizer.encode(text).ids

    config, length = replace(SETTINGS, steps=args.steps), args.chunk
    held_out = {args.text.stem: text[len(text) - int(config.val_fraction * len(text)) :], **others}
    chunks = {name: spread_chunks(name, part, encode, length, args.chunks) for name, part in held_out.items()}
    settings = {**asdict(config), "reduction": operators[1], "chunk": length, "chunks": args.chunks}
    if inputs.cell.adapters:
        raise Error("--lora is given, but the experiment trains its own adapters; expected MODEL without one")
    texts = {"text": digest(text), "other": digest("".join(others.values()))}
    sweep = inputs.sweep(args.out, "recovery", config=digest(repr(settings)), **texts)
    models = (RecoveryModel(""), *(RecoveryModel(name, seed) for seed in args.seeds for name in operators))
    runs = {f"{x.key} {code}": x for x in models}
    for _, batch in inputs.pending(sweep, {key: {key: x} for key, x in runs.items()}, 1):
        for key, x in batch.items():
            one = replace(config, reduction=x.trained or None, seed=x.seed)
            sweep[key] = measure(inputs.cell, one, x, text, encode, chunks, operators, inputs.progress)
    results = [RecoveryResult(x.trained, x.seed, **sweep[key]) for key, x in runs.items()]
    return report(results, operators, config, length)


def spread_chunks(name: str, text: str, encode: Callable[[str], Sequence[int]], length: int, count: int) -> Tensor:
    """Return ``count`` chunks of ``length`` tokens, spread evenly over ``text``, ``(count, length)`` int64.

    Raises:
        Error: the text is too short.
    """
    bos = list(encode(""))
    ids, step = torch.tensor(list(encode(text))[len(bos) :], dtype=torch.int64), length - len(bos)
    if step < 2 or len(ids) < count * step:
        found = f"the held-out part of {name} has {counted(len(ids), 'token')}"
        raise Error(f"{found}; expected {count} chunks of {step}, at least 2 each")
    starts = [i * ((len(ids) - step) // max(1, count - 1)) for i in range(count)]
    return torch.stack([torch.cat((torch.tensor(bos, dtype=torch.int64), ids[i : i + step])) for i in starts])


def measure(
    cell: Cell,
    config: FinetuneConfig,
    model: RecoveryModel,
    text: str,
    encode: Callable[[str], Sequence[int]],
    chunks: Mapping[str, Tensor],
    operators: Sequence[str],
    progress: bool,
) -> dict[str, Any]:
    """Train one adapter, read all chunks, and remove the adapter again.

    Returns:
        ``losses``, by text and operator the nats per token of each chunk; ``curve``, the training loss of each step.
    """
    curve: list[float] = []
    try:
        if model.trained:
            batches, _ = split_text(text, encode, config, cell.device)
            with torch.random.fork_rng(devices=[]):
                trainer = prepare(cell, config)
                with progress_bar(config.steps, "step", label=model.key, enabled=progress) as bar:
                    for index in range(config.steps):
                        trainer.train_step(batches[index])
                        bar.update()
            curve = trainer.losses
            cell.eval().requires_grad_(False)
        losses = {
            name: {operator: [_loss(cell, row, operator) for row in rows] for operator in operators}
            for name, rows in chunks.items()
        }
    finally:
        if cell.adapters:
            lora.remove(cell)
    return {"losses": losses, "curve": curve}


def _loss(cell: Cell, ids: Tensor, operator: str) -> float:
    return float(nll(cell, ids[None].to(cell.device), operator).double().mean())
