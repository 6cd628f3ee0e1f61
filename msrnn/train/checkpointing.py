"""A run on disk: the library's own folder, and beside the model what the next step depends on.

``training.safetensors`` is written whole or not at all, and says how many steps were made; the state that it goes with was
written before it, the model follows after it. So a run that was killed goes on from the one or from the other, and the folder
can be used at any moment.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..errors import Error
from ..reporting.resume import check_same_settings
from ..state.serialization import load_state
from ..storage.files import atomic_dir, atomic_file, read_bytes
from ..storage.lazy_tensors import LazyTensor
from ..storage.model_folder import write_model_folder
from ..storage.safetensors_io import read_metadata, read_tensors, write_tensors
from .config import Recipe
from .data import Data
from .tokenizer import Vocabulary
from .trainer import Run

FORMAT, VERSION = "msrnn-training", "1"
TRAINING, MODEL, TOKENIZER = "training.safetensors", "model.safetensors", "tokenizer.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""


def create(folder: Path, run: Run, data: Data) -> None:
    """The folder of a run that has made no step yet.

    Raises:
        Error: something is there already, or it cannot be written.
    """
    with atomic_dir(folder) as beside:
        write_model_folder(beside, run.cell.config.to_dict(), _parameters(run), {TOKENIZER: data.vocabulary.json})
        _write_training(beside / TRAINING, run, data)


def save(folder: Path, run: Run, data: Data) -> None:
    """The run as it is now, in the place of what was saved before.

    Raises:
        Error: it cannot be written.
    """
    now = _state_path(folder, len(run.losses))
    if run.state is not None:
        run.state.save(now)
    with atomic_file(folder / TRAINING) as beside:
        _write_training(beside, run, data)
    with atomic_file(folder / MODEL) as beside:
        write_tensors(beside, _parameters(run), {"format": "pt"})
    for path in folder.glob(_state_path(folder, "*").name):
        if path != now:
            path.unlink(missing_ok=True)


def check_same(folder: Path, recipe: Recipe, digest: str) -> None:
    """Refuse a folder that holds another run, or none.

    Raises:
        Error: as said.
    """
    if not (folder / TRAINING).exists():
        raise Error(f"{folder} has no {TRAINING}; expected the folder of a training run, or a new one")
    about = read_metadata(folder / TRAINING)
    try:
        if (about.get("format"), about.get("version")) != (FORMAT, VERSION):
            raise ValueError
        found, text = json.loads(about["recipe"]), about["text"]
        wanted = json.loads(json.dumps(asdict(recipe)))
    except (KeyError, ValueError, AttributeError, TypeError):
        raise Error(f"{folder / TRAINING} is not what a training run has written, or it is damaged") from None
    check_same_settings(folder, {**found, "text": text}, {**wanted, "text": digest})


def read_vocabulary(folder: Path) -> Vocabulary:
    """The tokenizer that a run has begun with."""
    return Vocabulary.read(read_bytes(folder / TOKENIZER))


def restore(folder: Path, run: Run) -> None:
    """Bring a new run to where the saved one stands, and PyTorch's random numbers too.

    Raises:
        Error: a damaged file, or tensors that are not this run's.
    """
    path = folder / TRAINING
    tensors = dict(read_tensors(path))
    try:
        losses, validation = tensors.pop("losses").tolist(), tensors.pop("validation").tolist()
        torch.set_rng_state(tensors.pop("random"))
        for name, x in run.cell.named_parameters():
            _put(x.data, tensors.pop(f"model.{name}"))
            if f"adam.{name}.step" in tensors:  # not of one that was never used
                run.optimizer.state[x] = {key: tensors.pop(f"adam.{name}.{key}") for key in MOMENTS}
        run.losses, run.validation = losses, {int(step): bits for step, bits in validation}
    except (KeyError, ValueError, RuntimeError, TypeError) as wrong:
        raise Error(f"{path} is incomplete or damaged ({type(wrong).__name__}: {wrong})") from None
    if tensors:
        raise Error(f"{path}: tensor {next(iter(tensors))!r} is not part of this run")
    if losses:
        run.state = load_state(_state_path(folder, len(losses)))
        run.cell.check_state(run.state, run.recipe.batch)


def _put(x: Tensor, found: Tensor) -> None:
    if x.shape != found.shape or x.dtype != found.dtype:
        raise ValueError(f"a parameter is {found.dtype} {tuple(found.shape)}; expected {x.dtype} {tuple(x.shape)}")
    x.copy_(found)


def _state_path(folder: Path, step: int | str) -> Path:
    return folder / f"state-{step}.safetensors"


def _parameters(run: Run) -> Mapping[str, LazyTensor]:
    return {name: LazyTensor.of(x) for name, x in run.cell.named_parameters()}


def _write_training(path: Path, run: Run, data: Data) -> None:
    tensors: dict[str, Tensor] = {f"model.{name}": x for name, x in run.cell.named_parameters()}
    for name, x in run.cell.named_parameters():
        tensors |= {f"adam.{name}.{key}": moment for key, moment in run.optimizer.state[x].items()}
    tensors["random"] = torch.get_rng_state()
    tensors["losses"] = torch.tensor(run.losses, dtype=torch.float64)
    tensors["validation"] = torch.tensor([*run.validation.items()], dtype=torch.float64).reshape(-1, 2)
    about = {"format": FORMAT, "version": VERSION, "recipe": json.dumps(asdict(run.recipe)), "text": data.digest}
    write_tensors(path, {name: LazyTensor.of(x) for name, x in tensors.items()}, about)
