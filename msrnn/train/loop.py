"""The training loop: run all steps of a configuration, or resume a run from its last checkpoint."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..distributed.ranks import Ranks
from ..distributed.whole import errors_together
from ..errors import Error
from ..models.registry import build_random
from ..models.splitting import distribute
from ..reporting.progress import progress_bar
from ..storage.digest import digest
from . import checkpointing
from .config import TrainConfig
from .data import Streams, TrainData
from .model_files import ModelFiles, read_tokenizer
from .trainer import Trainer, bits_per_byte


def train(config: TrainConfig, text: str, folder: str | Path, *, group: Any = None, progress: bool = False) -> Trainer:
    """Train a new cell on ``text``, or resume the run in ``folder``, until the last step.

    A stopped run resumes from its last checkpoint and ends with the same bits, on the same machine with the same number of
    threads. The random state of the caller is unchanged.

    Args:
        config: the model and the training settings.
        text: training text; its end is the validation split.
        folder: a new or empty folder, or the folder of this run. It will contain the model folder and the training state.
        group: a process group of ``torch.distributed``: each process holds and trains its slices of the model, as
            :func:`msrnn.distribute` describes, and all read the same batches. Every process has the whole model in memory at
            the start. The files are those of one process, and any number of processes can resume the run.
        progress: True to show a progress bar.

    Returns:
        The finished :class:`Trainer`, with the cell in training mode, the losses and the validations.

    Raises:
        Error: before the first step, if the text is too short, if the folder contains something else or cannot be written, or
            if the model cannot be split between the processes of ``group``.
        Diverged: the loss is not finite.
    """
    folder = Path(folder)
    settings = {**asdict(config), "text": digest(text)}
    resumed = find_run(folder, settings, None if group is None else Ranks.of(group))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        data = TrainData.of(text, config, read_tokenizer(folder) if resumed else None)
        torch.manual_seed(config.seed)
        cell = build_random(config.model_config(len(data.tokenizer.n_bytes)))
        if group is not None:
            cell = distribute(cell, group)
        trainer = Trainer(cell, config)
        trainer.cell.initial_state(config.batch_size, config.reduction)  # refuses an operator that the model cannot use
        run = Run(trainer, folder, ModelFiles(data.tokenizer), settings)
        run.start(resumed)

        def validate() -> float:
            return bits_per_byte(trainer.cell, data.val, data.tokenizer.n_bytes, config.reduction)

        run.finish(data.train, validate, config.eval_every, "bits/byte", progress)
    return trainer


@dataclass(frozen=True, eq=False)
class Run:
    """A trainer and the folder of its checkpoints.

    Attributes:
        trainer: the trainer.
        folder: the folder of the run.
        files: the files for other programs.
        settings: as of :func:`~msrnn.train.checkpointing.check_same_run`.
    """

    trainer: Trainer
    folder: Path
    files: checkpointing.RunFiles
    settings: Mapping[str, Any]

    def start(self, resumed: bool) -> None:
        """Create the folder of a new run, or restore the checkpoint of a stopped one.

        Raises:
            Error: the folder cannot be written, or a file in it is damaged.
        """
        if resumed:
            checkpointing.restore(self.folder, self.trainer)
            self.save()  # completes a killed save, and tests that the folder can be written
        else:
            checkpointing.create(self.folder, self.trainer, self.files, self.settings)

    def save(self) -> None:
        """Replace the checkpoint."""
        checkpointing.save(self.folder, self.trainer, self.files, self.settings)

    def finish(self, batches: Streams, validate: Callable[[], float], eval_every: int, unit: str, progress: bool) -> None:
        """Do the remaining steps; validate and save every ``eval_every`` steps and at the end.

        Args:
            batches: the input of each step.
            validate: returns the validation loss, in ``unit``.
            eval_every: number of steps between two checkpoints.
            unit: of the validation loss.
            progress: True to show a progress bar and a line for each validation.
        """
        trainer, config, done = self.trainer, self.trainer.config, len(self.trainer.losses)
        with progress_bar(config.steps, "step", initial=done, label="training", enabled=progress) as bar:
            begin = time.perf_counter()
            for index in range(done, config.steps):
                trainer.train_step(batches[index])
                bar.update()
                speed = (index + 1 - done) * batches.batch_size * batches.chunk_length / (time.perf_counter() - begin)
                bar.set_postfix_str(f"loss {trainer.losses[-1]:.3f}, {speed:,.0f} tokens/s", refresh=False)
                if (index + 1) % eval_every == 0 or index + 1 == config.steps:
                    value = trainer.validation[index + 1] = validate()
                    self.save()
                    if progress:
                        bar.write(f"step {index + 1:>6}  loss {trainer.losses[-1]:.4f}  validation {value:.4f} {unit}")


def find_run(folder: Path, settings: Mapping[str, Any], ranks: Ranks | None) -> bool:
    """Return True if ``folder`` contains the run with these settings, and False if it is empty or does not exist.

    Args:
        folder, settings: as of :class:`Run`.
        ranks: the processes that split the model. All look before rank 0 writes. None: one process.

    Raises:
        Error: the folder cannot be read or contains something else; the answers or the settings of the ranks differ.
    """
    with errors_together(ranks):
        try:
            resumed = folder.is_dir() and any(folder.iterdir())
        except OSError as error:
            raise Error(f"cannot read {folder} ({error.strerror})") from None
        if resumed:
            checkpointing.check_same_run(folder, settings)
    if ranks is not None:
        ranks.check_same_values("training run", resumed, settings)
    return resumed
