"""The training loop: run all steps of a configuration, or resume a run from its last checkpoint."""

import time
from pathlib import Path

import torch

from ..errors import Error
from ..models.registry import build_random
from ..reporting.progress import progress_bar
from ..storage.digest import digest
from . import checkpointing
from .config import TrainConfig
from .data import TrainData
from .trainer import Trainer, bits_per_byte


def train(config: TrainConfig, text: str, folder: str | Path, *, progress: bool = False) -> Trainer:
    """Train a new cell on ``text``, or resume the run in ``folder``, until the last step.

    A stopped run resumes from its last checkpoint and ends with the same bits, on the same machine with the same number of
    threads. The random state of the caller is unchanged.

    Args:
        config: the model and the training settings.
        text: training text; its end is the validation split.
        folder: a new or empty folder, or the folder of this run. It will contain the model folder and the training state.
        progress: True to show a progress bar.

    Returns:
        The finished :class:`Trainer`, with the cell in training mode, the losses and the validations.

    Raises:
        Error: before the first step, if the text is too short, or if the folder contains something else or cannot be written.
        Diverged: the loss is not finite.
    """
    folder = Path(folder)
    resumed = _is_occupied(folder)
    if resumed:
        checkpointing.check_same_run(folder, config, digest(text))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        data = TrainData.of(text, config, checkpointing.read_tokenizer(folder) if resumed else None)
        torch.manual_seed(config.seed)
        trainer = Trainer(build_random(config.model_config(len(data.tokenizer.n_bytes))), config)
        trainer.cell.initial_state(config.batch_size, config.reduction)  # refuses an operator that the model cannot use
        if resumed:
            checkpointing.restore(folder, trainer)
            checkpointing.save(folder, trainer, data)  # completes a killed save, and tests that the folder can be written
        else:
            checkpointing.create(folder, trainer, data)
        _run_remaining_steps(trainer, data, folder, progress)
    return trainer


def _run_remaining_steps(trainer: Trainer, data: TrainData, folder: Path, progress: bool) -> None:
    config, done = trainer.config, len(trainer.losses)
    with progress_bar(config.steps, "step", initial=done, label="training", enabled=progress) as bar:
        begin = time.perf_counter()
        for index in range(done, config.steps):
            trainer.train_step(data.train[index])
            bar.update()
            speed = (index + 1 - done) * config.batch_size * config.chunk_length / (time.perf_counter() - begin)
            bar.set_postfix_str(f"loss {trainer.losses[-1]:.3f}, {speed:,.0f} tokens/s", refresh=False)
            if (index + 1) % config.eval_every == 0 or index + 1 == config.steps:
                bits = bits_per_byte(trainer.cell, data.val, data.tokenizer.n_bytes, config.reduction)
                trainer.validation[index + 1] = bits
                checkpointing.save(folder, trainer, data)
                if progress:
                    bar.write(f"step {index + 1:>6}  loss {trainer.losses[-1]:.4f}  validation {bits:.4f} bits/byte")


def _is_occupied(folder: Path) -> bool:
    try:
        return folder.is_dir() and any(folder.iterdir())
    except OSError as error:
        raise Error(f"cannot read {folder} ({error.strerror})") from None
