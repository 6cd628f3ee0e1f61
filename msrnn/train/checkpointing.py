"""Checkpoints of a training run: the model or the adapter, and next to it everything that the next step depends on.

``training.safetensors`` is written atomically and contains the number of finished steps. The matching state is written before
it, and the model after it. A killed run therefore resumes from one of two consecutive checkpoints, and the model folder is
usable at any time.

The files of a split model are those of the whole one. All ranks make the same calls, and rank 0 writes.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..distributed.rank_part import RankPart
from ..distributed.whole import errors_together, whole_folder, whole_tensor, write_whole
from ..errors import Error
from ..reporting.resume import check_same_settings
from ..state.loading import load_state, take_own_heads
from ..storage.atomic import atomic_file
from ..storage.lazy_tensors import LazyTensor
from ..storage.safetensors_io import open_tensors, read_metadata, write_tensors
from .trainer import Trainer

FORMAT, VERSION = "msrnn-training", "2"
TRAINING = "training.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""Optimizer state that AdamW keeps per parameter."""


class RunFiles(Protocol):
    """The files of a run that other programs read: a model folder, or the folder of an adapter. Rank 0 writes them."""

    def create(self, folder: Path, trainer: Trainer) -> None:
        """Write all of them into an empty folder."""

    def update(self, folder: Path, trainer: Trainer) -> None:
        """Replace those that training changes, each atomically."""


def create(folder: Path, trainer: Trainer, files: RunFiles, settings: Mapping[str, Any]) -> None:
    """Create the folder of a run before its first step. ``settings`` are those of :func:`check_same_run`.

    Raises:
        Error: the folder is not empty or cannot be written.
    """
    with whole_folder(trainer.cell.rank_part, folder) as staged:
        files.create(staged, trainer)
        write_whole(trainer.cell.rank_part, _training_tensors(trainer), partial(_write, staged / TRAINING, settings=settings))


def save(folder: Path, trainer: Trainer, files: RunFiles, settings: Mapping[str, Any]) -> None:
    """Replace the checkpoint in ``folder`` by the current one.

    Raises:
        Error: a file cannot be written.
    """
    current = _state_path(folder, len(trainer.losses))
    if trainer.state is not None:
        trainer.state.save(current)

    def replace_training(tensors: Mapping[str, LazyTensor]) -> None:
        with atomic_file(folder / TRAINING) as staged:
            _write(staged, tensors, settings)

    rank_part = trainer.cell.rank_part
    write_whole(rank_part, _training_tensors(trainer), replace_training)
    files.update(folder, trainer)
    for path in folder.glob(_state_path(folder, "*").name) if rank_part is None or rank_part.ranks.rank == 0 else ():
        if path != current:
            path.unlink(missing_ok=True)


def check_same_run(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder that does not contain a run with these settings: the fields of its configuration, and what else it
    depends on, such as a digest of the text.

    Raises:
        Error: the folder contains no run, a run of an earlier version, a damaged file, or another run.
    """
    path = folder / TRAINING
    if not path.exists():
        raise Error(f"{folder} has no {TRAINING}; expected the folder of a training run, or a new one")
    metadata = read_metadata(path)
    if metadata.get("format") == FORMAT and metadata.get("version") != VERSION:
        version = f"format version {metadata.get('version')!r:.60}; expected {VERSION!r}"
        raise Error(f"{path} has {version} (train again in a new folder; generate and eval still read the model in this one)")
    try:
        if metadata.get("format") != FORMAT:
            raise ValueError
        found = {**json.loads(metadata["config"]), "text": metadata["text"]}
    except (KeyError, ValueError, TypeError):
        raise Error(f"{path} is damaged; expected a file that `msrnn train` has written") from None
    check_same_settings(folder, found, json.loads(json.dumps(settings)))


def restore(folder: Path, trainer: Trainer) -> None:
    """Load the checkpoint in ``folder`` into a new trainer, and set PyTorch's random state.

    Raises:
        Error: a file is damaged, or its tensors do not belong to this run.
    """
    rank_part = trainer.cell.rank_part
    with errors_together(None if rank_part is None else rank_part.ranks):
        _restore(folder, trainer, rank_part)


def _restore(folder: Path, trainer: Trainer, rank_part: RankPart | None) -> None:
    path = folder / TRAINING
    tensors = open_tensors(path)
    try:
        losses, validation = tensors.pop("losses").read().tolist(), tensors.pop("validation").read().tolist()
        torch.set_rng_state(tensors.pop("random").read())
        for name, x in trainer.parameters.items():
            x.data.copy_(_own(rank_part, name, x, tensors.pop(f"model.{name}")))
            if f"adam.{name}.step" in tensors:  # missing for a parameter that has never had a gradient
                moments = {key: tensors.pop(f"adam.{name}.{key}") for key in MOMENTS}
                step = moments.pop("step").read()
                trainer.optimizer.state[x] = {"step": step} | {k: _own(rank_part, name, x, m) for k, m in moments.items()}
        trainer.losses, trainer.validation = losses, {int(step): bits for step, bits in validation}
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise Error(f"{path} is incomplete or damaged ({type(error).__name__}: {error})") from None
    if tensors:
        raise Error(f"{path}: tensor {next(iter(tensors))!r} is not part of this run")
    if losses:
        state = load_state(_state_path(folder, len(losses)))
        trainer.state = state if rank_part is None else take_own_heads(state, rank_part.ranks)
        trainer.cell.check_state(trainer.state, trainer.config.batch_size)


def _own(rank_part: RankPart | None, name: str, x: Tensor, saved: LazyTensor) -> Tensor:
    """Return the slice of this rank of the parameter ``name``, or of a tensor with its shape; ``x`` is the current slice."""
    expected = whole_tensor(rank_part, name, x)
    if (saved.shape, saved.dtype) != (expected.shape, expected.dtype):
        raise ValueError(f"a parameter is {saved.dtype} {saved.shape}; expected {expected.dtype} {expected.shape}")
    own = saved if rank_part is None else rank_part.take({name: saved})[name]
    return own.read().to(x.device, copy=True, memory_format=torch.contiguous_format)


def _state_path(folder: Path, step: int | str) -> Path:
    return folder / f"state-{step}.safetensors"


def _training_tensors(trainer: Trainer) -> dict[str, LazyTensor]:
    tensors = {f"model.{name}": x for name, x in trainer.whole_parameters.items()}
    for name, x in trainer.parameters.items():
        for key, moment in trainer.optimizer.state[x].items():
            rank_part = trainer.cell.rank_part if moment.shape == x.shape else None  # every rank has the number of steps
            tensors[f"adam.{name}.{key}"] = whole_tensor(rank_part, name, moment)
    validation = torch.tensor([*trainer.validation.items()], dtype=torch.float64).reshape(-1, 2)
    losses = torch.tensor(trainer.losses, dtype=torch.float64)
    rest = {"random": torch.get_rng_state(), "losses": losses, "validation": validation}
    return tensors | {name: LazyTensor.of(x) for name, x in rest.items()}


def _write(path: Path, tensors: Mapping[str, LazyTensor], settings: Mapping[str, Any]) -> None:
    config = {name: value for name, value in settings.items() if name != "text"}
    metadata = {"format": FORMAT, "version": VERSION, "config": json.dumps(config), "text": settings["text"]}
    write_tensors(path, tensors, metadata)
