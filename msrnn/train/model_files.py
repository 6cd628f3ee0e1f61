"""The files of a run of `msrnn train`: a model folder with the tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..distributed.whole import write_whole
from ..storage.atomic import atomic_file
from ..storage.files import read_bytes
from ..storage.lazy_tensors import LazyTensor
from ..storage.model_folder import WEIGHTS_FILE, write_model_folder
from ..storage.safetensors_io import write_tensors
from .tokenizer import TrainTokenizer
from .trainer import Trainer

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, eq=False)
class ModelFiles:
    """:class:`~msrnn.train.checkpointing.RunFiles` of a new model."""

    tokenizer: TrainTokenizer

    def create(self, folder: Path, trainer: Trainer) -> None:
        """Write config, parameters and tokenizer."""

        def write(tensors: Mapping[str, LazyTensor]) -> None:
            write_model_folder(folder, trainer.cell.config.to_dict(), tensors, {TOKENIZER: self.tokenizer.json})

        write_whole(trainer.cell.rank_part, trainer.whole_parameters, write)

    def update(self, folder: Path, trainer: Trainer) -> None:
        """Replace the parameters."""

        def write(tensors: Mapping[str, LazyTensor]) -> None:
            with atomic_file(folder / WEIGHTS_FILE) as staged:
                write_tensors(staged, tensors, {"format": "pt"})

        write_whole(trainer.cell.rank_part, trainer.whole_parameters, write)


def read_tokenizer(folder: Path) -> TrainTokenizer:
    """Return the tokenizer of a run."""
    return TrainTokenizer.read(read_bytes(folder / TOKENIZER))
