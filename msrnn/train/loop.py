"""A training run from its first step, or from where it was saved last, to its end."""

import time
from pathlib import Path

import torch

from ..errors import Error
from ..models.registry import build_random
from ..reporting.progress import progress_bar
from ..storage.digest import digest
from . import checkpointing
from .config import Recipe
from .data import Data
from .trainer import Run, bits_per_byte


def train(recipe: Recipe, text: str, folder: str | Path, *, progress: bool = False) -> Run:
    """Train a new cell on ``text``, or go on with the run that ``folder`` holds, to the end.

    A run that was stopped anywhere goes on from what was saved last and ends as it would have, bit for bit (on the same machine
    with as many threads). The random numbers of the caller are left as they were.

    Args:
        recipe: the model, and how it learns.
        text: what it learns from; its end is held out.
        folder: new or empty, or of this run. What is written there is the library's own folder, and what the run goes on from.
        progress: whether to show a bar.

    Returns:
        The finished :class:`Run`: the cell, in training mode, the losses and the validations.

    Raises:
        Error: a text that is too short, a folder that holds another run or something else, or cannot be written: all before
            the first step; a loss that is no number.
    """
    folder = Path(folder)
    begun = _holds_something(folder)
    if begun:
        checkpointing.check_same(folder, recipe, digest(text))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        data = Data.of(text, recipe, checkpointing.read_vocabulary(folder) if begun else None)
        torch.manual_seed(recipe.seed)
        run = Run(build_random(recipe.config(len(data.vocabulary.n_bytes))), recipe)
        run.cell.initial_state(recipe.batch, recipe.reduction)  # or the two do not go together
        if begun:
            checkpointing.restore(folder, run)
            checkpointing.save(
                folder, run, data
            )  # what a killed run has not come to; and if it cannot be written, it is known now
        else:
            checkpointing.create(folder, run, data)
        _finish(run, data, folder, progress)
    return run


def _finish(run: Run, data: Data, folder: Path, progress: bool) -> None:
    """The steps that are missing."""
    recipe, here = run.recipe, len(run.losses)
    with progress_bar(recipe.steps, "step", initial=here, label="training", enabled=progress) as bar:
        begin = time.perf_counter()
        for index in range(here, recipe.steps):
            run.step(data.learnt[index])
            bar.update()
            speed = (index + 1 - here) * recipe.batch * recipe.chunk / (time.perf_counter() - begin)
            bar.set_postfix_str(f"loss {run.losses[-1]:.3f}, {speed:,.0f} tokens/s", refresh=False)
            if (index + 1) % recipe.every == 0 or index + 1 == recipe.steps:
                bits = bits_per_byte(run.cell, data.held, data.vocabulary.n_bytes, recipe.reduction)
                run.validation[index + 1] = bits
                checkpointing.save(folder, run, data)
                if progress:
                    bar.write(f"step {index + 1:>6}  loss {run.losses[-1]:.4f}  held out {bits:.4f} bits/byte")


def _holds_something(folder: Path) -> bool:
    try:
        return folder.is_dir() and any(folder.iterdir())
    except OSError as wrong:
        raise Error(f"cannot read {folder} ({wrong.strerror})") from None
